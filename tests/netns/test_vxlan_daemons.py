"""Daemons of the vxlan backend: both families, each in its own tunnel, and what their leases and devices look like."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import require_commands, require_tun, wait_until
from .node_daemon import Daemon
from .routed import Overlay, add_router
from .topology import Topology
from .transfer import transfer

MakeTopology = Callable[..., Topology]
SIZE = 16 << 20


@pytest.fixture(params=["tun", "tap"])
def pair(request: pytest.FixtureRequest, topology: MakeTopology, tmp_path: Path) -> list[Daemon]:
    """Two daemons with a pod each, the first with a device of either kind, the second with a TUN."""
    require_tun()
    require_commands("ip", "ping")
    nodes = topology(2)
    add_router(nodes)
    overlay = Overlay(tmp_path, {"Type": "vxlan", "VNI": 7}, dual=True)
    daemons = [overlay.daemon(nodes.nodes[0], f"--device={request.param}"), overlay.daemon(nodes.nodes[1])]
    for daemon in daemons:
        overlay.pod(daemon, 1430, dual=True)
        wait_until(lambda daemon=daemon: len(daemon.status()["peers"]) == 2, "it has its peers")  # type: ignore[misc]
    return daemons


def macs(daemon: Daemon) -> dict[str, str]:
    """Of the devices by name, as the kernel has them."""
    told = json.loads(daemon.node.run("ip", "-json", "link").stdout)
    return {link["ifname"]: link["address"] for link in told if link["ifname"].startswith("flannel")}


def test_both_families_pass(pair: list[Daemon]) -> None:
    one, two = pair
    here, there = one.node.pods[0], two.node.pods[0]
    assert there.address6
    assert "ttl=62" in here.ping(there.address, count=2).stdout  # the kernels' hops alone: the tunnel takes none
    assert "ttl=62" in here.ping(there.address6, count=2).stdout
    for address in (there.address, there.address6):
        transfer(here, there, address, SIZE)
    for subnet in (two.subnet(), two.ipv6_subnet()):  # a peer's kernel has it as its gateway
        assert one.node.ping(subnet.network_address).returncode == 0
    assert one.status()["warnings"] == []
    for daemon in pair:
        wait_until(daemon.law_holds, "the counters' law holds")


def test_devices_mtu_and_lease_are_flannels(pair: list[Daemon]) -> None:
    one = pair[0]
    assert [(device["name"], device["mtu"], device["address"]) for device in one.status()["devices"]] == [
        ("flannel.7", 1450, f"{one.subnet().network_address}/32"),
        ("flannel-v6.7", 1430, f"{one.ipv6_subnet().network_address}/128")]
    assert read_subnet_env(one.home / "subnet.env").mtu == 1430
    if "--device=tap" in one.argv:
        assert macs(one) == json.loads((one.home / "state/vtep.json").read_text())
    kept = json.loads((one.home / "state/vtep.json").read_text())
    with closing(open_registry(f"sqlite://{one.home.parent}/registry.db")) as registry:
        entry, = (entry for entry in registry.snapshot().entries if f'"{one.node.address}"'.encode() in entry.value)
    assert entry.value.decode() == (
        f'{{"PublicIP":"{one.node.address}","PublicIPv6":"{one.node.address6}","BackendType":"vxlan",'
        f'"BackendData":{{"VNI":7,"VtepMAC":"{kept["flannel.7"]}"}},'
        f'"BackendV6Data":{{"VNI":7,"VtepMAC":"{kept["flannel-v6.7"]}"}}}}')


def test_ipv6_alone(topology: MakeTopology, tmp_path: Path) -> None:
    require_tun()
    nodes = topology(2)
    add_router(nodes)
    overlay = Overlay(tmp_path, {"Type": "vxlan"}, dual=True, ipv4=False)
    one, two = (overlay.daemon(node) for node in nodes.nodes)
    wait_until(lambda: one.status()["peers"] and two.status()["peers"], "they know each other")
    there = two.ipv6_subnet().network_address
    assert one.node.ping(there, "-M", "do", "-s", "1382").returncode == 0
    transfer(one.node, two.node, there, SIZE)
    assert [device["name"] for device in one.status()["devices"]] == ["flannel-v6.1"]
    assert read_subnet_env(one.home / "subnet.env").mtu == 1430
    assert one.status()["warnings"] == []


def test_a_peer_with_another_mac_is_followed(pair: list[Daemon]) -> None:
    one, two = pair
    here, there = one.node.pods[0], two.node.pods[0]
    two.process.terminate()
    two.process.wait(10)
    (two.home / "state/vtep.json").write_text(json.dumps({"flannel.7": "0a:5e:00:53:00:77",
                                                          "flannel-v6.7": "0a:5e:00:53:00:78"}))
    two.start()
    wait_until(two.ready, "it is ready again")
    wait_until(lambda: here.ping(there.address, "-W", "1").returncode == 0, "the new MAC is known")
