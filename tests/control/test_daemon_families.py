"""The daemon of two address families, of IPv6 alone, and of a backend that tunnels nothing; all around it on paper."""

import io
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import TunError
from flannel_udp.link import LinkAddress, LinkEvent, Network
from flannel_udp.subnet import OwnLeaseChanged, PeersChanged
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import wait_until
from .daemon_node import Node
from .fakes import lease_of

MakeNode = Callable[..., Node]
BOTH, SIX = (4, 6), (6,)
NETWORK, NETWORK6 = IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    def made(*words: Any) -> Node:  # noqa: ANN401 - Node's own
        return Node(tmp_path, monkeypatch, *words)

    return made


def status(node: Node) -> dict[str, Any]:
    return node.asked() or {}


def readdress(node: Node, address: str) -> None:
    """Exchange the interface's address of the family that this one is of."""
    fresh = LinkAddress(2, ip_interface(address))
    node.links.here = [one for one in node.links.here if (one.index, one.ip.version) != (2, fresh.ip.version)] + [fresh]
    node.links.post(LinkEvent("address", 2))


def test_each_family_has_a_device_and_peers_of_its_own(make: MakeNode, said: io.StringIO) -> None:
    node = make(BOTH)
    node.manager.peers = (lease_of(BOTH, 2, 2), lease_of((4,), 3, 3))
    with node.running():
        four, six = node.tunnels[4].plane, node.tunnels[6].plane
        assert four.own[:2] == ("10.5.1.0/24", "10.5.1.0")
        assert six.own[:2] == ("fd00:5:0:1::/64", "fd00:5:0:1::")
        assert four.published == {"10.5.2.0/24": "192.0.2.2:8285", "10.5.3.0/24": "192.0.2.3:8285"}
        assert six.published == {"fd00:5:0:2::/64": "2001:db8::2:8285"}
        told = status(node)
        assert [device["name"] for device in told["devices"]] == ["flannel0", "flannel-v6-0"]
        assert {peer["subnet"] for peer in told["peers"]} == {"10.5.2.0/24", "10.5.3.0/24", "fd00:5:0:2::/64"}
        assert told["skipped_peers"] == [{"lease": "10.5.3.0-24", "reason": "has no IPv6 subnet"}]
        assert told["external_interface"]["ipv6_address"] == "2001:db8::1"
        assert [row["family"] for row in told["offloads"]] == ["ipv4"] * 8 + ["ipv6"] * 8
        assert told["fib"].keys() == told["loops"].keys() == {"ipv4", "ipv6"}
        one = told["counters"]["out"]
        assert (one["packets"], one["packets_ipv4"], one["packets_ipv6"]) == (14, 7, 7)
        assert one["outcomes"] == {"sent": {"count": 10, "ipv4": 5, "ipv6": 5, "meaning": "passed"}}
        env = read_subnet_env(node.options.subnet_file)
        assert (env.subnet, env.ipv6_subnet, env.mtu) == (*lease_of(BOTH, 1, 1).subnets, 1452)
    assert "subnet=10.5.1.0/24,fd00:5:0:1::/64 device=flannel0,flannel-v6-0 mtu=1452 peers=2" in said.getvalue()
    assert "10.5.1.0-24&fd00:5:0:1::-64" in said.getvalue()


def test_ipv6_alone(make: MakeNode, said: io.StringIO) -> None:
    node = make(SIX)
    node.links.here = [one for one in node.links.here if one.ip.version == 6]
    node.manager.peers = (lease_of(SIX, 2, 2),)
    with node.running():
        assert node.tunnels[6].plane.published == {"fd00:5:0:2::/64": "2001:db8::2:8285"}
        assert node.links.routed == {NETWORK6: 30}
        assert status(node)["external_interface"]["address"] is None
        assert node.options.subnet_file.read_text().startswith("FLANNEL_IPV6_NETWORK=fd00:5::/48\n")
        assert [overlay.network for overlay in node.firewall.wanted[-1].overlays] == [NETWORK6]
        readdress(node, "2001:db8::77/64")
        wait_until(lambda: status(node)["lease"]["public_ipv6"] == "2001:db8::77", "peers are told")
        assert node.tunnels[6].plane.starts == 2
    assert "update 2001:db8::77" in node.manager.deeds
    assert 'before="2001:db8::1 on eth0"' in said.getvalue()


@pytest.mark.parametrize(("address", "starts"), [("192.0.2.77/24", (2, 1)), ("2001:db8::77/64", (1, 2))])
def test_another_address_of_one_family_leaves_the_other_in_peace(make: MakeNode, address: str,
                                                                 starts: tuple[int, int]) -> None:
    node = make(BOTH)
    with node.running():
        readdress(node, address)
        wait_until(lambda: [deed for deed in node.manager.deeds if deed.startswith("update")], "peers are told")
        told = status(node)["lease"]
        assert address.partition("/")[0] in (told["public_ip"], told["public_ipv6"])
        assert (node.tunnels[4].plane.starts, node.tunnels[6].plane.starts) == starts


