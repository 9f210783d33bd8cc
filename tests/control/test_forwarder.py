"""The Forwarder without running loops: slots, subnets that do not fit, what it tells; packets are tests/netns' part."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest

from flannel_udp._dataplane import FIRST_PEER, NO_SLOT, OWN_SLOT
from flannel_udp.errors import ConfigError, LeaseError
from flannel_udp.forwarder import MEANINGS, Counters, Encapsulation, Forwarder

UDP = Encapsulation(coat_length=0, ttl_step=1, overhead=28)
NETWORK = IPv4Network("10.5.0.0/16")
OWN, A, B = (IPv4Network(f"10.5.{third}.0/24") for third in (1, 2, 3))
HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


@pytest.fixture
def forwarder() -> Forwarder:
    made = Forwarder(NETWORK, 24, UDP)
    made.set_own(OWN, OWN[0], [HERE])
    made.publish()
    return made


def slot(forwarder: Forwarder, subnet: IPv4Network | IPv6Network) -> int:
    return forwarder._builder.lookup(subnet[1].packed)


def test_peers_get_slots_of_their_own(forwarder: Forwarder) -> None:
    forwarder.set_peer(A, THERE, 8285)
    forwarder.set_peer(B, THERE, 8285)
    assert {slot(forwarder, OWN), slot(forwarder, A), slot(forwarder, B)} == {OWN_SLOT, FIRST_PEER, FIRST_PEER + 1}
    assert [(peer.subnet, peer.underlay, peer.last_heard) for peer in forwarder.peers()] == [
        (A, THERE, None), (B, THERE, None)]


def test_a_peer_that_moves_keeps_its_slot(forwarder: Forwarder) -> None:
    forwarder.set_peer(A, THERE, 8285)
    forwarder.publish()
    forwarder.set_peer(A, IPv4Address("192.0.2.9"), 8286)
    assert slot(forwarder, A) == FIRST_PEER
    assert [peer.underlay for peer in forwarder.peers()] == [IPv4Address("192.0.2.9")]


def test_a_peer_that_goes_leaves_nothing(forwarder: Forwarder) -> None:
    forwarder.set_peer(A, THERE, 8285)
    forwarder.delete_peer(A)
    forwarder.delete_peer(A)
    forwarder.delete_peer(B)
    assert slot(forwarder, A) == NO_SLOT
    assert forwarder.peers() == []


def test_slots_are_used_again_after_a_publish(forwarder: Forwarder) -> None:
    forwarder.set_peer(A, THERE, 8285)
    forwarder.delete_peer(A)
    forwarder.set_peer(B, THERE, 8285)
    assert slot(forwarder, B) == FIRST_PEER + 1, "the publish that takes the route away is still to come"
    forwarder.publish()
    forwarder.set_peer(A, THERE, 8285)
    assert slot(forwarder, A) == FIRST_PEER


def test_a_full_network_can_exchange_all_its_peers_at_once() -> None:
    """Each subnet of a small network leased, all leave and come again between two publishes."""
    full = Forwarder(IPv4Network("10.5.0.0/28"), 30, UDP)
    subnets = list(IPv4Network("10.5.0.0/28").subnets(new_prefix=30))
    for _ in range(5):
        for subnet in subnets:
            full.delete_peer(subnet)
        for subnet in subnets:
            full.set_peer(subnet, THERE, 8285)
        full.publish()
    assert len({slot(full, subnet) for subnet in subnets}) == 4


def test_a_full_network_can_change_many_times_between_two_publishes() -> None:
    full = Forwarder(IPv4Network("10.5.0.0/28"), 30, UDP)
    subnets = list(IPv4Network("10.5.0.0/28").subnets(new_prefix=30))
    for subnet in subnets:
        full.set_peer(subnet, THERE, 8285)
    for _ in range(20):
        full.delete_peer(subnets[0])
        full.set_peer(subnets[0], THERE, 8285)
    full.publish()
    assert len({slot(full, subnet) for subnet in subnets}) == 4


def test_address_of_the_other_family_is_named_and_changes_nothing(forwarder: Forwarder) -> None:
    with pytest.raises(LeaseError, match=r"10\.5\.2\.0/24: 2001:db8::1 is no IPv4 address"):
        forwarder.set_peer(A, IPv6Address("2001:db8::1"), 8285)
    assert (slot(forwarder, A), forwarder.peers()) == (NO_SLOT, [])
    forwarder.set_peer(A, THERE, 8285)
    with pytest.raises(LeaseError, match="is no IPv4 address"):
        forwarder.set_peer(A, IPv6Address("2001:db8::1"), 8285)
    assert [peer.underlay for peer in forwarder.peers()] == [THERE]


def test_own_subnet_takes_a_peers_place_for_good(forwarder: Forwarder) -> None:
    """The lease that was a peer's is ours now; the news of the peer's end comes later, and must not take it away."""
    forwarder.set_peer(A, THERE, 8285)
    forwarder.set_own(A, A[0], [HERE])
    forwarder.delete_peer(A)
    forwarder.publish()
    assert (slot(forwarder, A), slot(forwarder, OWN), forwarder.peers()) == (OWN_SLOT, NO_SLOT, [])


def test_own_subnet_can_be_told_again(forwarder: Forwarder) -> None:
    forwarder.set_own(OWN, OWN[0], [HERE, THERE])
    assert slot(forwarder, OWN) == OWN_SLOT


@pytest.mark.parametrize(("subnet", "message"), [
    ("10.5.1.0/24", "own subnet"), ("10.6.1.0/24", "outside the network"), ("10.5.2.0/25", "smaller than a subnet")])
def test_leases_that_do_not_fit_are_named_and_change_nothing(forwarder: Forwarder, subnet: str, message: str) -> None:
    with pytest.raises(LeaseError, match=message):
        forwarder.set_peer(IPv4Network(subnet), THERE, 8285)
    assert forwarder.peers() == []
    assert slot(forwarder, OWN) == OWN_SLOT
    forwarder.set_peer(A, THERE, 8285)
    assert slot(forwarder, A) == FIRST_PEER


def test_own_lease_that_does_not_fit(forwarder: Forwarder) -> None:
    with pytest.raises(LeaseError, match="outside"):
        forwarder.set_own(IPv4Network("10.6.1.0/24"), IPv4Address("10.6.1.0"), [])
    assert slot(forwarder, OWN) == OWN_SLOT


def test_too_many_subnets_for_a_table() -> None:
    with pytest.raises(ConfigError, match=r"SubnetLen 31 in Network 10\.0\.0\.0/8: 8388608 subnets"):
        Forwarder(IPv4Network("10.0.0.0/8"), 31, UDP)


def test_addresses_of_the_other_family_are_left_aside() -> None:
    forwarder = Forwarder(ip_network("fd05::/48"), 64, UDP)
    forwarder.set_own(IPv6Network("fd05:0:0:1::/64"), IPv6Address("fd05:0:0:1::"), [HERE, ip_address("2001:db8::1")])
    assert slot(forwarder, ip_network("fd05:0:0:1::/64")) == OWN_SLOT


def test_status_is_json_with_meanings(forwarder: Forwarder) -> None:
    told = json.loads(json.dumps(forwarder.status()))
    assert told["fib"]["routes"] == 1
    assert told["counters"]["out"]["outcomes"]["no_route"]["meaning"] == MEANINGS["no_route"]
    assert "unknown_sender" in told["counters"]["in"]["outcomes"]
    assert "unknown_sender" not in told["counters"]["out"]["outcomes"]


def test_the_law() -> None:
    assert Counters(3, {"sent": 2, "no_route": 1}, {}).law_holds
    assert not Counters(3, {"sent": 2}, {}).law_holds


def test_stopping_what_does_not_run(forwarder: Forwarder) -> None:
    forwarder.stop()
    assert forwarder.notices() == []
