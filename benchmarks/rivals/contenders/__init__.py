"""What is compared. All stand between the same two nodes for the whole run; the one that is measured gets the traffic.

base.py       what a contender is; bare veth
kernel.py     the kernel's VXLAN device
flannel.py    flannel itself, by its udp or its vxlan backend
wireguard.py  wireguard-go, which encrypts
ours.py       flannel_udp: its data plane alone, and the whole daemon

A name may carry settings: `flannel_udp:backend=vxlan+busy-poll=50`. Whoever adds a contender enters its class in KINDS.
"""

import time
from dataclasses import dataclass, field

from benchmarks.rivals.contenders.base import Contender, Veth
from benchmarks.rivals.contenders.flannel import Flannel
from benchmarks.rivals.contenders.kernel import KernelVxlan
from benchmarks.rivals.contenders.ours import Daemon, Ours
from benchmarks.rivals.contenders.wireguard import Wireguard
from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed, wait_until

__all__ = ["KINDS", "Contender", "Standing", "check", "make"]

KINDS: dict[str, type[Contender]] = {
    "veth": Veth, "vxlan": KernelVxlan, "flannel": Flannel, "wireguard-go": Wireguard, "flannel_udp": Ours,
    "daemon": Daemon,
}  # fmt: skip


def check(name: str) -> None:
    """Raise ValueError, with what would be right, unless a contender of that name can be made."""
    kind, _, settings = name.partition(":")
    if kind not in KINDS:
        raise ValueError(f"contender {kind!r}: choose from {', '.join(KINDS)}")
    KINDS[kind].check(settings)


def make(name: str, cable: Cable, place: int) -> Contender:
    """Set a contender up, wait until a packet passes, and note how long that took."""
    made = KINDS[name.partition(":")[0]](name, cable, place)
    try:
        made.prepare()
        begin = time.monotonic()
        made.start()
        wait_until(lambda: _passes(made), f"{name}: an answer from {made.target}", pause=0.005)
        made.seconds_to_packet = time.monotonic() - begin
    except BaseException:  # Ctrl-C too: what was started must not outlive the run
        made.close()
        raise
    return made


def _passes(contender: Contender) -> bool:
    """Tell whether a ping comes back within a second, sent anew every 10 ms."""
    command = ["ping", "-n", "-q", "-c", "1", "-w", "1", "-i", "0.01", f"{contender.target}"]
    return contender.cable.one.run(*command, check=False).returncode == 0


@dataclass
class Standing:
    """The contenders of a run by name, and why those that could not be set up are missing."""

    cable: Cable
    up: dict[str, Contender] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Set one up, or note why not: the others go on without it."""
        try:
            self.up[name] = make(name, self.cable, len(self.up) + len(self.missing))
        except Exception as error:  # whatever a rival's program or a rival's author did wrong
            self.missing[name] = f"did not start: {error}".strip().replace("\n", " ")

    def get(self, name: str) -> Contender:
        """Return one that stands."""
        if name in self.missing:
            raise Failed(self.missing[name])
        return self.up[name]

    def close(self) -> None:
        """Stop all."""
        for contender in self.up.values():
            contender.close()
