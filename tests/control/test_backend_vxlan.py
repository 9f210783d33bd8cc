"""backend vxlan: what its lease says byte for byte, the coat of each peer, who is left out, and direct routes."""

import io
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from flannel_udp._dataplane import VXLAN_COAT, VXLAN_PORT
from flannel_udp.backend import vtep
from flannel_udp.backend.peers import DirectRoute
from flannel_udp.backend.vxlan import VxlanBackend
from flannel_udp.config import parse_network_config
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.lease import Lease, LeaseAttrs, encode_attrs
from flannel_udp.link import Address, Route, parse_mac
from flannel_udp.options import NodeOptions
from flannel_udp.underlay import ExternalInterface

MAC, MAC6, PEER = "0a:5e:00:53:00:01", "0a:5e:00:53:00:06", "0a:5e:00:53:00:02"
ETH0 = ExternalInterface("eth0", 2, 1500, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"),
                         IPv4Address("203.0.113.1"), IPv6Address("2001:db8::1"), "")
DUAL = ', "EnableIPv6": true'
ONLY6 = ', "EnableIPv6": true, "EnableIPv4": false'


class Ways:
    """The kernel's answers to the question for a route."""

    def __init__(self) -> None:
        self.to: dict[str, Route] = {}

    def route_to(self, destination: Address) -> Route | None:
        return self.to.get(str(destination))


@pytest.fixture
def options(tmp_path: Path) -> NodeOptions:
    options = NodeOptions(state_dir=tmp_path)
    vtep.keep(options, {"flannel.1": parse_mac(MAC), "flannel-v6.1": parse_mac(MAC6)})
    return options


def made(options: NodeOptions, more: str = "", keys: str = "", external: ExternalInterface = ETH0,
         ways: Ways | None = None) -> VxlanBackend:
    config = parse_network_config(f'{{"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"{more}, '
                                  f'"Backend": {{"Type": "vxlan"{keys}}}}}')
    return VxlanBackend(config, external, options, ways or Ways())  # type: ignore[arg-type]


def peer(*, public_ip: str = "192.0.2.2", data: Any = None, kind: str = "vxlan", subnet: str = "10.5.3.0/24") -> Lease:  # noqa: ANN401
    attrs = LeaseAttrs(IPv4Address(public_ip), IPv6Address("2001:db8::2"), kind,
                       {"VNI": 1, "VtepMAC": PEER} if data is None else data, {"VNI": 1, "VtepMAC": PEER})
    return Lease(IPv4Network(subnet), IPv6Network("fd00:5:0:3::/64"), attrs, None, 1)


@pytest.mark.parametrize(("more", "value"), [
    ("", (b'{"PublicIP":"203.0.113.1","PublicIPv6":null,"BackendType":"vxlan",'
          b'"BackendData":{"VNI":1,"VtepMAC":"0a:5e:00:53:00:01"}}')),
    (DUAL, (b'{"PublicIP":"203.0.113.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"0a:5e:00:53:00:01"},'
            b'"BackendV6Data":{"VNI":1,"VtepMAC":"0a:5e:00:53:00:06"}}')),
    (ONLY6, (b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
             b'"BackendV6Data":{"VNI":1,"VtepMAC":"0a:5e:00:53:00:06"}}')),
])
def test_a_lease_says_what_flannels_does(options: NodeOptions, more: str, value: bytes) -> None:
    assert encode_attrs(made(options, more).attrs()) == value


def test_another_vni_is_another_device_with_a_mac_of_its_own(options: NodeOptions) -> None:
    backend = made(options, keys=', "VNI": 7')
    assert vtep.NAMES[4].format(7) == "flannel.7"
    assert backend.attrs().backend_data == {"VNI": 7, "VtepMAC": vtep.known(options)["flannel.7"].hex(":")}


@pytest.mark.parametrize(("more", "keys", "link", "mtus", "told"), [
    ("", "", 1500, [1450], 1450), (DUAL, "", 1500, [1450, 1430], 1430), (ONLY6, "", 1500, [1430], 1430),
    ("", ', "MTU": 1400', 1500, [1350], 1350), ("", "", 9000, [8950], 8950),
])
def test_mtu(options: NodeOptions, more: str, keys: str, link: int, mtus: list[int], told: int) -> None:
    backend = made(options, more, keys, replace(ETH0, mtu=link))
    assert ([tunnel.mtu for tunnel in backend.tunnels], backend.mtu) == (mtus, told)


def test_an_interface_that_will_not_do_is_refused(options: NodeOptions) -> None:
    with pytest.raises(UnderlayError, match="eth0 has MTU 117; vxlan needs 118"):
        made(options, external=replace(ETH0, mtu=117))
    with pytest.raises(UnderlayError, match="eth0 has MTU 1349; vxlan needs 1350"):
        made(options, DUAL, external=replace(ETH0, mtu=1349))
    with pytest.raises(UnderlayError, match="eth0 has no IPv6 address"):
        made(options, DUAL, external=replace(ETH0, address6=None))


