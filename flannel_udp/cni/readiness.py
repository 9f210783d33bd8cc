"""Whether this node can take containers, and whether they would be reached: subnet.env, and the daemon's own word."""

from __future__ import annotations

from flannel_udp.cni import failure
from flannel_udp.cni.failure import Failure
from flannel_udp.errors import ControlError, SubnetEnvError
from flannel_udp.subnet_env import plugin_env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from flannel_udp.subnet_env import PluginEnv

PATIENCE = 2.0  # our choice: a daemon answers in milliseconds, and a runtime asks every few seconds


def read_env(path: Path) -> PluginEnv:
    """What subnet.env says; Failure, one that passes by itself where the daemon has not written the file yet."""
    try:
        return plugin_env(path)
    except FileNotFoundError:
        raise Failure(failure.TRY_LATER, f"{path} is missing", "the daemon writes it when it has a lease") from None
    except OSError as error:
        raise Failure(failure.INPUT_OUTPUT, f"{path}: {error.strerror}") from None
    except SubnetEnvError as error:
        raise Failure(failure.DECODE, str(error)) from None


def daemon_trouble(socket: Path) -> str:
    """Why the daemon that listens there does not forward; empty when it does, or where there is no socket.

    No socket is no fault: flannel's own daemon has none, and ours may have been told another --run-dir.
    """
    try:
        if not socket.exists():
            return ""
    except OSError as error:
        return f"{socket}: {error.strerror}"
    from flannel_udp import control  # costs milliseconds that ADD and DEL need not pay

    try:
        missing = control.ask(socket, {"command": "health"}, PATIENCE).get("missing")
    except ControlError as error:
        return str(error)
    return "; ".join(map(str, missing)) if isinstance(missing, list) else f"{socket}: an answer that makes no sense"
