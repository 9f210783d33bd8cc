"""backends host-gw and alloc: what their leases say, and which peers host-gw has no route to, and why."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.backend import BACKENDS
from flannel_udp.backend.alloc import AllocBackend
from flannel_udp.backend.hostgw import HostGwBackend
from flannel_udp.backend.peers import DirectRoute
from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.lease import Lease, LeaseAttrs, encode_attrs
from flannel_udp.link import Address, Route
from flannel_udp.options import NodeOptions
from flannel_udp.underlay import ExternalInterface

HERE, HERE6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
THERE, THERE6 = IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2")
ETH0 = ExternalInterface("eth0", 2, 1500, HERE, HERE6, HERE, HERE6, "")
SUBNET, SUBNET6 = IPv4Network("10.5.3.0/24"), IPv6Network("fd00:5:0:3::/64")


class Ways:
    """The kernel's answers to the question for a route: all are on eth0, but for those named here."""

    def __init__(self, others: dict[Address, Route | None] | None = None) -> None:
        self.others = others or {}

    def route_to(self, destination: Address) -> Route | None:
        return self.others.get(destination, Route(None, 2))


def config(kind: str, more: str = "") -> NetworkConfig:
    return parse_network_config(f'{{"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"{more}, '
                                f'"Backend": {{"Type": "{kind}"}}}}')


def made(more: str = "", external: ExternalInterface = ETH0, ways: Ways | None = None) -> HostGwBackend:
    return HostGwBackend(config("host-gw", more), external, NodeOptions(), ways or Ways())  # type: ignore[arg-type]


def peer(kind: str = "host-gw", subnet: IPv4Network | None = SUBNET, subnet6: IPv6Network | None = SUBNET6) -> Lease:
    return Lease(subnet, subnet6, LeaseAttrs(THERE, THERE6, kind), None, 1)


DUAL, ONLY6 = ', "EnableIPv6": true', ', "EnableIPv6": true, "EnableIPv4": false'


@pytest.mark.parametrize(("more", "value"), [
    ("", b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'),
    (DUAL, b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}'),
    (ONLY6, b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}'),
])
def test_a_lease_says_what_flannels_does(more: str, value: bytes) -> None:
    backend = made(more)
    assert encode_attrs(backend.attrs()) == value
    assert (backend.mtu, backend.tunnels) == (1500, ())


def test_a_node_behind_nat_is_refused() -> None:
    with pytest.raises(UnderlayError, match=r"PublicIP 203\.0\.113\.1 is not the address of interface eth0"):
        made(external=replace(ETH0, public_address=IPv4Address("203.0.113.1")))


@pytest.mark.parametrize(("more", "lease", "subnets"), [
    ("", peer(), [SUBNET]), (DUAL, peer(), [SUBNET, SUBNET6]), (ONLY6, peer(), [SUBNET6]),
    (DUAL, peer(subnet6=None), [SUBNET]),
])
def test_a_peer_gets_a_route_for_each_family_that_both_have(more: str, lease: Lease, subnets: list[object]) -> None:
    gateways = {4: THERE, 6: THERE6}
    assert tuple(made(more).direct(lease)) == tuple(DirectRoute(one, gateways[one.version], 2) for one in subnets)  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize(("lease", "ways", "reason"), [
    (peer("vxlan"), {}, "is a node of the vxlan backend, which sends no packets to host-gw nodes"),
    (peer(""), {}, "is a node of the udp or alloc backend, which sends no packets to host-gw nodes"),
    (peer(), {THERE: Route(None, 2, gateway=IPv4Address("192.0.2.254"))},
     "PublicIP 192.0.2.2 is reached by way of 192.0.2.254: host-gw needs all nodes on one link"),
    (peer(), {THERE: Route(None, 3)}, "PublicIP 192.0.2.2 is not on eth0: host-gw needs all nodes on one link"),
    (peer(), {THERE: None}, "PublicIP 192.0.2.2 is not on eth0: host-gw needs all nodes on one link"),
    (peer(), {THERE: Route(None, 2, unicast=False)}, "PublicIP 192.0.2.2 is not the address of one other host"),
    (peer(subnet=None), {}, "has no subnet of a family that this node has"),
])
def test_a_peer_that_is_not_on_the_link_is_refused(lease: Lease, ways: dict[Address, Route | None],
                                                   reason: str) -> None:
    with pytest.raises(LeaseError) as refusal:
        list(made(ways=Ways(ways)).direct(lease))
    assert str(refusal.value) == reason


@pytest.mark.parametrize(("away", "stays"), [(THERE6, SUBNET), (THERE, SUBNET6)])
def test_a_family_behind_a_router_leaves_the_other_its_route(away: Address, stays: object) -> None:
    routes = made(DUAL, ways=Ways({away: Route(None, 2, gateway=away)})).direct(peer())
    assert next(routes).subnet == stays
    with pytest.raises(LeaseError, match=f"{away} is reached by way of {away}: host-gw needs all nodes on one link"):
        next(routes)


@pytest.mark.parametrize(("more", "value"), [
    ("", b'{"PublicIP":"203.0.113.1","PublicIPv6":null}'),
    (ONLY6, b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}'),
])
def test_alloc_leases_and_no_more(more: str, value: bytes) -> None:
    external = replace(ETH0, public_address=IPv4Address("203.0.113.1"))
    backend = AllocBackend(config("alloc", more), external, NodeOptions(), Ways())  # type: ignore[arg-type]
    assert encode_attrs(backend.attrs()) == value
    assert (backend.mtu, backend.tunnels, backend.direct(peer())) == (1500, (), ())


def test_the_table() -> None:
    assert list(BACKENDS) == ["udp", "vxlan", "host-gw", "alloc"]