def test_an_address_that_is_gone_is_named_whatever_its_family(make: MakeNode, said: io.StringIO) -> None:
    node = make(BOTH)
    with node.running():
        gone = node.links.here.pop(1)
        node.links.post(LinkEvent("address gone", 2))
        wait_until(lambda: "underlay address 2001:db8::1 is no longer on this host" in said.getvalue(), "it is said")
        node.links.here.append(gone)
        node.links.post(LinkEvent("address", 2))
        wait_until(lambda: not status(node)["warnings"], "it is back")


def test_a_family_without_an_address_does_not_hold_back_the_other(make: MakeNode) -> None:
    node = make(BOTH)
    with node.running():
        node.links.here.pop(1)
        readdress(node, "192.0.2.77/24")
        wait_until(lambda: status(node)["lease"]["public_ip"] == "192.0.2.77", "peers are told")
        assert status(node)["lease"]["public_ipv6"] == "2001:db8::1"
        assert (node.tunnels[4].plane.starts, node.tunnels[6].plane.starts) == (2, 1)


def test_what_breaks_one_family_leaves_the_other_whole(make: MakeNode) -> None:
    node = make(BOTH)
    node.manager.peers = (lease_of(BOTH, 2, 2),)
    with node.running():
        node.tunnels[6].refusals["open_device"] = TunError("cannot open")
        del node.links.devices[30]
        node.links.post(LinkEvent("link gone", 30, "flannel-v6-0"))
        wait_until(lambda: status(node)["warnings"] == ["no IPv6 packets pass: cannot open"], "it is said")
        assert [device["name"] for device in status(node)["devices"]] == ["flannel0"]
        assert node.daemon._condition.missing() == ["data path: no IPv6 packets pass: cannot open"]
        del node.tunnels[6].refusals["open_device"]
        wait_until(lambda: not status(node)["warnings"], "it is mended")
        assert (node.tunnels[4].plane.starts, node.tunnels[6].plane.starts) == (1, 2)
        assert node.tunnels[6].plane.published == {"fd00:5:0:2::/64": "2001:db8::2:8285"}


def test_a_loop_that_ended_is_of_its_own_family(make: MakeNode) -> None:
    node = make(BOTH)
    with node.running():
        node.tunnels[6].plane.on_exit("tun_to_udp6", OSError(77, "File descriptor in bad state"))
        wait_until(lambda: node.tunnels[6].plane.starts == 2, "it is started again")
        assert node.tunnels[4].plane.starts == 1


def taken(node: Node, network: Network) -> bool:
    return f"route {network} is taken by eth0" in str(status(node)["warnings"])


def test_rivals_of_both_families_are_told(make: MakeNode) -> None:
    node = make(BOTH)
    with node.running():
        for network in (NETWORK, NETWORK6):
            node.links.routed[network] = 2
        wait_until(lambda: taken(node, NETWORK) and taken(node, NETWORK6), "both are told")
        node.links.routed.clear()
        wait_until(lambda: status(node)["warnings"] == [], "it is well again")


def test_both_families_move_to_another_lease(make: MakeNode) -> None:
    node = make(BOTH)
    with node.running():
        node.manager.post(PeersChanged((lease_of(BOTH, 2, 2),), ()))
        node.manager.post(OwnLeaseChanged(lease_of(BOTH, 7, 1)))
        wait_until(lambda: node.env() == "10.5.7.0/24", "subnet.env tells it")
        assert node.tunnels[4].plane.own[0] == "10.5.7.0/24"
        assert node.tunnels[6].plane.own[:2] == ("fd00:5:0:7::/64", "fd00:5:0:7::")
        assert [device["address"] for device in status(node)["devices"]] == ["10.5.7.0/32", "fd00:5:0:7::/128"]


def test_a_backend_without_tunnels_has_a_lease_and_nothing_to_carry(make: MakeNode, said: io.StringIO) -> None:
    node = make((4,), ())
    node.manager.peers = (lease_of((4,), 2, 2),)
    with node.running():
        told = status(node)
        assert (told["devices"], told["peers"], told["warnings"], told["counters"]) == ([], [], [], {})
        assert node.daemon._condition.missing() == []
        assert node.daemon._condition.figures()["paths"] == []
        assert node.daemon._condition.line() == "subnet 10.5.1.0/24, 0 peers"
        assert read_subnet_env(node.options.subnet_file).mtu == 1500
        readdress(node, "192.0.2.77/24")
        wait_until(lambda: status(node)["lease"]["public_ip"] == "192.0.2.77", "peers are told")
        node.links.devices[2] = replace(node.links.devices[2], mtu=1400)
        node.links.post(LinkEvent("link", 2))
        wait_until(lambda: read_subnet_env(node.options.subnet_file).mtu == 1400, "the MTU is followed")
        node.links.here = [one for one in node.links.here if one.index != 2]
        node.links.post(LinkEvent("address gone", 2))
        wait_until(lambda: "192.0.2.77 is no longer on this host" in said.getvalue(), "its loss is told")
    assert "subnet=10.5.1.0/24 device=none mtu=1500 peers=0" in said.getvalue()
