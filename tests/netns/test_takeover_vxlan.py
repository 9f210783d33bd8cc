"""vxlan in the place of flannel's kernel device, which `ip` makes here as flannel does: name, port, MAC, routes."""

import json
import signal
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry

from ..conftest import require_commands, require_tun, wait_until
from .node_daemon import Daemon, flags
from .routed import Overlay, add_router
from .topology import Node, Topology

MakeTopology = Callable[..., Topology]
MAC, MAC6, PEER_MAC = "0a:5e:00:53:00:01", "0a:5e:00:53:00:06", "0a:5e:00:53:00:02"
PEER = IPv4Network("10.5.99.0/24")


@pytest.fixture
def node(topology: MakeTopology) -> Node:
    require_tun()
    require_commands("ip")
    return topology(1).nodes[0]


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay(tmp_path, {"Type": "vxlan"})


def add_flannels(node: Node, address: str = "10.5.7.0/32", name: str = "flannel.1", vni: int = 1) -> None:
    """The device, address and a peer's entries as flannel makes them."""
    node.ip(f"link add {name} address {MAC} type vxlan id {vni} dev eth0 local {node.address} dstport 8472 nolearning",
            f"addr add {address} dev {name}", f"link set {name} up",
            f"neigh replace {PEER[0]} lladdr {PEER_MAC} dev {name} nud permanent",
            f"route add {PEER} via {PEER[0]} dev {name} onlink")
    node.run("bridge", "fdb", "append", PEER_MAC, "dev", name, "dst", "192.0.2.9", "self", "permanent")


def kind(node: Node, name: str = "flannel.1") -> str:
    """What the kernel calls the device's type; empty where there is none."""
    told = node.run("ip", "-details", "-json", "link", "show", "dev", name, check=False).stdout
    return str(json.loads(told)[0].get("linkinfo", {}).get("info_kind", "")) if told else ""


def lease_mac(overlay: Overlay) -> str:
    """The VtepMAC that the registry's only lease tells."""
    opened = open_registry(overlay.registry)
    entry, = opened.snapshot().entries
    opened.close()
    return str(json.loads(entry.value)["BackendData"]["VtepMAC"])


def refused(overlay: Overlay, node: Node, *options: str) -> str:
    """What a start that is refused says."""
    daemon = Daemon(node, overlay.root, overlay.registry, "", *options)
    assert daemon.process.wait(20) == 1
    line, = (line for line in daemon.log().splitlines() if "level=error" in line)
    return line


def test_its_device_is_replaced_and_its_mac_goes_on(node: Node, overlay: Overlay) -> None:
    add_flannels(node)
    daemon = overlay.daemon(node)
    assert kind(node) == "tun"
    assert lease_mac(overlay) == MAC
    log = daemon.log()
    adopted, held, removed = (log.index(words) for words in (
        "going on with the VtepMACs of flannel's devices", "lease acquired", "removed what flannel left"))
    assert adopted < held < removed
    assert f"{PEER}" not in node.run("ip", "route").stdout
    assert daemon.status()["warnings"] == []


def test_both_families_devices_are_replaced(topology: MakeTopology, tmp_path: Path) -> None:
    require_tun()
    nodes = topology(1)
    add_router(nodes)
    node, overlay = nodes.nodes[0], Overlay(tmp_path, {"Type": "vxlan"}, dual=True)
    add_flannels(node)
    node.ip(f"link add flannel-v6.1 address {MAC6} type vxlan id 1 dev eth0 local {node.address6} dstport 8472",
            "addr add fd00:5:0:7::/128 dev flannel-v6.1", "link set flannel-v6.1 up")
    daemon = overlay.daemon(node)
    assert (kind(node), kind(node, "flannel-v6.1")) == ("tun", "tun")
    assert json.loads((daemon.home / "state/vtep.json").read_text()) == {"flannel.1": MAC, "flannel-v6.1": MAC6}
    assert daemon.status()["warnings"] == []


def test_the_mac_stays_over_restarts_and_comes_back_from_the_lease(node: Node, overlay: Overlay) -> None:
    daemon = overlay.daemon(node)
    mac = lease_mac(overlay)
    for lost in (False, True):
        daemon.end(signal.SIGTERM)
        assert kind(node) == ""
        if lost:
            (daemon.home / "state/vtep.json").unlink()
        daemon.start()
        wait_until(daemon.ready, "it is ready again")
        assert lease_mac(overlay) == mac


def test_no_takeover_refuses_and_changes_nothing(node: Node, overlay: Overlay) -> None:
    add_flannels(node)
    before = node.run("ip", "address").stdout + node.run("ip", "route").stdout
    line = refused(overlay, node, "--no-takeover")
    assert "flannel's vxlan device flannel.1 holds UDP port 8472" in line
    assert "ip link del flannel.1" in line
    assert node.run("ip", "address").stdout + node.run("ip", "route").stdout == before


def test_a_host_without_tun_keeps_flannels_device(node: Node, overlay: Overlay) -> None:
    """It carries the pods' packets, and nothing here would."""
    require_commands("mount", "unshare")
    add_flannels(node)
    script = 'mount -t tmpfs tmpfs /dev/net && exec "$@"'
    done = node.run("unshare", "--mount", "sh", "-c", script, "sh", sys.executable,
                    "-m", "flannel_udp.cli", "run", *flags(overlay.root / "one", overlay.registry), check=False)
    assert done.returncode == 1, done.stderr
    assert "there is no /dev/net/tun" in done.stderr
    assert kind(node) == "vxlan"


@pytest.mark.parametrize(("name", "address", "complaint"), [
    ("flannel.1", "10.9.7.0/32", "flannel.1, as this node's own device is to be called, is a vxlan device of others"),
    ("flannel.2", "10.9.7.0/32", "UDP port 8472 of 192.0.2.1 is in use"),
    ("vxlan0", "10.5.7.0/32", "ip -d link show type vxlan"),
])
def test_a_device_of_others_is_left_alone(node: Node, overlay: Overlay, name: str, address: str,
                                          complaint: str) -> None:
    node.ip(f"link add {name} type vxlan id 5 dev eth0 local {node.address} dstport 8472",
            f"addr add {address} dev {name}", f"link set {name} up")
    assert complaint in refused(overlay, node)
    assert kind(node, name) == "vxlan"


def test_an_idle_device_of_flannels_is_replaced_too(node: Node, overlay: Overlay) -> None:
    """flannel makes it before it has a lease, and may end in between."""
    node.ip(f"link add flannel.1 address {MAC} type vxlan id 1 dev eth0 local {node.address} dstport 8472",
            "link set flannel.1 up")
    overlay.daemon(node)
    assert kind(node) == "tun"
    assert lease_mac(overlay) == MAC


def test_cleanup_forgets_the_mac(node: Node, overlay: Overlay) -> None:
    daemon = overlay.daemon(node)
    daemon.end(signal.SIGTERM)
    said = node.run(sys.executable, "-m", "flannel_udp.cli", "cleanup", *flags(daemon.home, "")).stdout
    assert f"file {daemon.home}/state/vtep.json" in said
    assert daemon.left() == {"subnet.env"}


def test_the_way_back_is_free(node: Node, overlay: Overlay) -> None:
    daemon = overlay.daemon(node, "--ip-blackhole-route")
    assert daemon.end(signal.SIGTERM) == 0
    assert node.run("ip", "route", "show", "proto", "82").stdout == ""
    add_flannels(node)
    assert kind(node) == "vxlan"
