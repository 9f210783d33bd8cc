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
        self.overlay = Overlay(root, {"Type": "vxlan", "DirectRouting": True})
        far = add_far_node(topology, self.router, 3)
        self.daemons = [self.overlay.daemon(node) for node in (*topology.nodes, far)]
        self.pods = [self.overlay.pod(daemon, 1450) for daemon in self.daemons]
        self.one, self.two, self.far = self.daemons

    def goes_direct(self, one: Daemon, other: Daemon) -> bool:
        """Whether the kernel routes past the tunnel."""
        return direct(one).get(f"{other.subnet()}") == str(other.node.address)

    def in_tunnel(self, daemon: Daemon, peer: Daemon) -> int:
        """Packets that the tunnel took to a peer."""
        rows = {row["subnet"]: row for row in daemon.status()["peers"]}
        return int(rows[f"{peer.subnet()}"]["packets_out"])


@pytest.fixture
def three(topology: MakeTopology, tmp_path: Path) -> Three:
    require_tun()
    require_commands("ip", "ping")
    return Three(topology(2), tmp_path)


def test_who_is_on_the_link_gets_a_route_and_who_is_not_the_tunnel(three: Three) -> None:
    one, two, far = three.daemons
    wait_until(lambda: three.goes_direct(one, two) and three.goes_direct(two, one), "both have routes")
    assert not three.goes_direct(one, far)
    for pod in three.pods[1:]:
        assert three.pods[0].ping(pod.address, "-M", "do", "-s", "1422", count=3).returncode == 0
    assert three.in_tunnel(one, two) == 0
    assert three.in_tunnel(one, far) >= 3
    assert one.status()["skipped_peers"] == []


def test_a_peer_that_moves_behind_a_router_goes_to_the_tunnel_and_back(three: Three) -> None:
    one, two, _ = three.daemons
    wait_until(lambda: three.goes_direct(one, two), "the route stands")
    one.node.ip(f"route add {two.node.address}/32 via {ROUTER}")
    wait_until(lambda: not three.goes_direct(one, two), "the route went")
    assert three.pods[0].ping(three.pods[1].address, count=3).returncode == 0
    assert three.in_tunnel(one, two) >= 3
    one.node.ip(f"route del {two.node.address}/32")
    wait_until(lambda: three.goes_direct(one, two), "the route is back")
    before = three.in_tunnel(one, two)
    assert three.pods[0].ping(three.pods[1].address, count=3).returncode == 0
    assert three.in_tunnel(one, two) == before
