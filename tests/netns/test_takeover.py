"""Taking over from the real flannel on the same host, and giving it back."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry

from ..conftest import require_tun, wait_until
from .firewalled import OUTSIDE, add_outside, ready, require_firewalls, source_of, warned
from .node_daemon import Daemon
from .real_flannel import Flanneld, Keeper
from .topology import Node, Topology

MakeTopology = Callable[..., Topology]
# Flannel's backend, whether its rules are nft's, and the backend that ours goes on with.
BACKENDS = [("udp", False, "udp"), ("udp", True, "udp"), ("vxlan", False, "udp"), ("vxlan", True, "vxlan"),
            ("host-gw", False, "udp"), ("host-gw", False, "host-gw")]


class World:
    """Two nodes on which flannel ran, or runs, with a pod each."""

    def __init__(self, topology: Topology, root: Path, config: dict[str, object], ours: str) -> None:
        self.topology, self.root = topology, root
        self.keeper = Keeper(topology, root)
        self.keeper.configure(config)
        self.flannels = [Flanneld(node, root) for node in topology.nodes]
        self.pods = [flannel.node.add_pod(flannel.subnet(), 1400) for flannel in self.flannels]
        self.outside = add_outside(topology)
        self.registry = f"sqlite://{root}/registry.db"
        opened = open_registry(self.registry)
        opened.write_config(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{ours}"}}}}')
        opened.close()

    def reach(self, patience: float = 1.0) -> bool:
        """Whether the pods see each other, by their own addresses."""
        one, two = self.pods
        return (source_of(one, two, two.address, patience=patience) == one.address
                and source_of(two, one, one.address, patience=patience) == two.address)

    def stop_flannel(self) -> None:
        for flannel in self.flannels:
            flannel.stop()

    def daemon(self, node: Node, *options: str) -> Daemon:
        return Daemon(node, self.root, self.registry, "", "--ip-masq", "--iptables-resync=1", *options)

    def daemons(self, *options: str) -> list[Daemon]:
        made = [self.daemon(node, *options) for node in self.topology.nodes]
        for daemon in made:
            ready(daemon)
        return made


Make = Callable[..., World]


@pytest.fixture
def make(topology: MakeTopology, tmp_path: Path) -> Make:
    """Flannel with a backend, and nftables if wanted, on two nodes."""
    require_tun()
    require_firewalls()

    def made(backend: str, nftables: bool = False, network: str = "10.5.0.0/16", ours: str = "udp") -> World:
        config = {"Network": network, "EnableNFTables": nftables, "Backend": {"Type": backend}}
        world = World(topology(2), tmp_path, config, ours)
        wait_until(world.reach, "flannel's own nodes reach each other")
        return world

    return made


def signs(node: Node) -> str:
    """All of the host where flannel leaves something."""
    parts = [node.run(*words.split(), check=False).stdout for words in (
        "iptables-save", "ip6tables-save", "nft list tables", "ip -oneline link show type vxlan",
        "ip route show proto boot")]
    return "".join(parts)


def left(node: Node) -> set[str]:
    """Of flannel's traces those that are there."""
    words = {"FLANNEL-POSTRTG", "FLANNEL-FWD", "flanneld masq", "flanneld forward", "table ip flannel-ipv4",
             "table ip6 flannel-ipv6", "flannel.1:", "10.5."}
    return {word for word in words if word in signs(node).replace("default via", "")}


@pytest.mark.parametrize(("backend", "nftables", "ours"), BACKENDS)
def test_what_flannel_left_is_removed_and_the_node_goes_on(make: Make, backend: str, nftables: bool, ours: str) -> None:
    world = make(backend, nftables, ours=ours)
    subnets = [flannel.subnet() for flannel in world.flannels]
    world.stop_flannel()
    before = left(world.topology.nodes[0])
    assert ("table ip flannel-ipv4" in before) == nftables
    assert ("FLANNEL-FWD" in before) == (not nftables)
    assert ("flannel.1:" in before) == (backend == "vxlan")
    daemons = world.daemons()
    assert [daemon.subnet() for daemon in daemons] == subnets
    wait_until(world.reach, "the pods reach each other")
    one = daemons[0]
    wait_until(lambda: not left(one.node), "no trace of flannel is left")
    assert one.log().count("removed what flannel left") == (
        2 + (backend in {"vxlan", "host-gw"}))  # two chains or tables, and a device or a route
    assert one.status()["warnings"] == []
    assert source_of(world.pods[0], world.outside, OUTSIDE) == one.node.address
    tunnel = one.node.address if ours == "host-gw" else subnets[0].network_address
    assert source_of(one.node, world.pods[1], world.pods[1].address, bind=one.node.address) == tunnel


