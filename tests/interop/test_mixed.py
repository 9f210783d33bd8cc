"""A mixed cluster: two nodes of flannel's own packages and two of ours share an overlay on a real etcd.

Neither sort may notice the other: traffic passes among all, leases look the same to the byte, and either takes the
other's place on a host.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from ipaddress import IPv4Network
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from ..conftest import DEADLINE, require, require_commands, require_tun, wait_until
from ..netns.node_daemon import Daemon
from ..netns.topology import Node, Topology
from ..netns.transfer import transfer
from .etcd_cluster import memory
from .etcd_host import PREFIX, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUILD = Path(__file__).parent / "peers" / "build"
_CACHED = _BUILD.parents[3] / ".cache" / "peers" / "bin" / "flannel-node"
_SIZE = 4 << 20


class Agent(Protocol):
    """A node of either sort."""

    node: Node
    home: Path

    def log(self) -> str: ...
    def subnet(self) -> IPv4Network: ...
    def end(self, number: signal.Signals) -> int: ...


class Theirs:
    """flannel's agent on a node."""

    def __init__(self, node: Node, root: Path, store: Store) -> None:
        self.node = node
        self.home = root / f"flannel-{node.name}"
        self.home.mkdir(exist_ok=True)
        (self.home / "subnet.env").unlink(missing_ok=True)
        done = subprocess.run([_BUILD, "flannel-node"], stdout=subprocess.PIPE, text=True, check=True, timeout=600)
        with (self.home / "log").open("a") as log:
            self.process = node.start(done.stdout.strip(), "--etcd-endpoint", store.url, "--iface",
                                      f"{node.address}", "--subnet-file", f"{self.home}/subnet.env", output=log)
        wait_until((self.home / "subnet.env").exists, "flannel has a lease")

    def log(self) -> str:
        return (self.home / "log").read_text()

    def subnet(self) -> IPv4Network:
        lines = (self.home / "subnet.env").read_text().splitlines()
        return IPv4Network(next(line for line in lines if "_SUBNET=" in line).partition("=")[2], strict=False)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


