"""The leased subnet manager over a real registry: choosing a subnet, keeping it, losing it."""

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.errors import ConfigError, LeaseError, NoConfig, OutOfSubnets, RegistryUnavailable, UsageError
from flannel_udp.lease import Lease, LeaseAttrs, decode_attrs, encode_attrs
from flannel_udp.registry import Entry, Listing
from flannel_udp.registry.sqlite import SqliteRegistry
from flannel_udp.subnet import (
    OwnLeaseChanged,
    OwnLeaseLost,
    OwnLeaseRenewed,
    PeersChanged,
    PeersReset,
    Trouble,
)
from flannel_udp.subnet.leased import LeasedSubnetManager
from tests.conftest import wait_until
from tests.control.leased_world import DUAL, Events, World, attrs

# Acquiring.


def test_a_new_node_gets_a_lease_as_flannel_writes_it(world: World) -> None:
    lease = world.manager().acquire(attrs("192.168.64.3"))
    assert lease.subnet is not None
    assert lease.subnet.subnet_of(IPv4Network("10.5.0.0/16"))
    assert lease.subnet != IPv4Network("10.5.0.0/24")  # the first is left out
    entry = world.entry(lease.key)
    assert entry.value == b'{"PublicIP":"192.168.64.3","PublicIPv6":null}'
    assert entry.expiry is not None
    assert 86000 < entry.expiry - time.time() <= 86400
    assert (lease.expiry, lease.revision) == (entry.expiry, entry.revision)


def test_the_same_address_gets_its_subnet_back(world: World) -> None:
    first = world.manager().acquire(attrs("1.1.1.1"))
    again = world.manager().acquire(LeaseAttrs(IPv4Address("1.1.1.1"), backend_type="vxlan"))
    assert again.key == first.key
    assert world.keys() == [first.key]
    assert decode_attrs(world.entry(first.key).value).backend_type == "vxlan"


def test_what_stands_for_a_node_is_told_before_it_is_written(world: World) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    manager = world.manager()
    assert manager.standing(attrs("1.1.1.1")) is None
    told = LeaseAttrs(IPv4Address("1.1.1.1"), None, "vxlan", {"VNI": 1, "VtepMAC": "0a:5e:00:53:00:01"})
    first = manager.acquire(told)
    before = world.entry(first.key)
    standing = world.manager().standing(attrs("1.1.1.1"))
    assert standing is not None
    assert (standing.key, standing.attrs) == (first.key, told)
    assert world.entry(first.key) == before


def test_of_two_own_leases_the_previous_is_taken(world: World) -> None:
    world.lease("10.5.2.0-24", "1.1.1.1")
    world.lease("10.5.3.0-24", "1.1.1.1")
    previous = IPv4Network("10.5.3.0/24"), None
    assert world.manager(previous=previous).acquire(attrs("1.1.1.1")).key == "10.5.3.0-24"


def test_an_incompatible_lease_is_deleted_and_chosen_anew(world: World) -> None:
    world.lease("10.5.16.0-20", "1.1.1.1")
    lease = world.manager().acquire(attrs("1.1.1.1"))
    assert world.keys() == [lease.key]
    assert lease.subnet is not None
    assert lease.subnet.prefixlen == 24


@pytest.mark.parametrize("taken", [None, "10.5.77.0-24", "10.5.64.0-20", "10.5.77.128-25"])
def test_the_previous_subnet_is_preferred_if_free(world: World, taken: str | None) -> None:
    if taken:
        world.lease(taken, "9.9.9.9")
    lease = world.manager(previous=(IPv4Network("10.5.77.0/24"), None)).acquire(attrs("1.1.1.1"))
    assert (lease.key == "10.5.77.0-24") == (taken is None)


def test_a_key_with_an_unreadable_value_is_not_free(world: World) -> None:
    world.put("10.5.77.0-24", b"")
    lease = world.manager(previous=(IPv4Network("10.5.77.0/24"), None)).acquire(attrs("1.1.1.1"))
    assert lease.key != "10.5.77.0-24"


