"""The leased subnet manager over a real registry: choosing, keeping, losing, following, and doing without."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TypeVar

import pytest

from flannel_udp.errors import ConfigError, LeaseError, NoConfig, OutOfSubnets, RegistryUnavailable, UsageError
from flannel_udp.lease import Lease, LeaseAttrs, decode_attrs, encode_attrs
from flannel_udp.registry import Change, Entry, Listing, StoredConfig
from flannel_udp.registry.bell import ring
from flannel_udp.registry.sqlite import SqliteRegistry, SqliteWatch
from flannel_udp.subnet import (
    ConfigChanged,
    OwnLeaseChanged,
    OwnLeaseLost,
    PeersChanged,
    PeersReset,
    SubnetEvent,
    SubnetManager,
    Trouble,
)
from flannel_udp.subnet.leased import LeasedSubnetManager
from tests.conftest import DEADLINE, wait_until

CONFIG = '{"Network":"10.5.0.0/16"}'
DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}'
E = TypeVar("E")


class World:
    """A registry file, any number of managers on it, and their events."""

    def __init__(self, path: Path, config: str = CONFIG) -> None:
        self.path = str(path)
        self.admin = SqliteRegistry(self.path)
        self.admin.write_config(config)
        self.managers: list[LeasedSubnetManager] = []

    def manager(self, **options: object) -> LeasedSubnetManager:
        registry = options.pop("registry", None) or SqliteRegistry(self.path)
        manager = LeasedSubnetManager(registry, **options)  # type: ignore[arg-type]
        self.managers.append(manager)
        return manager

    def entry(self, key: str) -> Entry:
        return next(entry for entry in self.admin.snapshot().entries if entry.key == key)

    def put(self, key: str, value: bytes, ttl: float | None = 100.0) -> Entry:
        return self.admin.create(key, value, ttl, self.admin.snapshot().revision)

    def lease(self, key: str, ip: str, ttl: float | None = 100.0) -> Entry:
        return self.put(key, encode_attrs(attrs(ip)), ttl)

    def overwrite(self, key: str, value: bytes, ttl: float | None = 100.0) -> Entry:
        return self.admin.update(key, value, ttl, self.entry(key).revision)

    def keys(self) -> list[str]:
        return [entry.key for entry in self.admin.snapshot().entries]

    def close(self) -> None:
        for manager in self.managers:
            manager.close()
        self.admin.close()


class Events:
    """What a manager posted, to be waited for."""

    def __init__(self, manager: SubnetManager) -> None:
        self.queue: queue.Queue[SubnetEvent] = queue.Queue()
        self.seen: list[SubnetEvent] = []
        manager.events(self.queue.put)

    def next(self, kind: type[E]) -> E:
        """The next event of this kind; others before it stay in `seen`."""
        deadline = time.monotonic() + DEADLINE
        while (left := deadline - time.monotonic()) > 0:
            event = self.queue.get(timeout=left)
            self.seen.append(event)
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} among {self.seen}")

    def drain(self) -> list[SubnetEvent]:
        events = []
        while not self.queue.empty():
            events.append(self.queue.get())
        return events


def attrs(ip: str) -> LeaseAttrs:
    return LeaseAttrs(IPv4Address(ip))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "registry.db")
    yield world
    world.close()


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
    assert events.drain() == [PeersReset(())]
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


# Following.


def test_peers_come_change_and_go_and_the_own_lease_is_none_of_them(world: World) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    manager = world.manager(previous=(IPv4Network("10.5.1.0/24"), None))
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    assert [lease.key for lease in events.next(PeersReset).leases] == ["10.5.2.0-24"]
    world.lease("10.5.3.0-24", "3.3.3.3")
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.3.0-24"]
    world.overwrite("10.5.3.0-24", encode_attrs(attrs("4.4.4.4")))
    assert [lease.attrs for lease in events.next(PeersChanged).put] == [attrs("4.4.4.4")]
    world.admin.delete("10.5.3.0-24", world.entry("10.5.3.0-24").revision)
    assert [lease.key for lease in events.next(PeersChanged).deleted] == ["10.5.3.0-24"]
    manager.update(attrs("1.1.1.1"))
    world.lease("10.5.4.0-24", "5.5.5.5", 0.3)
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.4.0-24"]
    assert [lease.key for lease in events.next(PeersChanged).deleted] == ["10.5.4.0-24"]
    assert events.drain() == []


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"PublicIP":"here"}', b'{"PublicIP":null}'])
def test_an_unreadable_key_is_named_and_touches_no_peer(world: World, value: bytes) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    world.put("10.5.8.0-24", value)
    world.put("not-a-subnet", b"{}")
    manager = world.manager(previous=(IPv4Network("10.5.1.0/24"), None))
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    assert [lease.key for lease in events.next(PeersReset).leases] == ["10.5.2.0-24"]
    named = events.next(Trouble).detail + events.next(Trouble).detail
    assert "10.5.8.0-24" in named
    assert "not-a-subnet" in named
    world.overwrite("10.5.2.0-24", value)  # keeps what was known of it
    trouble = events.next(Trouble)
    assert trouble.cause == "skipped-key"
    assert "10.5.2.0-24" in trouble.detail
    world.lease("10.5.3.0-24", "3.3.3.3")
    assert events.next(PeersChanged).deleted == ()
    assert manager.counters["skipped_keys"] == 3
    assert sorted(manager.skipped) == ["10.5.2.0-24", "10.5.8.0-24", "not-a-subnet"]
    world.overwrite("10.5.8.0-24", encode_attrs(attrs("8.8.8.8")))
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.8.0-24"]
    assert sorted(manager.skipped) == ["10.5.2.0-24", "not-a-subnet"]


def test_what_overlaps_the_own_lease_is_no_peer(world: World) -> None:
    manager = world.manager(previous=(IPv4Network("10.5.1.0/24"), None))
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    world.lease("10.5.1.128-25", "2.2.2.2")
    assert "overlaps" in events.next(Trouble).detail
    world.lease("10.5.9.0-24", "1.1.1.1")
    assert "node's public address" in events.next(Trouble).detail
    world.lease("10.5.3.0-24", "3.3.3.3")
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.3.0-24"]


def test_a_deleted_twin_does_not_take_a_standing_subnet_along(world: World) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    twin = world.lease("10.5.2.0-24&fd00::-64", "3.3.3.3")
    events = Events(world.manager())
    assert len(events.next(PeersReset).leases) == 2
    world.admin.delete(twin.key, twin.revision)
    changed = events.next(PeersChanged)
    assert [lease.key for lease in changed.deleted] == [twin.key]
    assert [lease.key for lease in changed.put] == ["10.5.2.0-24"]


class Gated(SqliteRegistry):
    """A registry that can be cut off."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.down = threading.Event()
        self.refusals = 0

    def check(self) -> None:
        if self.down.is_set():
            self.refusals += 1
            raise RegistryUnavailable("cut off by the test")

    def snapshot(self) -> Listing:
        self.check()
        return super().snapshot()

    def read_config(self) -> StoredConfig:
        self.check()
        return super().read_config()

    def watch(self, after: int) -> SqliteWatch:
        self.check()
        return GatedWatch(self, after)

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        self.check()
        return super().update(key, value, ttl, expected)

    def cut(self) -> None:
        """Fail from now on, watches that wait included."""
        self.down.set()
        ring(self.path)