def test_tunnel_addresses_are_the_subnets_own_and_alone(options: NodeOptions) -> None:
    assert [tunnel.tunnel(peer()) for tunnel in made(options, DUAL).tunnels] == [
        IPv4Interface("10.5.3.0/32"), IPv6Interface("fd00:5:0:3::/128")]


def test_a_peer_is_reached_in_the_coat_that_its_kernel_wants(options: NodeOptions) -> None:
    """As scapy builds it: no flag but that of the VNI, no reserved bit, its MAC, ours, the family's EtherType."""
    first, second = (tunnel.next_hop(peer()) for tunnel in made(options, DUAL, ', "VNI": 9999, "Port": 4789').tunnels)
    known = vtep.known(options)
    for hop, source, inner in ((first, known["flannel.9999"], IP()), (second, known["flannel-v6.9999"], IPv6())):
        built = bytes(VXLAN(vni=9999, flags="Instance") / Ether(dst=PEER, src=source.hex(":")) / inner)
        assert (hop.coat, hop.port) == (built[:VXLAN_COAT], 4789)
    assert (str(first.subnet), str(first.underlay)) == ("10.5.3.0/24", "192.0.2.2")
    assert (str(second.subnet), str(second.underlay)) == ("fd00:5:0:3::/64", "2001:db8::2")
    assert made(options).tunnels[0].next_hop(peer()).port == VXLAN_PORT
    assert made(options, keys=', "VNI": 1193046').tunnels[0].next_hop(peer()).coat[4:8] == bytes.fromhex("12345600")


def test_a_peers_vni_is_not_looked_at_as_by_flannel(options: NodeOptions) -> None:
    tunnel = made(options).tunnels[0]
    assert tunnel.next_hop(peer(data={"VNI": 9, "VtepMAC": PEER})) == tunnel.next_hop(peer())


@pytest.mark.parametrize(("lease", "reason"), [
    (peer(kind=""), "is a node of the udp or alloc backend, which does not understand vxlan"),
    (peer(kind="host-gw"), "is a node of the host-gw backend, which does not understand vxlan"),
    (peer(data={}), "tells no VtepMAC"),
    (peer(data={"VtepMAC": "ff:ff:ff:ff:ff:ff"}),
     'VtepMAC "ff:ff:ff:ff:ff:ff" is not the Ethernet address of one station'),
    (peer(data={"VtepMAC": MAC}), f"VtepMAC {MAC} is this node's own"),
    (peer(public_ip="224.0.0.1"), "PublicIP 224.0.0.1 is not the address of one host"),
])
def test_who_cannot_be_reached_is_refused_with_the_reason(options: NodeOptions, lease: Lease, reason: str) -> None:
    with pytest.raises(LeaseError) as refusal:
        made(options).tunnels[0].next_hop(lease)
    assert str(refusal.value) == reason


def test_the_mac_outlives_its_file_in_a_process(options: NodeOptions) -> None:
    """Loops and coats have it: another one after a change of the underlay would be dropped here."""
    told = made(options).attrs()
    vtep.file_of(options).unlink()
    assert made(options).attrs() == told


def test_learning_is_taken_with_a_word_about_it(options: NodeOptions, said: io.StringIO) -> None:
    made(options, keys=', "Learning": true')
    assert "Backend.Learning has no effect here" in said.getvalue()


def test_direct_routing_is_for_peers_without_a_router_in_between(options: NodeOptions) -> None:
    ways = Ways()
    direct = made(options, DUAL, ', "DirectRouting": true', ways=ways).direct
    assert direct(peer()) == ()
    ways.to = {"192.0.2.2": Route(None, 2), "2001:db8::2": Route(None, 3, gateway=IPv6Address("fe80::1"))}
    assert direct(peer()) == (DirectRoute(IPv4Network("10.5.3.0/24"), IPv4Address("192.0.2.2"), 2),)
    ways.to["2001:db8::2"] = Route(None, 3)
    assert [str(route.subnet) for route in direct(peer())] == ["10.5.3.0/24", "fd00:5:0:3::/64"]
    assert [str(route.subnet) for route in direct(peer(data={}))] == ["fd00:5:0:3::/64"]
    ways.to["192.0.2.2"] = Route(None, 2, unicast=False)
    assert [str(route.subnet) for route in direct(peer())] == ["fd00:5:0:3::/64"]


def test_a_peer_that_claims_to_be_in_the_overlay_is_not_routed_to_directly(options: NodeOptions) -> None:
    ways = Ways()
    ways.to["10.5.9.9"] = Route(IPv4Network("10.5.0.0/16"), 3)  # the tunnel's own device
    assert made(options, "", ', "DirectRouting": true', ways=ways).direct(peer(public_ip="10.5.9.9")) == ()


def test_without_direct_routing_nobody_asks_for_ways(options: NodeOptions) -> None:
    ways = Ways()
    ways.to["192.0.2.2"] = Route(None, 2)
    assert made(options, ways=ways).direct(peer()) == ()
