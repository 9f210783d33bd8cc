"""Choosing the external interface: flannel's order, its preferences, and a line that says what there was."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any

import pytest

from flannel_udp.errors import UnderlayError
from flannel_udp.link import Address, Link, LinkAddress, Route
from flannel_udp.options import NodeOptions
from flannel_udp.underlay import find_external_interface

LO, ETH0, ETH1, DEAD = (Link(1, "lo", 65536, True), Link(2, "eth0", 1500, True), Link(3, "eth1", 9000, True),
                        Link(4, "dead", 0, True))
ADDRESSES = (
    LinkAddress(1, ip_interface("127.0.0.1/8")),
    LinkAddress(2, ip_interface("169.254.9.9/16")),
    LinkAddress(2, ip_interface("192.0.2.9/24"), permanent=False),
    LinkAddress(2, ip_interface("192.0.2.1/24")),
    LinkAddress(2, ip_interface("192.0.2.2/24")),
    LinkAddress(3, ip_interface("198.51.100.8/24"), deprecated=True),
    LinkAddress(3, ip_interface("198.51.100.7/24")),
    LinkAddress(4, ip_interface("203.0.113.1/24")),
    LinkAddress(2, ip_interface("fe80::1/64")),
    LinkAddress(2, ip_interface("2001:db8::77/64"), temporary=True),
    LinkAddress(2, ip_interface("2001:db8::1/64")),
    LinkAddress(3, ip_interface("fe80::2/64")),
)


class Host:
    """The links of a host that exists on paper."""

    def __init__(self, default: int | None = 2, default6: int | None = 2) -> None:
        self.default = {4: default, 6: default6}

    def links(self) -> list[Link]:
        return [LO, ETH0, ETH1, DEAD]

    def link(self, which: str | int) -> Link | None:
        return next((link for link in self.links() if which in (link.index, link.name)), None)

    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]:
        return [one for one in ADDRESSES if index in (None, one.index) and family in (None, one.ip.version)]

    def routes(self, family: int = 4) -> list[Route]:
        rest = [Route(IPv6Network("2001:db8::/64"), 3)] if family == 6 else []
        index = self.default[family]
        return rest + ([Route(None, index), Route(None, 3)] if index else [])

    def route_to(self, destination: Address) -> Route | None:
        return Route(None, 3, source=ip_address("198.51.100.7")) if destination.is_global else None


def choose(options: dict[str, Any]) -> tuple[str, str]:
    found = find_external_interface(replace(NodeOptions(), **options), Host())
    return found.name, str(found.address)


@pytest.mark.parametrize(("options", "name", "address"), [
    ({}, "eth0", "192.0.2.1"),
    ({"iface": ("eth1",)}, "eth1", "198.51.100.7"),
    ({"iface": ("192.0.2.2",)}, "eth0", "192.0.2.2"),
    ({"iface": ("none", "eth1", "eth0")}, "eth1", "198.51.100.7"),
    ({"iface": ("lo", "eth1")}, "eth1", "198.51.100.7"),
    ({"iface": ("127.0.0.1",)}, "lo", "127.0.0.1"),
    ({"iface": ("none",), "iface_regex": ("eth",)}, "eth0", "192.0.2.1"),
    ({"iface_regex": (r"^198\.51\.100\.",)}, "eth1", "198.51.100.7"),
    ({"iface_regex": (r"192\.0\.2\.9|eth1",)}, "eth0", "192.0.2.9"),
    ({"iface_regex": ("nothing", "h1$")}, "eth1", "198.51.100.7"),
    ({"iface_can_reach": "8.8.8.8"}, "eth1", "198.51.100.7"),
    ({"iface": ("none",), "iface_regex": ("nothing",), "iface_can_reach": "8.8.8.8"}, "eth1", "198.51.100.7"),
    ({"public_ip": IPv4Address("198.51.100.7")}, "eth1", "198.51.100.7"),
])
def test_choice(options: dict[str, object], name: str, address: str) -> None:
    assert choose(options) == (name, address)


@pytest.mark.parametrize(("options", "words"), [
    ({"iface": ("none",)}, "--iface none: no interface of that name among lo, eth0, eth1, dead"),
    ({"iface": ("192.0.2.200",)}, "--iface 192.0.2.200: no interface has it; there is lo 127.0.0.1, eth0 169.254.9.9"),
    ({"iface": ("lo",)}, "interface lo (--iface lo) has no usable IPv4 address"),
    ({"iface": ("dead",)}, "interface dead (--iface dead) tells no MTU"),
    ({"iface_regex": ("nothing",)}, "--iface-regex nothing: matches none of lo 127.0.0.1"),
    ({"iface_can_reach": "192.168.1.1"}, "--iface-can-reach 192.168.1.1: no route leads there from lo, eth0"),
    ({"public_ip": IPv4Address("8.8.4.4")}, "--public-ip 8.8.4.4: no interface has it (behind NAT name the interface"),
    ({"iface": ("one", "two")}, "--iface one: no interface of that name among lo, eth0, eth1, dead; --iface two:"),
])
def test_failure_says_what_there_was(options: dict[str, object], words: str) -> None:
    with pytest.raises(UnderlayError) as caught:
        choose(options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_default_route() -> None:
    with pytest.raises(UnderlayError, match="no IPv4 default route to find it by: name it with --iface, one of lo"):
        find_external_interface(NodeOptions(), Host(default=None))


def test_public_address_is_advertised_and_not_bound_to() -> None:
    options = NodeOptions(iface=("eth0",), public_ip=IPv4Address("203.0.113.77"))
    found = find_external_interface(options, Host())
    assert (str(found.address), str(found.public_address)) == ("192.0.2.1", "203.0.113.77")
    assert found.reason == "--iface eth0"


def test_both_families() -> None:
    found = find_external_interface(NodeOptions(), Host(), ipv6=True)
    assert found.address6 == found.public_address6 == IPv6Address("2001:db8::1")
    assert found.mtu == 1500
    with pytest.raises(UnderlayError, match=r"differ \(eth0 and eth1\): name one interface"):
        find_external_interface(NodeOptions(), Host(default6=3), ipv6=True)
    assert find_external_interface(NodeOptions(), Host(), ipv4=False, ipv6=True).address is None