class GatedWatch(SqliteWatch):
    def __init__(self, registry: Gated, after: int) -> None:
        super().__init__(registry, after)
        self.gate = registry

    def _look(self) -> tuple[Change, ...]:
        self.gate.check()
        return super()._look()


def test_an_outage_is_told_once_changes_nothing_and_is_made_good(world: World) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    world.lease("10.5.3.0-24", "3.3.3.3")
    registry = Gated(world.path)
    manager = world.manager(registry=registry, previous=(IPv4Network("10.5.1.0/24"), None))
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    registry.cut()
    trouble = events.next(Trouble)
    assert trouble.cause == "registry-unavailable"
    wait_until(lambda: registry.refusals >= 4, "four attempts")
    world.overwrite("10.5.2.0-24", encode_attrs(attrs("22.22.22.22")))  # an address changed during the outage is seen
    world.admin.delete("10.5.3.0-24", world.entry("10.5.3.0-24").revision)
    world.lease("10.5.4.0-24", "4.4.4.4")
    world.admin.compact(1 << 40)
    registry.down.clear()
    changed = events.next(PeersChanged)
    assert {lease.key: lease.attrs for lease in changed.put} == {
        "10.5.2.0-24": attrs("22.22.22.22"),
        "10.5.4.0-24": attrs("4.4.4.4"),
    }
    assert [lease.key for lease in changed.deleted] == ["10.5.3.0-24"]
    assert events.next(Trouble).cause == "registry-recovered"
    assert [event for event in events.seen if isinstance(event, Trouble)] == [trouble, events.seen[-1]]


