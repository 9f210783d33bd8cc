"""What tests of the lab do: its commands as a user types them, and a look for what it may leave behind."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from flannel_udp.errors import LabError
from flannel_udp.lab.client import Lab

from ..conftest import require, require_commands, require_tun, wait_until

COMMAND = [sys.executable, "-P", "-m", "flannel_udp.cli", "lab"]
AS_NOBODY = [sys.executable, "-P", str(Path(__file__).with_name("as_nobody.py"))]
DEADLINE = 60.0
_numbers = itertools.count(1)

Result = subprocess.CompletedProcess[str]


def lab(*words: str, prefix: list[str] | None = None) -> Result:
    command = [*(prefix or []), *COMMAND, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def as_user(user: str) -> list[str]:
    """What goes before a command, to run it as this user."""
    if user == "nobody":
        require(os.geteuid() == 0, "needs root, to become uid 65534 where /dev/net/tun is open to all")
        return AS_NOBODY
    return []


def processes_of(name: str) -> list[int]:
    """The processes of a lab: its supervisor, by its command line, and all in the supervisor's PID namespace."""
    found, spaces = [], set()
    listing: list[tuple[int, str]] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            space = str((entry / "ns/pid").readlink())
        except OSError:
            continue
        listing.append((int(entry.name), space))
        if b"flannel_udp.lab.supervisor" in words and name.encode() in words:
            found.append(int(entry.name))
            spaces.add(space)
    spaces.discard(str(Path("/proc/self/ns/pid").readlink()))
    return sorted({*found, *(pid for pid, space in listing if space in spaces)})


def supervisor_of(name: str) -> int:
    """PID 1 of a lab, as seen from outside: it is older than all others."""
    return wait_until(lambda: processes_of(name), f"the supervisor of lab {name} runs")[0]


def traces() -> dict[str, object]:
    """What a lab could leave on the machine, beside processes and its door."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "run": sorted(path.name for path in Path("/run").iterdir()),
        "named namespaces": sorted(Path("/run/netns").glob("*")),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
    }


def door_is_open(name: str) -> bool:
    return any(line.endswith(f"/{name}") for line in Path("/proc/net/unix").read_text().splitlines())


@contextlib.contextmanager
def named_lab() -> Iterator[str]:
    """A name for a lab; whatever became of it, nothing is left of it in the end."""
    require_commands("ip", "ping")
    require_tun()
    before = traces()
    name = f"test-{os.getpid()}-{next(_numbers)}"
    try:
        yield name
    finally:
        with contextlib.suppress(LabError):
            Lab(name).down()
    wait_until(lambda: not processes_of(name), "all processes of the lab are gone")
    assert not door_is_open(name)
    assert traces() == before


def up(name: str, *words: str) -> None:
    done = lab("up", "--nodes", "2", "--name", name, *words)
    assert done.returncode == 0, done.stderr


def run_at(name: str, node: str, *command: str) -> Result:
    return lab("exec", "--name", name, *node.split(), "--", *command)
