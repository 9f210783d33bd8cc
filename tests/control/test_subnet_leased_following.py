"""The leased subnet manager over a real registry: following peers, and doing without the registry."""

import json
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest

from flannel_udp.errors import Fault
from flannel_udp.lease import encode_attrs
from flannel_udp.registry.sqlite import SqliteRegistry, SqliteWatch
from flannel_udp.subnet import (
    ConfigChanged,
    PeersChanged,
    PeersReset,
    Trouble,
)
from tests.conftest import wait_until
from tests.control.leased_world import CONFIG, Events, Gated, World, attrs

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


HOSTILE = ["10.5.52.0-" + "9" * 5000, "10.5.8.0-24", "1." + "1" * 5000, "\x00\n\x1b[2J", "&" * 300, ""]


def test_hostile_keys_touch_no_peer_and_do_not_end_the_following(world: World) -> None:
    deep = b'{"PublicIP":"8.8.8.8","BackendData":' + b"[" * 900 + b"]" * 900 + b"}"
    for key in HOSTILE[::2]:
        world.put(key, deep)
    events = Events(world.manager())
    events.next(PeersReset)
    for key in HOSTILE[1::2]:
        world.put(key, deep)
    world.lease("10.5.3.0-24", "3.3.3.3")
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.3.0-24"]
    world.overwrite("10.5.8.0-24", deep.replace(b"900", b"901"))
    world.lease("10.5.4.0-24", "4.4.4.4")
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.4.0-24"]
    troubles = [event for event in [*events.seen, *events.drain()] if isinstance(event, Trouble)]
    assert {event.cause for event in troubles} == {"skipped-key"}
    assert len(troubles) == len(HOSTILE)
    assert max(len(event.detail) for event in troubles) < 200


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


def test_a_registry_that_refuses_to_renew_is_still_followed(world: World) -> None:
    registry = Gated(world.path)
    manager = world.manager(registry=registry, ttl=30, renew_margin=29.8)
    manager.acquire(attrs("1.1.1.1"))
    registry.full.set()
    events = Events(manager)
    wait_until(lambda: registry.refusals, "a renewal is refused")
    other = world.manager().acquire(attrs("2.2.2.2"))
    events.next(PeersReset)
    assert events.next(Trouble).cause == "renewal-refused"
    assert [lease.subnet for lease in events.next(PeersChanged).put] == [other.subnet]
    assert manager.counters["resyncs"] == 1
    registry.full.clear()
    assert events.next(Trouble).detail == "the lease is renewed again"


def test_config_changes_are_told_once_with_their_problem(world: World) -> None:
    manager = world.manager()
    manager.config()
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    for text in (CONFIG, CONFIG + "\n", CONFIG.replace(":", " : ")):
        world.admin.write_config(text)  # the same, whatever its text, is no change
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


def test_the_thread_does_not_end_unseen(world: World) -> None:
    class Broken(SqliteRegistry):
        def watch(self, after: int) -> SqliteWatch:
            raise ZeroDivisionError(after)

    events = Events(world.manager(registry=Broken(world.path)))
    fault = events.next(Fault)
    assert fault.thread == "subnet-manager"
    assert isinstance(fault.error, ZeroDivisionError)


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