@pytest.mark.parametrize(("backend", "nftables"), [("vxlan", False), ("host-gw", True)])
def test_no_takeover_leaves_all_and_says_so(make: Make, backend: str, nftables: bool) -> None:
    world = make(backend, nftables)
    world.stop_flannel()
    node = world.topology.nodes[0]
    before = signs(node)
    daemon = world.daemons("--no-takeover")[0]
    traces = ["flannel.1 and its routes", "FLANNEL-POSTRTG", "FLANNEL-FWD"] if backend == "vxlan" else [
        "nft table ip flannel-ipv4", f"route {world.flannels[1].subnet()} via 192.0.2.2"]
    for trace in traces:
        wait_until(lambda trace=trace: warned(daemon, trace), f"{trace} is told")  # type: ignore[misc]
    assert "removed what flannel left" not in daemon.log()
    after = signs(node)
    assert [line for line in before.splitlines() if "flannel" in line.lower() and line not in after] == []


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_a_running_flanneld_is_refused(make: Make, backend: str) -> None:
    world = make(backend)
    before = left(world.topology.nodes[0])
    daemon = world.daemon(world.topology.nodes[0])
    assert daemon.process.wait(20) == 1
    line, = (line for line in daemon.log().splitlines() if "level=error" in line)
    assert f"flanneld (process {world.flannels[0].process.pid}) runs on this host, for the same network" in line
    assert "stop it first" in line
    assert left(world.topology.nodes[0]) == before
    assert "flannel_udp" not in signs(world.topology.nodes[0])
    assert world.reach()


def test_flannel_of_another_network_is_left_alone(make: Make) -> None:
    """It runs, and ours beside it, each for its own."""
    world = make("vxlan", network="10.9.0.0/16")
    node = world.topology.nodes[0]
    daemon = Daemon(node, world.root, world.registry, "ours", "--ip-masq")
    ready(daemon)
    assert "flannel.1:" in signs(node)
    assert "FLANNEL-POSTRTG" in signs(node)
    assert "removed what flannel left" not in daemon.log()
    assert daemon.status()["warnings"] == []
    world.flannels[0].stop()
    daemon.end(signal.SIGTERM)
    daemon.start()
    ready(daemon)
    assert "-s 10.9.0.0/16" in signs(node)
    assert world.reach(5.0)


@pytest.mark.parametrize(("backend", "nftables", "ours"), [
    ("udp", False, "udp"), ("vxlan", True, "udp"), ("vxlan", False, "vxlan"), ("host-gw", False, "host-gw")])
def test_flannel_takes_the_node_back(make: Make, backend: str, nftables: bool, ours: str) -> None:
    world = make(backend, nftables, ours=ours)
    subnets = [flannel.subnet() for flannel in world.flannels]
    world.stop_flannel()
    daemons = world.daemons("--ip-blackhole-route")
    wait_until(world.reach, "ours carries the pods' packets")
    for daemon in daemons:
        assert daemon.end(signal.SIGTERM) == 0
    for flannel in world.flannels:
        flannel.start()
    assert [flannel.subnet() for flannel in world.flannels] == subnets
    wait_until(world.reach, "flannel carries them again")
    one = world.flannels[0].node
    assert source_of(world.pods[0], world.outside, OUTSIDE) == one.address
    tunnel = one.address if backend == "host-gw" else subnets[0].network_address
    assert source_of(one, world.pods[1], world.pods[1].address) == tunnel
    # A direct route of ours flannel takes for its own.
    assert (f"{subnets[1]} via" in one.run("ip", "route", "show", "proto", "82").stdout) == (ours == "host-gw")
