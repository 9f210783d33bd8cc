"""The plugin's process: from a runtime's call to one JSON object on stdout and an exit status."""

from __future__ import annotations

import json
import os
import signal
import sys

from flannel_udp.cni import call, failure, verbs
from flannel_udp.cni.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ABOUT = f"""flannel-udp's CNI plugin, called by container runtimes; `flannel-udp cni install --help` tells how.
CNI versions supported: {', '.join(call.VERSIONS)}"""


def main() -> None:
    """Serve one call and end the process, without the time that an orderly end of the interpreter takes."""
    if sys.stderr is None:
        os.open(os.devnull, os.O_RDWR)  # else the next file opened would be what delegates write their errors to
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller that ignores it would have us learn of no delegate's end
    os._exit(serve())


def serve() -> int:
    """Serve the call that environment and stdin hold; the exit status."""
    said: Mapping[str, Any] = {}
    try:
        verb = call.verb_of(os.environ)
        said = _read(verb)
        answer = verbs.version(said) if verb == "VERSION" else verbs.VERBS[verb](call.read_call(verb, os.environ, said))
        return _say(answer) if answer is not None else 0
    except Failure as error:
        if not os.environ.get("CNI_COMMAND"):
            failure.log(ABOUT)  # somebody looks what this program is
        return _tell(error, said)
    except Exception as error:  # a runtime must be able to read whatever happens
        return _tell(Failure(failure.INTERNAL, "the plugin failed", repr(error)), said)


def _read(verb: str) -> dict[str, Any]:
    """The configuration on stdin; VERSION may come without."""
    bare = verb == "VERSION" and (sys.stdin is None or sys.stdin.isatty())
    try:
        data = b"" if bare else sys.stdin.buffer.read()
    except (OSError, AttributeError) as error:  # AttributeError: stdin is closed
        raise Failure(failure.INPUT_OUTPUT, "stdin cannot be read", str(error)) from None
    return {} if verb == "VERSION" and not data.strip() else call.decode(data)


def _tell(error: Failure, said: Mapping[str, Any]) -> int:
    version = said.get("cniVersion")
    _say({"cniVersion": version if version in call.VERSIONS else call.LATEST, **error.fields()})
    return 1


def _say(answer: Mapping[str, Any]) -> int:
    """Write the answer as one line; a reader that has gone cannot be told anything."""
    rest = memoryview(json.dumps(answer).encode() + b"\n")
    try:
        while rest:
            rest = rest[os.write(1, rest):]  # sys.stdout is missing where the caller has closed it
    except OSError as error:
        failure.log(f"flannel-udp: stdout: {error.strerror}")
        return 1
    return 0