def test_dual_stack_guards_each_family(tmp_path: Path) -> None:
    world = World(tmp_path / "dual.db", DUAL)
    try:
        world.lease("10.5.77.0-24&fd00:5:0:1::-64", "9.9.9.9")
        previous = IPv4Network("10.5.77.0/24"), IPv6Network("fd00:5:0:2::/64")
        lease = world.manager(previous=previous).acquire(LeaseAttrs(IPv4Address("1.1.1.1"), IPv6Address("fd::1")))
        assert lease.subnet != previous[0]
        assert lease.ipv6_subnet == previous[1]
        assert world.keys() == sorted(["10.5.77.0-24&fd00:5:0:1::-64", lease.key])
    finally:
        world.close()


def test_out_of_subnets_and_a_released_one_serves_again(tmp_path: Path) -> None:
    world = World(tmp_path / "small.db", '{"Network":"10.5.0.0/28"}')
    try:
        managers = [world.manager() for _ in range(4)]
        for number, manager in enumerate(managers[:3]):
            manager.acquire(attrs(f"1.1.1.{number}"))
        with pytest.raises(OutOfSubnets):
            managers[3].acquire(attrs("1.1.1.3"))
        managers[0].release()
        assert managers[3].acquire(attrs("1.1.1.3")).subnet is not None
    finally:
        world.close()


def test_a_lost_race_picks_again(world: World) -> None:
    class Raced(SqliteRegistry):
        """Another node is faster, twice, between the snapshot and the creation."""

        losses = 2

        def create(self, key: str, value: bytes, ttl: float | None, since: int) -> Entry:
            if self.losses:
                self.losses -= 1
                world.lease(key, f"8.8.8.{self.losses}")
            return super().create(key, value, ttl, since)

    manager = world.manager(registry=Raced(world.path))
    lease = manager.acquire(attrs("1.1.1.1"))
    assert manager.counters["lost_races"] == 2
    assert len(world.keys()) == 3
    assert decode_attrs(world.entry(lease.key).value) == attrs("1.1.1.1")


def test_a_race_always_lost_ends_with_a_clear_error(world: World) -> None:
    class Hopeless(SqliteRegistry):
        def snapshot(self) -> Listing:
            listing = super().snapshot()
            return Listing(listing.entries, 0)

    world.lease("10.5.9.0-24", "9.9.9.9")
    with pytest.raises(LeaseError, match="others were faster"):
        world.manager(registry=Hopeless(world.path), acquire_timeout=0.2).acquire(attrs("1.1.1.1"))


def test_config_errors_are_told_apart(tmp_path: Path) -> None:
    registry = SqliteRegistry(str(tmp_path / "registry.db"))
    manager = LeasedSubnetManager(registry)
    with pytest.raises(NoConfig):
        manager.config()
    registry.write_config('{"Network":"10.5.0.0/31"}')
    with pytest.raises(ConfigError):
        manager.acquire(attrs("1.1.1.1"))
    manager.close()
    with pytest.raises(RegistryUnavailable):
        manager.config()


