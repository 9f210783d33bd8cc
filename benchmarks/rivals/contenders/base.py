"""What a contender is; and bare veth, which is the least that one can be."""

import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import IO, Any, ClassVar

from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed
from tests.netns.topology import Node

ROOT = Path(__file__).parent.parent.parent.parent
BACKEND, FAMILY = {"backend": ("udp", "vxlan")}, {"family": ("4", "6")}


class Contender:
    """A way from node 1 to `target`, an address of node 2; `place` tells apart those that stand side by side."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The settings that its name may carry, each with its values, of which the first is what it does without."""
    encrypts = False
    version = "the kernel's"
    mtu = 1500

    def __init__(self, name: str, cable: Cable, place: int) -> None:
        self.name = name
        self.cable = cable
        self.place = place
        self.settings = name.partition(":")[2]
        self.family = self.chosen("family", "4")
        self.overlay: IPv4Network | IPv6Network
        self.subnets: list[IPv4Network] | list[IPv6Network]
        if self.family == "4":
            self.overlay = IPv4Network(f"10.{50 + place}.0.0/16")
            self.subnets = list(self.overlay.subnets(new_prefix=24))
        else:
            self.overlay = IPv6Network(f"fd00:{50 + place}::/56")
            self.subnets = list(self.overlay.subnets(new_prefix=64))
        self.target: IPv4Address | IPv6Address = self.underlay(cable.two)
        self.seconds_to_packet = 0.0
        self.processes: list[subprocess.Popen[str]] = []

    @classmethod
    def check(cls, settings: str) -> None:
        """Raise ValueError unless the settings of a name are right."""
        for setting in filter(None, settings.split("+")):
            name, _, value = setting.partition("=")
            if value not in cls.choices.get(name, ()):
                known = ", ".join(f"{name}={'|'.join(values)}" for name, values in cls.choices.items())
                raise ValueError(f"contender setting {setting!r}: this one has {known or 'none'}")

    def chosen(self, name: str, otherwise: str) -> str:
        """Return the value of a setting."""
        told = dict(setting.partition("=")[::2] for setting in self.settings.split("+"))
        return told.get(name, otherwise)

    def underlay(self, node: Node) -> IPv4Address | IPv6Address:
        """Return a node's address on the link, of the family that is measured."""
        return node.address if self.family == "4" else node.address6

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


class Veth(Contender):
    """The link itself."""

    choices = FAMILY


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
