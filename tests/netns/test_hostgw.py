"""host-gw and alloc with real daemons: routes on one link, nobody behind a router, what stays and what goes."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import require_commands, require_namespaces, require_tun, wait_until
from .node_daemon import Daemon, flags
from .routed import ROUTER, Overlay, add_far_node, add_router, direct
from .topology import Topology

MakeTopology = Callable[..., Topology]


class Pair:
    """Two host-gw nodes on one link."""

    def __init__(self, topology: Topology, root: Path) -> None:
        self.topology = topology
        self.overlay = Overlay(root, {"Type": "host-gw"})
        self.daemons = [self.overlay.daemon(node) for node in topology.nodes]
        self.one, self.two = self.daemons
        self.pods = [self.overlay.pod(daemon, 1500) for daemon in self.daemons]
        wait_until(lambda: self.way(self.one, self.two) and self.way(self.two, self.one), "both have routes")

    @staticmethod
    def way(one: Daemon, other: Daemon) -> bool:
        """Whether the route to the other's subnet stands."""
        return direct(one).get(f"{other.subnet()}") == str(other.node.address)

    def reach(self) -> bool:
        """Whether a whole packet of the link's size passes between the pods."""
        return self.pods[0].ping(self.pods[1].address, "-M", "do", "-s", "1472").returncode == 0


@pytest.fixture
def pair(topology: MakeTopology, tmp_path: Path) -> Pair:
    require_namespaces()
    require_commands("ip", "ping")
    return Pair(topology(2), tmp_path)


def test_pods_reach_each_other_over_the_link_alone(pair: Pair) -> None:
    assert pair.reach()
    env = read_subnet_env(pair.one.home / "subnet.env")
    assert (env.mtu, env.subnet) == (1500, pair.one.subnet())
    status = pair.one.status()
    assert (status["backend"], status["devices"], status["peers"], status["warnings"]) == ("host-gw", [], [], [])
    assert status["direct_routes"] == [{"subnet": f"{pair.two.subnet()}", "gateway": f"{pair.two.node.address}"}]
    assert "tun" not in pair.one.node.run("ip", "-details", "link").stdout.split()


def test_a_route_that_somebody_takes_or_turns_comes_back(pair: Pair) -> None:
    subnet, node = pair.two.subnet(), pair.one.node
    node.ip(f"route del {subnet}")
    wait_until(lambda: pair.way(pair.one, pair.two), "the deleted route is back")
    node.ip(f"route replace {subnet} via {ROUTER} proto 82")
    wait_until(lambda: pair.way(pair.one, pair.two), "the turned route is back")
    node.ip("link set eth0 down", "link set eth0 up", f"route add default via {ROUTER}")
    wait_until(lambda: pair.way(pair.one, pair.two), "the route is back after the link was down")
    assert pair.reach()


def test_routes_outlive_the_daemon_and_are_reconciled_at_the_next_start(pair: Pair) -> None:
    stale = "10.5.251.0/24"
    assert pair.one.end(signal.SIGTERM) == 0
    assert pair.way(pair.one, pair.two)
    assert pair.reach()
    pair.one.node.ip(f"route add {stale} via {pair.two.node.address} proto 82")
    pair.one.start()
    wait_until(pair.one.ready, "it is ready again")
    wait_until(lambda: stale not in direct(pair.one), "a route that nobody wants is gone")
    assert pair.way(pair.one, pair.two)


def test_cleanup_takes_the_routes_away(pair: Pair) -> None:
    pair.one.end(signal.SIGTERM)
    said = pair.one.node.run(sys.executable, "-m", "flannel_udp.cli", "cleanup", *flags(pair.one.home, "")).stdout
    assert f"route {pair.two.subnet()} via {pair.two.node.address}" in said
    assert direct(pair.one) == {}


def test_a_peer_that_gives_its_lease_back_loses_its_route(pair: Pair) -> None:
    pair.two.end(signal.SIGTERM)
    again = pair.overlay.daemon(pair.two.node, "--release-on-exit")
    wait_until(lambda: pair.way(pair.one, again), "the route stands")
    again.end(signal.SIGTERM)
    wait_until(lambda: direct(pair.one) == {}, "the route is gone")
    assert direct(again) == {}


def test_routes_of_flannels_are_replaced_and_no_longer_in_the_way(pair: Pair) -> None:
    """With --no-takeover too: it is the peer's lease that wants the route."""
    pair.one.end(signal.SIGTERM)
    pair.one.node.ip(f"route replace {pair.two.subnet()} via {pair.two.node.address}")  # as flannel's host-gw leaves it
    assert direct(pair.one) == {}
    pair.one.argv.append("--no-takeover")
    pair.one.start()
    wait_until(pair.one.ready, "it is ready again")
    wait_until(lambda: pair.way(pair.one, pair.two), "the route is ours")
    assert pair.one.status()["warnings"] == []