@pytest.mark.parametrize("margin", [0, 10, 11])
def test_a_margin_that_leaves_no_time_is_refused(margin: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        LeasedSubnetManager(SqliteRegistry(str(tmp_path / "x.db")), ttl=10, renew_margin=margin)


# Keeping.


def test_a_lease_is_renewed_by_compare_and_swap_and_peers_hear_nothing_of_it(world: World) -> None:
    manager, watcher = world.manager(ttl=1.0, renew_margin=0.8), world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    events, watching = Events(manager), Events(watcher)
    wait_until(lambda: manager.counters["renewals"] >= 8, "eight renewals")
    assert world.entry(lease.key).revision > lease.revision
    first, *renewed = events.drain()
    assert first == PeersReset(())
    assert {type(event) for event in renewed} == {OwnLeaseRenewed}
    assert [item.key for item in watching.next(PeersReset).leases] == [lease.key]
    assert watching.drain() == []


def test_without_renewal_a_lease_expires(world: World) -> None:
    lease = world.manager(ttl=0.4, renew_margin=0.1).acquire(attrs("1.1.1.1"))
    assert world.keys() == [lease.key]
    wait_until(lambda: world.keys() == [], "the lease to expire")


def test_a_reservation_stays_one_when_taken_updated_and_released(world: World) -> None:
    world.lease("10.5.7.0-24", "1.1.1.1", None)
    manager = world.manager(ttl=0.5, renew_margin=0.4)
    assert manager.acquire(attrs("1.1.1.1")) == Lease(
        IPv4Network("10.5.7.0/24"), None, attrs("1.1.1.1"), None, world.entry("10.5.7.0-24").revision
    )
    manager.update(LeaseAttrs(IPv4Address("1.1.1.1"), backend_type="vxlan"))
    assert world.entry("10.5.7.0-24").expiry is None
    manager.release()
    assert world.keys() == ["10.5.7.0-24"]


def test_a_reservation_out_of_range_is_left_alone(world: World) -> None:
    world.lease("10.6.7.0-24", "1.1.1.1", None)
    lease = world.manager().acquire(attrs("1.1.1.1"))
    assert world.keys() == sorted(["10.6.7.0-24", lease.key])


def test_update_writes_and_follows_what_another_wrote(world: World) -> None:
    manager = world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    manager.update(LeaseAttrs(IPv4Address("2.2.2.2")))
    assert decode_attrs(world.entry(lease.key).value) == attrs("2.2.2.2")
    world.overwrite(lease.key, world.entry(lease.key).value)
    assert manager.update(attrs("3.3.3.3")).revision == world.entry(lease.key).revision
    world.overwrite(lease.key, encode_attrs(attrs("9.9.9.9")))
    with pytest.raises(LeaseError):
        manager.update(attrs("4.4.4.4"))
    with pytest.raises(LeaseError):
        manager.release()
    assert decode_attrs(world.entry(lease.key).value) == attrs("9.9.9.9")


def test_update_without_a_lease_is_refused(world: World) -> None:
    with pytest.raises(LeaseError):
        world.manager().update(attrs("1.1.1.1"))


# Losing.


def test_a_deleted_own_lease_is_lost_and_taken_again(world: World) -> None:
    manager = world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    world.admin.delete(lease.key, lease.revision)
    assert lease.key in events.next(OwnLeaseLost).reason
    assert manager.acquire(attrs("1.1.1.1")).key == lease.key
    world.lease("10.5.250.0-24", "9.9.9.9")
    assert [peer.key for peer in events.next(PeersChanged).put] == ["10.5.250.0-24"]


def test_an_own_lease_overwritten_by_another_node_is_lost_and_a_peer(world: World) -> None:
    manager = world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    world.overwrite(lease.key, encode_attrs(attrs("9.9.9.9")))
    assert "9.9.9.9" in events.next(OwnLeaseLost).reason
    assert [peer.attrs for peer in events.next(PeersChanged).put] == [attrs("9.9.9.9")]
    assert manager.acquire(attrs("1.1.1.1")).key != lease.key


def test_an_own_lease_written_by_another_hand_is_told(world: World) -> None:
    manager = world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    value = encode_attrs(LeaseAttrs(IPv4Address("1.1.1.1"), backend_type="vxlan"))
    entry = world.overwrite(lease.key, value, None)
    changed = events.next(OwnLeaseChanged).lease
    assert (changed.revision, changed.expiry, changed.attrs.backend_type) == (entry.revision, None, "vxlan")
    assert [event.cause for event in events.seen if isinstance(event, Trouble)] == ["own-lease-shared"]
    assert manager.update(attrs("1.1.1.1")).expiry is None  # it had become a reservation


def test_garbage_over_the_own_lease_is_mended(world: World) -> None:
    manager = world.manager()
    lease = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    world.overwrite(lease.key, b"")
    assert events.next(Trouble).cause == "own-lease-unreadable"
    wait_until(lambda: world.entry(lease.key).value == encode_attrs(attrs("1.1.1.1")), "the lease to be written anew")
