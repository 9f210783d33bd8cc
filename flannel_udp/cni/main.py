"""The plugin's process: from a runtime's call to one JSON object on stdout and an exit status."""

from __future__ import annotations

import json
import os
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
    status = serve()
    sys.stderr.flush()
    os._exit(status)


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
            print(ABOUT, file=sys.stderr)  # somebody looks what this program is
        return _tell(error, said)
    except Exception as error:  # a runtime must be able to read whatever happens
        return _tell(Failure(failure.INTERNAL, "the plugin failed", repr(error)), said)


def _read(verb: str) -> dict[str, Any]:
    """The configuration on stdin; VERSION may come without."""
    try:
        data = b"" if verb == "VERSION" and sys.stdin.isatty() else sys.stdin.buffer.read()
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
        print(f"flannel-udp: stdout: {error.strerror}", file=sys.stderr)
        return 1
    return 0
