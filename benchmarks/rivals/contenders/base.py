"""What a contender is. Bare veth needs nothing, and so is the base of the others."""

import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import IO, Any

from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed
from tests.netns.topology import Node

ROOT = Path(__file__).parent.parent.parent.parent


class Contender:
    """A way from node 1 to `target`, an address of node 2; `place` tells apart those that stand side by side."""

    encrypts = False
    version = "the kernel's"
    mtu = 1500

    def __init__(self, name: str, cable: Cable, place: int) -> None:
        self.name = name
        self.cable = cable
        self.place = place
        self.settings = name.partition(":")[2]
        self.overlay = IPv4Network(f"10.{50 + place}.0.0/16")
        self.subnets = list(self.overlay.subnets(new_prefix=24))
        self.target: IPv4Address = cable.two.address
        self.seconds_to_packet = 0.0
        self.processes: list[subprocess.Popen[str]] = []

    @classmethod
    def check(cls, settings: str) -> None:
        """Raise ValueError unless the settings of a name are right."""
        if settings:
            raise ValueError(f"contender setting {settings!r}: this one has none")

    def prepare(self) -> None:
        """Do what must stand before its start and is not its own: a build, a registry."""

    def start(self) -> None:
        """Set it up on both nodes; what begins here counts as its time to the first packet."""

    def counters(self) -> dict[str, Any]:
        """Return what it counted since its start, by node and direction; empty where it does not count."""
        return {}

    def told(self) -> dict[str, Any]:
        """Return settings that it goes by, for the record."""
        return {}

    def close(self) -> None:
        """Stop it; what only lives in the nodes goes with them."""
        for process in self.processes:
            process.kill()
            with process:  # closes its pipes, and waits
                pass

    def program(self, node: Node, *argv: str, errors: IO[str] | None = None) -> subprocess.Popen[str]:
        """Start a program of its own inside a node: it is weighed, can be asked, and ends with this contender."""
        with node.entered():
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self.processes.append(process)
        return process


def ask(process: subprocess.Popen[str], question: str = "") -> str:
    """Write to a program, if there is something to write, and return the line that it answers with."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended: so does its output, below
    line = process.stdout.readline()
    if not line:
        raise Failed(f"{process.args!r} ended with status {process.wait()}")
    return line.rstrip("\n")


def peer_program(name: str) -> str:
    """Build another project's program, if it is not built yet; return its path."""
    try:
        done = subprocess.run([ROOT / "tests/interop/peers/build", name], stdout=subprocess.PIPE, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise Failed(f"tests/interop/peers/build {name} failed: it needs go 1.26, see above") from error
    return done.stdout.strip()


def peer_version(name: str) -> str:
    """Return the module and version that a program of tests/interop/peers is built from."""
    lines = (ROOT / "tests/interop/peers" / name / "go.mod").read_text().splitlines()
    return next(line.removeprefix("require ") for line in lines if line.startswith("require "))
