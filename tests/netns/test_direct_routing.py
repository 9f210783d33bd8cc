"""vxlan with DirectRouting, real daemons: plain routes on the link, the tunnel past a router, and moves of a peer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import require_commands, require_tun, wait_until
from .node_daemon import Daemon
from .routed import ROUTER, Overlay, add_far_node, add_router, direct
from .topology import Topology

MakeTopology = Callable[..., Topology]


class Three:
    """Two vxlan nodes on one link, a third behind a router; a pod on each."""

    def __init__(self, topology: Topology, root: Path) -> None:
        self.router = add_router(topology)
        self.overlay = Overlay(root, {"Type": "vxlan", "DirectRouting": True}, dual=True)
        far = add_far_node(topology, self.router, 3)
        self.daemons = [self.overlay.daemon(node) for node in (*topology.nodes, far)]
        self.pods = [self.overlay.pod(daemon, 1430, dual=True) for daemon in self.daemons]
        self.one, self.two, self.far = self.daemons

    def goes_direct(self, one: Daemon, other: Daemon) -> bool:
        """Whether the kernel routes past the tunnel, in both families."""
        ways = direct(one)
        return (ways.get(f"{other.subnet()}") == str(other.node.address)
                and ways.get(f"{other.ipv6_subnet()}") == str(other.node.address6))

    def in_tunnel(self, daemon: Daemon, peer: Daemon) -> list[int]:
        """Packets that the tunnels took to a peer, IPv4 and IPv6."""
        rows = {row["subnet"]: row for row in daemon.status()["peers"]}
        return [int(rows[f"{subnet}"]["packets_out"]) for subnet in (peer.subnet(), peer.ipv6_subnet())]


@pytest.fixture
def three(topology: MakeTopology, tmp_path: Path) -> Three:
    require_tun()
    require_commands("ip", "ping")
    return Three(topology(2), tmp_path)


def test_who_is_on_the_link_gets_a_route_and_who_is_not_the_tunnel(three: Three) -> None:
    one, two, far = three.daemons
    wait_until(lambda: three.goes_direct(one, two) and three.goes_direct(two, one), "both have routes")
    assert not three.goes_direct(one, far)
    assert f"{far.ipv6_subnet()}" not in direct(one)
    for pod in three.pods[1:]:
        assert pod.address6
        assert three.pods[0].ping(pod.address, "-M", "do", "-s", "1402", count=3).returncode == 0
        assert three.pods[0].ping(pod.address6, "-M", "do", "-s", "1382", count=3).returncode == 0
    assert three.in_tunnel(one, two) == [0, 0]
    assert min(three.in_tunnel(one, far)) >= 3
    assert one.status()["skipped_peers"] == []


def test_a_peer_that_moves_behind_a_router_goes_to_the_tunnel_and_back(three: Three) -> None:
    one, two, _ = three.daemons
    wait_until(lambda: three.goes_direct(one, two), "the route stands")
    one.node.ip(f"route add {two.node.address}/32 via {ROUTER}")
    wait_until(lambda: f"{two.subnet()}" not in direct(one), "the route went")
    assert f"{two.ipv6_subnet()}" in direct(one)
    assert three.pods[0].ping(three.pods[1].address, count=3).returncode == 0
    assert three.in_tunnel(one, two)[0] >= 3
    one.node.ip(f"route del {two.node.address}/32")
    wait_until(lambda: three.goes_direct(one, two), "the route is back")
    before = three.in_tunnel(one, two)
    assert three.pods[0].ping(three.pods[1].address, count=3).returncode == 0
    assert three.in_tunnel(one, two) == before
