"""backend: what a udp lease says, where a peer's lease sends packets, and who is left out and named."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from flannel_udp import logs
from flannel_udp._dataplane import UDP_OVERHEAD_V4, UDP_OVERHEAD_V6, UDP_PORT
from flannel_udp.backend import BACKENDS, backend_of
from flannel_udp.backend.peers import NextHop, PeerRoutes
from flannel_udp.backend.udp import UdpBackend, UdpTunnel
from flannel_udp.config import parse_network_config
from flannel_udp.errors import ConfigError, LeaseError, UnderlayError
from flannel_udp.lease import Lease, LeaseAttrs, encode_attrs
from flannel_udp.link import Address, Network
from flannel_udp.options import NodeOptions
from flannel_udp.underlay import ExternalInterface

SIX = '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'
DUAL = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'
ETH0 = ExternalInterface("eth0", 2, 1500, IPv4Address("192.0.2.1"), None, IPv4Address("203.0.113.1"), None, "")


def made(text: str = '{"Network": "10.5.0.0/16"}', external: ExternalInterface = ETH0) -> UdpBackend:
    return UdpBackend(parse_network_config(text), external, NodeOptions())


def tunnel(text: str = '{"Network": "10.5.0.0/16"}') -> UdpTunnel:
    return made(text).tunnels[0]


IPV6 = replace(ETH0, address6=IPv6Address("2001:db8::1"), public_address6=IPv6Address("2001:db8::cafe"))


def lease(subnet: str, public_ip: str | None = "192.0.2.2", backend_type: str = "") -> Lease:
    attrs = LeaseAttrs(IPv4Address(public_ip) if public_ip else None, backend_type=backend_type)
    return Lease(IPv4Network(subnet), None, attrs, None, 1)


def test_a_lease_says_what_flannels_does() -> None:
    assert encode_attrs(made().attrs()) == b'{"PublicIP":"203.0.113.1","PublicIPv6":null}'


def lease6(public_ipv6: str | None) -> Lease:
    attrs = LeaseAttrs(None, IPv6Address(public_ipv6) if public_ipv6 else None)
    return Lease(None, IPv6Network("fd00:5:0:3::/64"), attrs, None, 1)


def test_ipv6_is_carried_in_the_same_way_where_it_is_enabled() -> None:
    dual, only = made(DUAL, IPV6), made(SIX, replace(IPV6, address=None, public_address=None))
    assert encode_attrs(dual.attrs()) == b'{"PublicIP":"203.0.113.1","PublicIPv6":"2001:db8::cafe"}'
    assert encode_attrs(only.attrs()) == b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::cafe"}'
    assert [tunnel.family for tunnel in (*dual.tunnels, *only.tunnels)] == [4, 6, 6]
    assert [tunnel.mtu for tunnel in dual.tunnels] == [1500 - UDP_OVERHEAD_V4, 1500 - UDP_OVERHEAD_V6]
    assert dual.mtu == only.mtu == 1500 - UDP_OVERHEAD_V6
    six = only.tunnels[0]
    assert six.tunnel(lease6("2001:db8::2")) == IPv6Interface("fd00:5:0:3::/128")
    hop = NextHop(IPv6Network("fd00:5:0:3::/64"), IPv6Address("2001:db8::2"), UDP_PORT)
    assert six.next_hop(lease6("2001:db8::2")) == hop


@pytest.mark.parametrize(("peer", "reason"), [
    (lease6(None), "tells no PublicIPv6"),
    (lease6("fe80::1"), "PublicIPv6 fe80::1 is not the address of one host"),
    (lease6("ff02::1"), "PublicIPv6 ff02::1 is not the address of one host"),
    (lease6("::1"), "PublicIPv6 ::1 is not the address of one host"),
    (lease("10.5.3.0/24"), "has no IPv6 subnet"),
])
def test_who_cannot_be_reached_over_ipv6_is_refused_with_the_reason(peer: Lease, reason: str) -> None:
    with pytest.raises(LeaseError, match=f"^{reason}$"):
        made(SIX, IPV6).tunnels[0].next_hop(peer)


def test_an_interface_that_will_not_do_for_ipv6_is_refused() -> None:
    with pytest.raises(UnderlayError, match=r"eth0 has no IPv6 address$"):
        made(DUAL)
    with pytest.raises(UnderlayError, match="eth0 has no IPv6 address but fe80::1, which is good for one link alone"):
        made(DUAL, replace(IPV6, address6=IPv6Address("fe80::1")))
    with pytest.raises(UnderlayError, match="eth0 has MTU 1327; udp over IPv6 needs 1328"):
        made(DUAL, replace(IPV6, mtu=1327))
    assert made(DUAL, replace(IPV6, mtu=1328)).mtu == 1280


@pytest.mark.parametrize(("text", "mtu", "expected"), [
    ('{"Network": "10.5.0.0/16"}', 1500, 1472), ('{"Network": "10.5.0.0/16"}', 9000, 8972),
    ('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "MTU": 1400}}', 1500, 1400 - UDP_OVERHEAD_V4),
])
def test_mtu(text: str, mtu: int, expected: int) -> None:
    assert made(text, replace(ETH0, mtu=mtu)).mtu == expected


def test_ports() -> None:
    assert tunnel().port == UDP_PORT
    assert tunnel('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 7890}}').port == 7890


def test_an_interface_that_will_not_do_is_refused() -> None:
    with pytest.raises(UnderlayError, match="eth0 has no IPv4 address"):
        made(external=replace(ETH0, address=None))
    with pytest.raises(UnderlayError, match="eth0 has MTU 90; udp over IPv4 needs 96"):
        made(external=replace(ETH0, mtu=90))


def test_tunnel_address_is_the_subnets_own_and_alone() -> None:
    assert tunnel().tunnel(lease("10.5.3.0/24")) == IPv4Interface("10.5.3.0/32")


def test_a_peer_is_reached_at_its_public_address_and_our_port() -> None:
    hop = NextHop(IPv4Network("10.5.3.0/24"), IPv4Address("192.0.2.2"), UDP_PORT)
    assert tunnel().next_hop(lease("10.5.3.0/24")) == hop
    assert tunnel().next_hop(lease("10.5.3.0/24", backend_type="udp")) == hop


@pytest.mark.parametrize(("peer", "reason"), [
    (lease("10.5.3.0/24", backend_type="vxlan"), "is a node of the vxlan backend, which does not understand udp"),
    (lease("10.5.3.0/24", None), "tells no PublicIP"),
    (lease("10.5.3.0/24", "224.0.0.1"), "PublicIP 224.0.0.1 is not the address of one host"),
    (lease("10.5.3.0/24", "127.0.0.1"), "PublicIP 127.0.0.1 is not the address of one host"),
    (lease("10.5.3.0/24", "255.255.255.255"), "PublicIP 255.255.255.255 is not the address of one host"),
    (Lease(None, IPv6Network("fd00::/64"), LeaseAttrs(IPv4Address("192.0.2.2")), None, 1), "has no IPv4 subnet"),
])
def test_who_cannot_be_reached_is_refused_with_the_reason(peer: Lease, reason: str) -> None:
    with pytest.raises(LeaseError, match=f"^{reason}$"):
        tunnel().next_hop(peer)


def test_the_table() -> None:
    assert backend_of(parse_network_config('{"Network": "10.5.0.0/16"}')) is UdpBackend is BACKENDS["udp"]
    with pytest.raises(ConfigError, match=r'Backend\.Type "ipip": this program carries udp, vxlan, host-gw, alloc'):
        backend_of(parse_network_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "ipip"}}'))


class Table:
    """Of a data plane the routes alone."""

    def __init__(self, own: str = "10.5.1.0/24") -> None:
        self.own = IPv4Network(own)
        self.routes: dict[Network, Address] = {}
        self.told = 0

    def set_peer(self, subnet: Network, underlay: Address, port: int, coat: bytes = b"") -> None:
        assert (port, coat) == (UDP_PORT, b"")
        if subnet == self.own:
            raise LeaseError(f"{subnet} is this node's own subnet")
        self.routes[subnet] = underlay
        self.told += 1

    def delete_peer(self, subnet: Network) -> None:
        del self.routes[subnet]


def routed(table: Table) -> dict[str, str]:
    return {str(subnet): str(underlay) for subnet, underlay in table.routes.items()}


def peers(table: Table) -> PeerRoutes:
    return PeerRoutes(tunnel(), table)  # type: ignore[arg-type]


def test_peers_come_move_and_go() -> None:
    table = Table()
    routes = peers(table)
    routes.reset([lease("10.5.2.0/24"), lease("10.5.3.0/24", "192.0.2.3")])
    assert routed(table) == {"10.5.2.0/24": "192.0.2.2", "10.5.3.0/24": "192.0.2.3"}
    routes.change([lease("10.5.2.0/24", "192.0.2.9")], [lease("10.5.3.0/24")])
    assert routed(table) == {"10.5.2.0/24": "192.0.2.9"}
    routes.reset([lease("10.5.4.0/24", "192.0.2.4")])
    assert routed(table) == {"10.5.4.0/24": "192.0.2.4"}


def test_others_backends_are_left_out_and_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(0)
    table = Table()
    routes = peers(table)
    for _ in range(3):
        routes.change([lease("10.5.2.0/24", backend_type="vxlan"), lease("10.5.3.0/24", "192.0.2.3")], [])
    assert routed(table) == {"10.5.3.0/24": "192.0.2.3"}
    assert list(routes.skipped) == ["10.5.2.0-24"]
    line, = capfd.readouterr().err.splitlines()
    assert "lease=10.5.2.0-24" in line
    assert "vxlan" in line
    routes.change([lease("10.5.2.0/24", backend_type="udp")], [])
    assert routes.skipped == {}
    routes.change([lease("10.5.2.0/24", backend_type="vxlan")], [])
    assert "10.5.2.0/24" not in routed(table)
    routes.change([], [lease("10.5.2.0/24")])
    assert routes.skipped == {}


def test_what_was_skipped_is_tried_again_when_asked() -> None:
    table = Table()
    routes = peers(table)
    routes.change([lease("10.5.1.0/24")], [])
    assert routes.skipped == {"10.5.1.0-24": "10.5.1.0/24 is this node's own subnet"}
    table.own = IPv4Network("10.5.77.0/24")
    routes.retry()
    assert (routes.skipped, routed(table)) == ({}, {"10.5.1.0/24": "192.0.2.2"})


def test_what_was_skipped_is_tried_again_when_a_peer_goes() -> None:
    table = Table()
    routes = peers(table)
    routes.change([lease("10.5.1.0/24"), lease("10.5.2.0/24")], [])
    table.own = IPv4Network("10.5.77.0/24")
    routes.change([], [lease("10.5.2.0/24")])
    assert (routes.skipped, routed(table)) == ({}, {"10.5.1.0/24": "192.0.2.2"})
