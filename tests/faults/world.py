"""Three daemons over an etcd, with traffic between all of them, and what is seen of them while etcd is in trouble.

Two oracles share nothing with the program: what stands in etcd, read by its HTTP gateway and understood by
`ipaddress` alone, and the datagrams that arrive.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..conftest import wait_until
from ..interop.etcd_cluster import memory
from ..interop.etcd_host import NODE, PREFIX, Store
from ..interop.tcp_proxy import Proxy
from ..netns.node_daemon import Daemon
from .traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..netns.topology import Topology

Kind = Literal["one", "three", "users", "slow"]
"""One member; three of them; one that asks for users; one behind a proxy."""
Routes = dict[str, str]
"""Subnets, and the underlay address of the node that has each."""

STRANGER = IPv4Address("192.0.2.200")
"""A node that is told of in etcd only."""
SUBNETS = f"{PREFIX}/subnets/"
_MEMBERS = {"three": 3}
_NODES = 3
_TTLS = (170, 200, 230)  # renewed after half of it, so that renewals fall into faults of many kinds
_LOOPS = re.compile("tun_to_udp|udp_to_tun|both_ways")


class World:
    """Nodes 1 to 3 run daemons, node 4 is for newcomers, node 5 has etcd."""

    def __init__(self, topology: Topology, folder: Path, kind: Kind, store: Store) -> None:
        self.kind, self.store, self.folder = kind, store, folder
        *nodes, self.spare, _ = topology.nodes
        self.proxy: Proxy | None = None
        store.start()
        if kind == "users":
            store.guard()
        if kind == "slow":
            with store.node.entered():
                self.proxy = Proxy((store.members[0].address, 2379), f"{store.node.address}")
        self.daemons = [Daemon(node, folder, "", "", *self.access(), "--lease-ttl", f"{ttl}")
                        for node, ttl in zip(nodes, _TTLS, strict=True)]
        for daemon in self.daemons:
            wait_until(daemon.ready, "it is ready")
        self.standing: Routes = {f"{daemon.subnet()}": f"{daemon.node.address}" for daemon in self.daemons}
        self.strange: set[str] = {f"{STRANGER}", f"{self.spare.address}"}
        """Underlay addresses that routes may lead to beside the standing ones."""
        self.wrong: set[str] = set()
        """Routes that were seen and should not be, or the other way round."""
        self.cpu: list[float] = []
        """What each daemon used of a core while etcd was away, its packets aside."""
        self.settle()
        self.wrong.clear()  # of the time before they knew each other
        self.traffic = Traffic([(daemon.node, daemon.subnet()[0]) for daemon in self.daemons])

    def access(self) -> list[str]:
        """Flags that lead a daemon to this etcd."""
        members = ",".join(f"http://{member.address}:2379" for member in self.store.members)
        if self.proxy:
            members = f"http://{self.store.node.address}:{self.proxy.port}"
        user = ["--etcd-username", NODE["name"], "--etcd-password", NODE["password"]] if self.kind == "users" else []
        return ["--etcd-endpoints", members, *user]

    def close(self) -> None:
        self.traffic.close()
        if self.proxy:
            self.proxy.close()

    # What etcd holds, what the daemons have of it.

    def leases(self) -> Routes:
        """Subnets and their nodes' addresses, as etcd has them."""
        return {key.rpartition("/")[2].replace("-", "/"): json.loads(kv["value"])["PublicIP"]
                for key, kv in self.store.stored(SUBNETS).items()}

    def routes(self, daemon: Daemon) -> Routes:
        """What a daemon's forwarder has; on the way it is seen that standing routes stand and no others are there."""
        found: Routes = {peer["subnet"]: peer["underlay"] for peer in daemon.status()["peers"]}
        own = f"{daemon.node.address}"
        for subnet, address in self.standing.items():
            if address != own and found.get(subnet) != address:
                self.wrong.add(f"{daemon.node.name}: {subnet} via {found.get(subnet)}, not {address}")
        for subnet, address in found.items():
            if subnet not in self.standing and address not in self.strange:
                self.wrong.add(f"{daemon.node.name}: {subnet} via {address}")
        return found

    def agree(self) -> bool:
        """Whether all daemons have the routes that etcd says."""
        truth = self.leases()
        return all(
            self.routes(daemon) == {subnet: address for subnet, address in truth.items() if
                                    address != f"{daemon.node.address}"}
            for daemon in self.daemons)

    def settle(self) -> None:
        wait_until(self.agree, "the daemons' routes are those in etcd")

    def doubles(self) -> int:
        """Pairs of leases in etcd that have addresses in common, and daemons that have lost theirs to another."""
        subnets = [IPv4Network(subnet) for subnet in self.leases()]
        pairs = sum(one.overlaps(two) for number, one in enumerate(subnets) for two in subnets[:number])
        held = [daemon.status()["lease"]["subnet"] for daemon in self.daemons]
        return pairs + len(held) - len(set(held))

    # Changes.

    def put_stranger(self, subnet: str) -> None:
        value = f'{{"PublicIP":"{STRANGER}","PublicIPv6":null}}'.encode()
        self.store.put(f"{SUBNETS}{subnet.replace('/', '-')}", value)

    def remove(self, subnet: str) -> None:
        self.store.delete(f"{SUBNETS}{subnet.replace('/', '-')}")

    def unused(self) -> str:
        """A subnet that nobody leases, and that no rubbish names."""
        taken = self.store.stored(SUBNETS)
        free = (number for number in range(250, 1, -1) if f"{SUBNETS}10.5.{number}.0-24" not in taken)
        return f"10.5.{next(free)}.0/24"

    def own_key(self, number: int) -> str:
        """The key of a daemon's lease."""
        return f"{SUBNETS}{self.daemons[number].subnet()}".replace("/24", "-24")

    def seconds_to_apply(self) -> float:
        """Write as soon as etcd takes it; seconds until the last daemon has a route for it."""
        subnet = wait_until(self._put_somewhere, "etcd takes a change")
        begin = time.monotonic()
        wait_until(lambda: all(self.routes(daemon).get(subnet) == f"{STRANGER}" for daemon in self.daemons),
                   "the daemons hear of a change")
        seconds = time.monotonic() - begin
        self.remove(subnet)
        return seconds

    def _put_somewhere(self) -> str:
        """Put a stranger; its subnet, or nothing while etcd does not answer."""
        with contextlib.suppress(OSError):
            subnet = self.unused()
            self.put_stranger(subnet)
            return subnet
        return ""

    # While etcd is away.

    def hold(self, seconds: float) -> None:
        """Let a fault last; nobody asks the daemons meanwhile, so that what they use is for etcd's sake."""
        loops = [packet_threads(daemon) for daemon in self.daemons]
        begin, before = time.monotonic(), [used(*pair) for pair in zip(self.daemons, loops, strict=True)]
        time.sleep(seconds)
        passed, after = time.monotonic() - begin, [used(*pair) for pair in zip(self.daemons, loops, strict=True)]
        self.cpu += [(end - start) / passed for start, end in zip(before, after, strict=True)]
        for daemon in self.daemons:
            self.routes(daemon)

    @contextlib.contextmanager
    def newcomer(self) -> Iterator[Daemon]:
        """A fourth daemon that starts; it has a lease in the end, and neither remains."""
        daemon = Daemon(self.spare, self.folder, "", "", *self.access())
        try:
            yield daemon
            wait_until(daemon.ready, "the newcomer is ready")
            assert self.doubles() == 0
        finally:
            daemon.end(signal.SIGTERM)
        self.remove(str(daemon.subnet()))
        (daemon.home / "subnet.env").unlink()
        (daemon.home / "state" / "subnet.env").unlink()


def packet_threads(daemon: Daemon) -> list[Path]:
    """Where the kernel accounts for the threads that move packets."""
    return [Path(f"/proc/{daemon.process.pid}/task/{thread['native_id']}/schedstat")
            for thread in daemon.status()["threads"] if _LOOPS.fullmatch(thread["name"])]


def used(daemon: Daemon, loops: list[Path]) -> float:
    """Seconds of CPU that a daemon used, except for its packets."""
    ticks = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    packets = sum(int(loop.read_text().split()[0]) for loop in loops)
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") - packets / 1e9


@contextlib.contextmanager
def world(topology: Topology, folder: Path, kind: Kind) -> Iterator[World]:
    """A running world on a topology of five nodes."""
    with memory() as place:
        store = Store(topology.nodes[-1], place, _MEMBERS.get(kind, 1))
        made = None
        try:
            made = World(topology, folder, kind, store)
            yield made
        finally:
            if made:
                made.close()
            store.kill()