class Mixed:
    """Nodes 1 and 2 are flannel's, 3 and 4 ours."""

    def __init__(self, topology: Topology, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        store.start()
        one, two, three, four, _ = topology.nodes
        self.agents: list[Agent] = [self.theirs(one), self.ours(three), self.theirs(two), self.ours(four)]
        self.await_all()

    def theirs(self, node: Node) -> Theirs:
        return Theirs(node, self.root, self.store)

    def ours(self, node: Node, *options: str) -> Daemon:
        daemon = Daemon(node, self.root, "", "", "--etcd-endpoints", self.store.url, *options)
        wait_until(daemon.ready, "it has a lease")
        return daemon

    def key(self, agent: Agent) -> str:
        return f"{PREFIX}/subnets/{agent.subnet()}".replace("/24", "-24")

    def lease(self, agent: Agent) -> dict[str, Any]:
        """What stands in etcd under an agent's key."""
        return self.store.stored(self.key(agent))[self.key(agent)]

    def await_all(self) -> None:
        """Wait until each reaches each, from tunnel address to tunnel address."""
        for one, two in permutations(self.agents, 2):
            wait_until(lambda one=one, two=two: reaches(one, two),  # type: ignore[misc]
                       f"{one.node.name} reaches {two.node.name}\n{one.log()}\n{two.log()}")

    def revoke(self, agent: Agent) -> None:
        """Take its lease away, as etcd does when nobody renews it."""
        self.store.call("kv/lease/revoke", ID=self.lease(agent)["lease"])


def reaches(one: Agent, two: Agent) -> bool:
    source, target = one.subnet()[0], two.subnet()[0]
    return one.node.run("ping", "-n", "-c", "1", "-W", "1", "-I", f"{source}", f"{target}", check=False).returncode == 0


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    require_commands("ip", "ping", "setpriv")
    require_tun()
    require(_CACHED.exists() or shutil.which("go"), "needs go (1.26) to build flannel's node and etcd 3.7")
    topology = Topology(5)
    try:
        with memory() as place:
            store = Store(topology.nodes[-1], place, 1)
            try:
                yield Mixed(topology, tmp_path, store)
            finally:
                store.kill()
    finally:
        topology.close()


def test_all_pairs_of_pods_ping_and_transfer_both_ways(mixed: Mixed) -> None:
    pods = [agent.node.add_pod(agent.subnet()) for agent in mixed.agents]
    for one, two in permutations(pods, 2):
        assert one.ping(two.address, "-s", "1400").returncode == 0, f"{one.name} to {two.name}"
        transfer(one, two, two.address, _SIZE)


def test_what_is_written_is_the_same_to_the_byte(mixed: Mixed) -> None:
    theirs, ours = mixed.agents[:2]

    def as_ours(written: bytes) -> bytes:
        """What flannel wrote, with our address and subnet in the place of its own."""
        text = written.replace(f"{theirs.node.address}".encode(), f"{ours.node.address}".encode())
        return text.replace(f"{theirs.subnet()[1]}/".encode(), f"{ours.subnet()[1]}/".encode())

    value, their_value = mixed.lease(ours)["value"], mixed.lease(theirs)["value"]
    assert value == as_ours(their_value)
    subnets = {f"{agent.subnet()}".replace("/", "-") for agent in mixed.agents}
    assert {key.rpartition("/")[2] for key in mixed.store.stored(f"{PREFIX}/")} == {"config", *subnets}
    assert all(other.subnet().prefixlen == 24 and not one.subnet().overlaps(other.subnet())
               for one, other in combinations(mixed.agents, 2))
    lives = [mixed.store.call("lease/timetolive", ID=mixed.lease(agent)["lease"])["grantedTTL"]
             for agent in (theirs, ours)]
    assert lives[0] == lives[1]
    files = [(agent.home / "subnet.env").read_bytes() for agent in (theirs, ours)]
    assert files[1] == as_ours(files[0])


def test_leases_are_renewed_by_either_side(mixed: Mixed) -> None:
    """Ours by its timer; theirs, whose timer is an hour at least, by a start, which writes the same."""
    theirs, ours = mixed.agents[:2]
    ours.end(signal.SIGTERM)
    mixed.agents[1] = ours = mixed.ours(ours.node, "--lease-ttl", "4")
    before = mixed.lease(ours)
    for _ in range(2):
        written = mixed.lease(ours)["mod_revision"]
        wait_until(lambda written=written: mixed.lease(ours)["mod_revision"] > written, "it renews")  # type: ignore[misc]
    assert mixed.lease(ours)["create_revision"] == before["create_revision"]
    assert mixed.lease(ours)["value"] == before["value"]
    mixed.await_all()

    subnet, written = theirs.subnet(), mixed.lease(theirs)["mod_revision"]
    theirs.end(signal.SIGTERM)
    mixed.agents[0] = theirs = mixed.theirs(theirs.node)
    assert (theirs.subnet(), mixed.lease(theirs)["mod_revision"] > written) == (subnet, True)
    mixed.await_all()


def test_leases_are_revoked_and_created_anew_on_either_side(mixed: Mixed) -> None:
    theirs, ours, _, other = mixed.agents
    assert isinstance(other, Daemon)
    subnet, before = ours.subnet(), mixed.lease(ours)
    mixed.revoke(ours)
    wait_until(lambda: mixed.key(ours) in mixed.store.stored(mixed.key(ours)), "ours takes it again")
    assert (ours.subnet(), mixed.lease(ours)["value"]) == (subnet, before["value"])
    mixed.await_all()

    subnet = theirs.subnet()
    mixed.revoke(theirs)
    assert isinstance(theirs, Theirs)
    assert theirs.process.wait(DEADLINE) == 0, "flannel ends when its lease is revoked"
    wait_until(lambda: str(subnet) not in {peer["subnet"] for peer in other.status()["peers"]}, "ours drop its route")
    mixed.agents[0] = mixed.theirs(theirs.node)
    mixed.await_all()


def test_either_takes_the_place_of_the_other_and_keeps_the_subnet(mixed: Mixed) -> None:
    theirs, ours = mixed.agents[:2]
    subnets = [theirs.subnet(), ours.subnet()]
    for agent in (theirs, ours):
        agent.end(signal.SIGTERM)
    mixed.agents[:2] = [mixed.ours(theirs.node), mixed.theirs(ours.node)]
    assert [agent.subnet() for agent in mixed.agents[:2]] == subnets
    mixed.await_all()
