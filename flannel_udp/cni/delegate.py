"""The plugin that makes the interface: what it is told, where it is found, and how it is run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from flannel_udp.cni import failure
from flannel_udp.cni.failure import Failure
from flannel_udp.foreign_json import read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from flannel_udp.cni.call import Network
    from flannel_udp.subnet_env import PluginEnv

DEFAULT_TYPE = "bridge"
DEFAULT_IPAM = "host-local"
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python, which other programs do not expect


def configure(network: Network, env: PluginEnv) -> dict[str, Any]:
    """The delegated plugin's configuration, as flannel's plugin makes it, and `args` besides.

    The network's own words go before what follows from subnet.env, but for the subnets: those are the node's.
    """
    kind = network.delegate.get("type", DEFAULT_TYPE)
    usual = {"type": kind, "ipMasq": not env.ip_masq, "mtu": env.mtu}
    usual |= {"isGateway": True} if kind == DEFAULT_TYPE else {}
    ranges = [[{"subnet": str(subnet)}] for subnet in env.subnets]
    routes = [*(network.ipam.get("routes") or ()), *({"dst": str(overlay)} for overlay in env.networks)]
    ipam = {"type": DEFAULT_IPAM, **network.ipam, "ranges": ranges, "routes": routes}
    return {**usual, **network.delegate, **network.handed_on, "name": network.name, "ipam": ipam}


def subnets(configuration: Mapping[str, Any]) -> list[str]:
    """The subnets that `configure` put into a configuration."""
    try:
        return [one["subnet"] for group in configuration["ipam"]["ranges"] for one in group]
    except (KeyError, TypeError):
        return []  # of another make: an older plugin's, or edited


def run(verb: str, configuration: Mapping[str, Any], **variables: str) -> dict[str, Any]:
    """Have the configured plugin do this; what it answers, or Failure: its own error, or that it gave none."""
    return run_plugin(configuration["type"], verb, configuration, **variables)


def run_plugin(name: str, verb: str, configuration: Mapping[str, Any], **variables: str) -> dict[str, Any]:
    """Run a plugin with this process's environment, its stderr included, but for the verb and these `variables`."""
    program = find(name)
    environment = {**os.environ, "CNI_COMMAND": verb, **variables}
    # Files in memory, not pipes: nobody has to feed one while the other fills up.
    with _memory("stdin") as told, _memory("stdout") as answered:
        told.write(json.dumps(configuration).encode())
        told.seek(0)
        try:
            pid = os.posix_spawn(
                program, [program], environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, told.fileno(), 0), (os.POSIX_SPAWN_DUP2, answered.fileno(), 1)],
                setsigdef=_IGNORED,
            )  # fmt: skip
        except OSError as error:
            raise Failure(failure.DELEGATE, f"plugin {program} cannot be run: {error.strerror}") from None
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answered.seek(0)
        return _read_answer(name, verb, status, answered.read())


def find(name: str) -> str:
    """The first plugin of this name in CNI_PATH's folders; Failure tells where it was looked for."""
    folders = os.environ.get("CNI_PATH", "")
    if not folders:
        raise Failure(failure.ENVIRONMENT, "CNI_PATH missing", f"plugin {name} is looked for there")
    for folder in folders.split(os.pathsep):
        program = Path(folder, name)
        if folder and program.is_file():
            return str(program)
    raise Failure(failure.DELEGATE, f"plugin {name} not found", f"CNI_PATH is {folders}")


def _memory(name: str) -> Any:  # noqa: ANN401 - a BufferedRandom, which would cost an import to name
    return open(os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC), "w+b")  # noqa: PTH123 - there is no path


def _read_answer(name: str, verb: str, status: int, output: bytes) -> dict[str, Any]:
    try:
        answer = read_json(output) if output.strip() else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or (not answer and (status or verb == "ADD")):
        how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        said = f"said {output[:200].decode(errors='replace')!r}" if output.strip() else "said nothing"
        raise Failure(failure.DELEGATE, f"plugin {name} {how} and {said}", f"{verb} expects a JSON object of it")
    if status:
        code, details = answer.get("code"), answer.get("details")
        raise Failure(code if isinstance(code, int) and code > 0 else failure.DELEGATE,
                      f"plugin {name}: {answer.get('msg') or 'failed'}", str(details or ""))  # fmt: skip
    return answer
