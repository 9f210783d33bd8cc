"""What every test may use: conditions that the machine must fulfil, and waiting for something to become true."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from flannel_udp import logs, steering
from flannel_udp.errors import TunError
from flannel_udp.lab import namespace

T = TypeVar("T")

# A shell without job control starts what it puts into the background with SIGINT ignored, and the programs that are to
# be interrupted here would inherit that; a handler of this process becomes the default in theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEADLINE = 30.0
"""Seconds after which something that ought to happen is held not to happen: generous, for nothing waits it out."""


@pytest.fixture(autouse=True)
def _log_as_at_first() -> None:
    """Begin each test with the log of a new process: what one test made it tell is no matter of the next one."""
    logs.configure(0)


def require(condition: object, missing: str) -> None:
    """Skip this test, saying what is `missing`, unless `condition` holds. With CI=true in the environment fail."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have what this test needs: {missing}", pytrace=False)
    pytest.skip(missing)


def require_commands(*names: str, package: str = "iproute2, iputils-ping, util-linux") -> None:
    """Require programs of the system, found in PATH."""
    missing = [name for name in names if shutil.which(name) is None]
    require(not missing, f"needs the commands {', '.join(missing)} (Debian: {package})")


def require_namespaces() -> None:
    """Require the right to make network namespaces in this process."""
    try:
        with namespace.created("net") as place:
            place.close()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        require(False, "needs root, or a user namespace: unshare --user --map-root-user --mount pytest ...")


def require_tun() -> None:
    """Require TUN devices, beside the namespaces to put them in."""
    require_namespaces()
    require(Path("/dev/net/tun").exists(), "needs /dev/net/tun (modprobe tun)")
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        require(False, f"needs /dev/net/tun to open: {error.strerror}")


def require_steering() -> None:
    """Require a kernel that takes steering programs, beside TUN devices."""
    require_tun()
    try:
        os.close(steering.load(steering.PROGRAM))
    except TunError as error:
        require(False, f"needs the right to load a steering program: {error}")


def require_bpf_asks_for_rights() -> None:
    """Require a kernel that takes steering programs from the privileged alone."""
    told = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    require(told.exists() and told.read_text() != "0\n", f"needs 1 or 2 in {told}")


def wait_until(condition: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Wait until `condition` is true and return its value; fail with `what` was waited for when the deadline passes."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline:.0f} s in vain: {what}"
        time.sleep(0.01)
    return value