def test_a_node_behind_a_router_is_refused_with_the_reason(pair: Pair) -> None:
    router = add_router(pair.topology)
    far = pair.overlay.daemon(add_far_node(pair.topology, router, 3))
    wait_until(lambda: pair.one.status()["skipped_peers"], "it is skipped")
    skipped, = pair.one.status()["skipped_peers"]
    assert skipped["lease"] == f"{far.subnet()}".replace("/", "-")
    assert skipped["reason"] == (f"PublicIP {far.node.address} is reached by way of {ROUTER}: host-gw needs all nodes "
                                 "on one link")
    assert len(far.status()["skipped_peers"]) == 2
    assert list(direct(pair.one)) == [f"{pair.two.subnet()}"]


def test_both_families_have_routes(topology: MakeTopology, tmp_path: Path) -> None:
    require_namespaces()
    nodes = topology(2)
    add_router(nodes)
    overlay = Overlay(tmp_path, {"Type": "host-gw"}, dual=True)
    one, two = (overlay.daemon(node) for node in nodes.nodes)
    pods = [overlay.pod(daemon, 1500, dual=True) for daemon in (one, two)]
    ways = {f"{two.subnet()}": f"{two.node.address}", f"{two.ipv6_subnet()}": f"{two.node.address6}"}
    wait_until(lambda: direct(one) == ways and len(direct(two)) == 2, "both have both routes")
    for address in (pods[1].address, pods[1].address6):
        assert address
        assert pods[0].ping(address).returncode == 0
    assert read_subnet_env(one.home / "subnet.env").mtu == 1500
    assert (one.status()["skipped_peers"], one.status()["warnings"]) == ([], [])


@pytest.mark.parametrize("kind", ["host-gw", "alloc"])
def test_ipv6_alone(topology: MakeTopology, tmp_path: Path, kind: str) -> None:
    require_namespaces()
    nodes = topology(2)
    add_router(nodes)
    overlay = Overlay(tmp_path, {"Type": kind}, dual=True, ipv4=False)
    one, two = (overlay.daemon(node) for node in nodes.nodes)
    assert one.ipv6_subnet() != two.ipv6_subnet()
    text = (one.home / "subnet.env").read_text()
    assert "FLANNEL_SUBNET" not in text
    assert "FLANNEL_MTU=1500\n" in text
    if kind == "host-gw":
        pods = [daemon.node.add_pod(daemon.ipv6_subnet(), 1500) for daemon in (one, two)]
        wait_until(lambda: direct(one) and direct(two), "both have routes")
        assert direct(one) == {f"{two.ipv6_subnet()}": f"{two.node.address6}"}
        assert pods[0].ping(pods[1].address, "-M", "do", "-s", "1452").returncode == 0
    assert (one.status()["skipped_peers"], one.status()["warnings"]) == ([], [])


def test_alloc_leases_a_subnet_and_nothing_else(topology: MakeTopology, tmp_path: Path) -> None:
    require_namespaces()
    overlay = Overlay(tmp_path, {"Type": "alloc"})
    one, two = (overlay.daemon(node) for node in topology(2).nodes)
    assert one.subnet() != two.subnet()
    assert read_subnet_env(one.home / "subnet.env").mtu == 1500
    status = one.status()
    assert (status["backend"], status["devices"], status["skipped_peers"], status["warnings"]) == ("alloc", [], [], [])
    assert one.node.run("ip", "route", "show", "proto", "82").stdout == ""


@pytest.mark.parametrize("backend", [{"Type": "host-gw"}, {"Type": "vxlan", "DirectRouting": True}])
def test_no_lease_of_a_stranger_makes_this_node_unready(topology: MakeTopology, tmp_path: Path,
                                                        backend: dict[str, Any]) -> None:
    """Public addresses that the kernel takes for no gateway: of a link's broadcasts, of this host, in the overlay."""
    require_tun()
    node = topology(1).nodes[0]
    node.ip("link add br9 type bridge", "addr add 192.0.2.9/32 dev br9")
    overlay = Overlay(tmp_path, backend)
    one = overlay.daemon(node)
    registry = open_registry(overlay.registry)
    for number, address in enumerate(("192.0.2.255", "192.0.2.9", "10.5.222.1", "192.0.2.77"), 200):
        value = {"PublicIP": address, "PublicIPv6": None, "BackendType": backend["Type"],
                 "BackendData": {"VNI": 1, "VtepMAC": f"0a:5e:00:53:00:{number:x}"}}
        registry.create(f"10.5.{number}.0-24", json.dumps(value).encode(), 600, registry.snapshot().revision)
    registry.close()
    wait_until(lambda: direct(one) == {"10.5.203.0/24": "192.0.2.77"}, "the last one, which is a node, is routed to")
    assert one.status()["warnings"] == []
    told = [row["lease"] for row in one.status()["skipped_peers"]]
    assert told == ([f"10.5.{number}.0-24" for number in (200, 201, 202)] if backend["Type"] == "host-gw" else [])
