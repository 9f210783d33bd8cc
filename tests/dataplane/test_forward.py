"""forward.pxd: each outcome of both decisions, in both families, with all source checks; what stays is untouched."""

import pytest

from flannel_udp._dataplane import FIRST_PEER, NO_SLOT, OUTSIDE_SLOT, OWN_SLOT, SOURCE_CHECKS
from flannel_udp._probe import Node

from . import packets
from .packets import NAMES, ipv4, ipv6, packed

CHECKS = list(SOURCE_CHECKS)
FAMILIES = (4, 6)
PEER2, PEER3 = FIRST_PEER, FIRST_PEER + 1
STRANGER = 99


def underlay(family: int, number: int) -> bytes:
    return packed(f"192.0.2.{number}") if family == 4 else packed(f"2001:db8::{number}")


def overlay(family: int, subnet: int, host: str = "0") -> str:
    return f"10.5.{subnet}.{host}" if family == 4 else f"fd05:0:0:{subnet}::{host}"


def node_of(family: int, check: str = "known", ttl_step: int = 1) -> Node:
    """Node 1 with subnet 1, peers 2 and 3 at the underlay addresses 2 and 3."""
    network = ("10.5.0.0", 16, 24) if family == 4 else ("fd05::", 48, 64)
    node = Node(packed(network[0]), *network[1:], source_check=SOURCE_CHECKS[check], ttl_step=ttl_step)
    node.set_subnet(packed(overlay(family, 1)), OWN_SLOT)
    for slot, number in ((PEER2, 2), (PEER3, 3)):
        node.set_subnet(packed(overlay(family, number)), slot)
        node.set_peer(slot, underlay(family, number))
    node.set_own([underlay(family, 1), packed("172.16.0.1" if family == 4 else "2001:db8:1::1")])
    return node


def packet(family: int, source: str, destination: str, ttl: int = 64) -> bytes:
    return ipv4(source, destination, ttl=ttl) if family == 4 else ipv6(source, destination, hop_limit=ttl)


def out(node: Node, data: bytes) -> tuple[str, int, bytes]:
    outcome, slot, after = node.out(data)
    return NAMES[outcome], slot, after


def into(node: Node, family: int, sender: int, data: bytes) -> tuple[str, int, bytes]:
    outcome, slot, after = node.into(underlay(family, sender), data)
    return NAMES[outcome], slot, after


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_out(family: int) -> None:
    data = packets.packet(family, 1, 2)
    assert out(node_of(family), data) == ("forward", PEER2, packets.hop(data))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_golden_in(family: int, check: str) -> None:
    data = packets.packet(family, 2, 1)
    assert into(node_of(family, check), family, 2, data) == ("forward", PEER2, packets.hop(data))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_out_and_in_again_is_two_hops(family: int, check: str) -> None:
    data = packets.packet(family, 2, 1)
    node2 = node_of(family)
    node2.set_subnet(packed(overlay(family, 1)), PEER3)
    sent = out(node2, data)[2]
    assert into(node_of(family, check), family, 2, sent)[2] == packets.hop(data, 2)