def test_compaction_leads_to_a_new_snapshot(world: World) -> None:
    class Slow(SqliteRegistry):
        """Between the first snapshot and its watch the history is compacted."""

        first = True

        def watch(self, after: int) -> SqliteWatch:
            if self.first:
                self.first = False
                world.lease("10.5.4.0-24", "4.4.4.4")
                world.admin.compact(1 << 40)
            return super().watch(after)

    world.lease("10.5.2.0-24", "2.2.2.2")
    manager = world.manager(registry=Slow(world.path))
    events = Events(manager)
    assert [lease.key for lease in events.next(PeersReset).leases] == ["10.5.2.0-24"]
    changed = events.next(PeersChanged)
    assert ([lease.key for lease in changed.put], changed.deleted) == (["10.5.4.0-24"], ())
    assert manager.counters["resyncs"] == 2
    assert [event for event in events.seen if isinstance(event, Trouble)] == []  # nobody's trouble


def test_a_first_snapshot_that_fails_is_tried_again(world: World) -> None:
    registry = Gated(world.path)
    manager = world.manager(registry=registry)
    registry.down.set()
    events = Events(manager)
    assert events.next(Trouble).cause == "registry-unavailable"
    registry.down.clear()
    events.next(PeersReset)


def test_renewal_survives_an_outage(world: World) -> None:
    registry = Gated(world.path)
    manager = world.manager(registry=registry, ttl=30, renew_margin=29.8)
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    registry.cut()
    events.next(Trouble)
    renewals = manager.counters["renewals"]
    registry.down.clear()
    wait_until(lambda: manager.counters["renewals"] > renewals, "a renewal after the outage")


def test_config_changes_are_told_once_with_their_problem(world: World) -> None:
    manager = world.manager()
    manager.config()
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    world.admin.write_config(CONFIG)  # the same text is no change
    world.admin.write_config('{"Network":"10.5.0.0/16","SubnetLen":31}')
    changed = events.next(ConfigChanged)
    assert changed.config is None
    assert "SubnetLen" in changed.problem
    world.admin.write_config('{"Network":"10.6.0.0/16"}')
    changed = events.next(ConfigChanged)
    assert changed.config is not None
    assert changed.config.network == IPv4Network("10.6.0.0/16")
    assert changed.problem == ""
    assert [event for event in events.seen if isinstance(event, ConfigChanged)] == [events.seen[-2], changed]
    # The old one is in use until config() is called again.
    manager.release()
    lease = manager.acquire(attrs("1.1.1.1"))
    assert lease.subnet is not None
    assert lease.subnet.subnet_of(IPv4Network("10.5.0.0/16"))
    manager.config()
    lease = manager.acquire(attrs("1.1.1.1"))
    assert lease.subnet is not None
    assert lease.subnet.subnet_of(IPv4Network("10.6.0.0/16"))


def test_a_config_changed_before_events_is_told(world: World) -> None:
    manager = world.manager()
    manager.config()
    world.admin.write_config(json.dumps({"Network": "10.7.0.0/16"}))
    assert Events(manager).next(ConfigChanged).config is not None


@pytest.mark.parametrize("prepare", [Gated.check, Gated.cut])
def test_close_ends_the_thread_within_a_second(world: World, prepare: Callable[[Gated], None]) -> None:
    before = threading.active_count()
    registry = Gated(world.path)
    manager = world.manager(registry=registry)
    manager.acquire(attrs("1.1.1.1"))
    Events(manager).next(PeersReset)
    prepare(registry)
    began = time.monotonic()
    manager.close()
    assert time.monotonic() - began < 1.0
    assert threading.active_count() == before
    manager.close()
