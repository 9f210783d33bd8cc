"""Daemons whose underlay changes under them: the lease follows, peers follow, no restart, and ping goes on."""

from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import require_tun, wait_until
from .node_daemon import Daemon
from .topology import Topology, join

OTHER = IPv4Network("198.51.100.0/24")


@pytest.fixture
def pair(topology: Callable[..., Topology], tmp_path: Path) -> tuple[Topology, Daemon, Daemon]:
    """Two nodes that know each other, with a pod each; their underlay is that of the default route."""
    require_tun()
    url = f"sqlite://{tmp_path}/registry.db"
    with closing(open_registry(url)) as opened:
        opened.write_config('{"Network": "10.5.0.0/16"}')
    made = topology(2)
    one, two = (Daemon(node, tmp_path, url) for node in made.nodes)
    for daemon in (one, two):
        wait_until(daemon.ready, "it is ready")
        daemon.node.add_pod(daemon.subnet())
    for daemon in (one, two):
        wait_until(lambda daemon=daemon: daemon.status()["peers"], "it has a peer")  # type: ignore[misc]
    assert reached(one, two)
    return made, one, two


def reached(one: Daemon, two: Daemon) -> bool:
    """Whether packets pass both ways, each as the first of its kind."""
    return all(here.node.pods[0].ping(there.node.pods[0].address, "-W", "1").returncode == 0
               for here, there in ((one, two), (two, one)))


def underlay_of_peer(daemon: Daemon) -> str:
    peer, = daemon.status()["peers"]
    return str(peer["underlay"])


def test_another_address_of_the_interface(pair: tuple[Topology, Daemon, Daemon]) -> None:
    _, one, two = pair
    subnet, device = one.subnet(), one.status()["devices"]
    one.node.ip("addr del 192.0.2.1/24 dev eth0", "addr add 192.0.2.77/24 dev eth0",
                "route add default via 192.0.2.254")
    wait_until(lambda: underlay_of_peer(two) == "192.0.2.77", "the peer follows")
    wait_until(lambda: reached(one, two), "ping goes on")
    assert (one.subnet(), one.status()["devices"]) == (subnet, device)
    assert one.status()["lease"]["public_ip"] == "192.0.2.77"
    assert (one.status()["warnings"], one.log().count("lease acquired")) == ([], 1)
    assert "data path broken" not in one.log()


def test_the_default_route_moves_to_another_interface(pair: tuple[Topology, Daemon, Daemon]) -> None:
    made, one, two = pair
    join(one.node, "eth1", made.underlay, "underlay", "second", 1500)
    one.node.ip(f"addr add {OTHER[1]}/24 dev eth1")
    two.node.ip(f"addr add {OTHER[2]}/24 dev eth0")
    one.node.ip(f"route replace default via {OTHER[254]} dev eth1")
    wait_until(lambda: underlay_of_peer(two) == str(OTHER[1]), "the peer follows")
    wait_until(lambda: reached(one, two), "ping goes on")
    assert one.status()["external_interface"]["name"] == "eth1"
    one.node.ip("route replace default via 192.0.2.254 dev eth0")
    wait_until(lambda: underlay_of_peer(two) == "192.0.2.1", "the peer follows back")
    wait_until(lambda: reached(one, two), "ping goes on")


def test_another_mtu_of_the_interface(pair: tuple[Topology, Daemon, Daemon]) -> None:
    _, one, two = pair
    one.node.ip("link set eth0 mtu 1400")
    wait_until(lambda: read_subnet_env(one.home / "subnet.env").mtu == 1372, "subnet.env tells it")
    device, = one.status()["devices"]
    assert device["mtu"] == 1372
    assert "mtu 1372" in one.node.run("ip", "link", "show", device["name"]).stdout
    # The pods' own MTU is 1472 still: what is too big for the device is told to the sender, and arrives in fragments.
    assert one.node.pods[0].ping(two.node.pods[0].address, "-M", "do", "-s", "1400").returncode != 0
    assert one.node.pods[0].ping(two.node.pods[0].address, "-M", "do", "-s", "1344").returncode == 0
    assert "data path broken" not in one.log()


def test_an_address_that_is_gone_for_a_while(pair: tuple[Topology, Daemon, Daemon]) -> None:
    _, one, two = pair
    one.node.ip("addr del 192.0.2.1/24 dev eth0")
    wait_until(lambda: "is no longer on this host" in str(one.status()["warnings"]), "it is said")
    one.node.ip("addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.254")
    wait_until(lambda: reached(one, two) and not one.status()["warnings"], "ping goes on")
    assert underlay_of_peer(two) == "192.0.2.1"
    assert "external interface changed" not in one.log()