OUT = [
    # destination of IPv4, of IPv6, outcome, slot
    ("10.5.2.0", "fd05:0:0:2::", "forward", PEER2),
    ("10.5.3.255", "fd05:0:0:3:ffff:ffff:ffff:ffff", "forward", PEER3),
    ("10.5.4.0", "fd05:0:0:4::", "no_route", NO_SLOT),
    ("10.5.0.0", "fd05::", "no_route", NO_SLOT),
    ("10.5.255.255", "fd05:0:0:ffff:ffff:ffff:ffff:ffff", "no_route", NO_SLOT),
    ("10.5.1.9", "fd05:0:0:1::9", "own_subnet", OWN_SLOT),
    ("10.4.255.255", "fd04:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "out_of_network", OUTSIDE_SLOT),
    ("10.6.0.0", "fd05:0:1::", "out_of_network", OUTSIDE_SLOT),
    ("0.0.0.0", "::", "out_of_network", OUTSIDE_SLOT),
    ("255.255.255.255", "ff02::1", "out_of_network", OUTSIDE_SLOT),
]


@pytest.mark.parametrize(("v4", "v6", "outcome", "slot"), OUT, ids=[rule[0] for rule in OUT])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_packets_go(family: int, v4: str, v6: str, outcome: str, slot: int) -> None:
    data = packet(family, overlay(family, 1, "9"), v4 if family == 4 else v6)
    expected = packets.hop(data) if outcome == "forward" else data
    assert out(node_of(family), data) == (outcome, slot, expected)


IN = [
    # sender, source, destination (subnet, or an address), outcome with --source-check off, known, strict
    (2, 2, 1, "forward", "forward", "forward"),
    (2, 3, 1, "forward", "forward", "source_mismatch"),
    (2, 4, 1, "forward", "forward", "source_mismatch"),
    (2, "198.51.100.1", 1, "forward", "forward", "source_mismatch"),
    (STRANGER, 2, 1, "forward", "unknown_sender", "unknown_sender"),
    (STRANGER, 4, 1, "forward", "unknown_sender", "unknown_sender"),
    (2, 1, 1, "own_source", "own_source", "own_source"),
    (2, "192.0.2.1", 1, "own_source", "own_source", "own_source"),
    (2, "172.16.0.1", 1, "own_source", "own_source", "own_source"),
    (2, 2, 3, "not_ours", "not_ours", "not_ours"),
    (2, 2, 4, "not_ours", "not_ours", "not_ours"),
    (2, 2, "10.6.0.1", "not_ours", "not_ours", "not_ours"),
    (2, 2, "192.0.2.1", "not_ours", "not_ours", "not_ours"),
    (2, 2, "224.0.0.1", "not_ours", "not_ours", "not_ours"),
    (STRANGER, 1, 1, "own_source", "unknown_sender", "unknown_sender"),
    (STRANGER, 2, 3, "not_ours", "unknown_sender", "unknown_sender"),
]
IN6 = {"198.51.100.1": "2001:db8:77::1", "192.0.2.1": "2001:db8::1", "172.16.0.1": "2001:db8:1::1",
       "10.6.0.1": "fd05:0:1::1", "224.0.0.1": "ff02::1"}


@pytest.mark.parametrize(("sender", "source", "destination", "off", "known", "strict"), IN)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_may_come_in(
    family: int, sender: int, source: int | str, destination: int | str, off: str, known: str, strict: str
) -> None:
    def address(place: int | str) -> str:
        if isinstance(place, int):
            return overlay(family, place, "7")
        return place if family == 4 else IN6[place]

    data = packet(family, address(source), address(destination))
    for check, outcome in (("off", off), ("known", known), ("strict", strict)):
        found, slot, after = into(node_of(family, check), family, sender, data)
        assert found == outcome, check
        assert after == (packets.hop(data) if outcome == "forward" else data)
        assert slot == (NO_SLOT if sender == STRANGER else PEER2)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ends_of_our_tunnel_address_are_ours(family: int) -> None:
    """The tunnel's address is the first of the subnet: packets for it come in."""
    data = packet(family, overlay(family, 2, "7"), overlay(family, 1))
    assert into(node_of(family), family, 2, data)[0] == "forward"


@pytest.mark.parametrize("family", FAMILIES)
def test_strict_where_one_address_leases_two_subnets(family: int) -> None:
    """Two nodes behind one address: either may send what the other leases, since they cannot be told apart."""
    node = node_of(family, "strict")
    node.set_peer(PEER3, underlay(family, 2))
    for source in (2, 3):
        assert into(node, family, 2, packets.packet(family, source, 1))[0] == "forward"


@pytest.mark.parametrize(("ttl", "step", "outcome"), [
    (0, 1, "ttl_expired"), (1, 1, "ttl_expired"), (2, 1, "forward"), (255, 1, "forward"),
    (0, 0, "forward"), (1, 0, "forward"), (2, 2, "ttl_expired"), (3, 2, "forward")])
@pytest.mark.parametrize("family", FAMILIES)
def test_time_to_live(family: int, ttl: int, step: int, outcome: str) -> None:
    node = node_of(family, ttl_step=step)
    for found, _, after in (out(node, packets.packet(family, 1, 2, ttl=ttl)),
                            into(node, family, 2, packets.packet(family, 2, 1, ttl=ttl))):
        assert (found, after[8 if family == 4 else 7]) == (outcome, ttl - step if outcome == "forward" else ttl)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ttl_that_ends_elsewhere_is_not_told(family: int) -> None:
    """A packet without a way, or not for us, is that first; else a scan would draw errors from all nodes."""
    node = node_of(family)
    assert out(node, packets.packet(family, 1, 4, ttl=1))[0] == "no_route"
    assert into(node, family, 2, packets.packet(family, 2, 4, ttl=1))[0] == "not_ours"


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_cut_off(family: int) -> None:
    node = node_of(family)
    for extra in (1, 18, 1000):
        data = packets.packet(family, 1, 2)
        assert out(node, data + bytes(extra))[2] == packets.hop(data)
        data = packets.packet(family, 2, 1)
        assert into(node, family, 2, data + bytes(extra))[2] == packets.hop(data)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_packet_ends_at_either_door(family: int) -> None:
    node, data = node_of(family), packets.packet(family, 2, 1)
    other = packets.packet(10 - family, 2, 1)
    for broken, outcome in ((b"", "truncated"), (data[:-1], "truncated"), (b"\x15" + data[1:], "not_ip"),
                            (other, "other_family")):
        assert out(node, broken)[0] == outcome
        assert into(node, family, 2, broken) == (outcome, PEER2, broken)
        assert into(node, family, STRANGER, broken) == ("unknown_sender", NO_SLOT, broken)
