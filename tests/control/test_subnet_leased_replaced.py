"""The leased subnet manager when its registry comes back as another one: made anew, or restored from a backup."""

import contextlib
import threading
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_udp.registry import Listing
from flannel_udp.registry.sqlite import SqliteRegistry
from flannel_udp.subnet import OwnLeaseChanged, OwnLeaseLost, PeersChanged, PeersReset, SubnetEvent, Trouble
from flannel_udp.subnet.leased import LeasedSubnetManager
from tests.conftest import wait_until
from tests.control.leased_world import Events, World, attrs

AGES = 1e6  # a grace that no test sees the end of


def joined(world: World, number: int, grace: float = AGES) -> tuple[LeasedSubnetManager, Events]:
    """A node with a lease, and its events after the first."""
    manager = world.manager(previous=(IPv4Network(f"10.5.{number}.0/24"), None), grace=grace)
    manager.config()
    manager.acquire(attrs(f"{number}.{number}.{number}.{number}"))
    events = Events(manager)
    events.next(PeersReset)
    return manager, events


def anew(path: Path, *leases: tuple[str, str]) -> Path:
    """A registry with another history."""
    with contextlib.closing(World(path)) as world:
        for key, ip in leases:
            world.lease(key, ip)
    return path


def troubles(events: list[SubnetEvent]) -> list[str]:
    return [event.cause for event in events if isinstance(event, Trouble)]


def test_nodes_come_back_to_a_new_registry_and_no_peer_is_dropped(world: World, tmp_path: Path) -> None:
    one, events = joined(world, 1)
    two, others = joined(world, 2)
    assert [lease.key for lease in events.next(PeersChanged).put] == ["10.5.2.0-24"]
    world.become(anew(tmp_path / "new.db"))
    assert "10.5.1.0-24" in events.next(OwnLeaseLost).reason
    others.next(OwnLeaseLost)
    assert one.acquire(attrs("1.1.1.1")).key == "10.5.1.0-24"
    assert two.acquire(attrs("2.2.2.2")).key == "10.5.2.0-24"
    world.lease("10.5.3.0-24", "3.3.3.3")
    for seen in (events, others):
        while not [lease for lease in seen.next(PeersChanged).put if lease.key == "10.5.3.0-24"]:
            pass
        assert [event for event in seen.seen if isinstance(event, PeersChanged) and event.deleted] == []
    assert "registry-replaced" in troubles(events.seen)
    assert sorted(world.keys()) == ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"]


def test_peers_that_do_not_come_back_are_dropped_after_their_grace(world: World, tmp_path: Path) -> None:
    for number in (2, 3, 4):
        world.lease(f"10.5.{number}.0-24", f"{number}.{number}.{number}.{number}")
    manager, events = joined(world, 1, grace=0.2)
    world.become(anew(tmp_path / "new.db", ("10.5.3.0-24", "3.3.3.3"), ("10.5.4.0-24", "44.4.4.4")))
    changed = events.next(PeersChanged)
    assert ([lease.attrs for lease in changed.put], changed.deleted) == ([attrs("44.4.4.4")], ())
    assert [type(event) for event in events.seen].count(OwnLeaseLost) == 1
    manager.acquire(attrs("1.1.1.1"))
    changed = events.next(PeersChanged)
    assert (changed.put, [lease.key for lease in changed.deleted]) == ((), ["10.5.2.0-24"])


def test_a_new_registry_whose_count_is_ahead_is_known_by_the_missing_lease(world: World, tmp_path: Path) -> None:
    world.lease("10.5.2.0-24", "2.2.2.2")
    manager, events = joined(world, 1)
    leases = [(f"10.5.{number}.0-24", f"9.9.9.{number}") for number in range(100, 120)]
    world.become(anew(tmp_path / "new.db", *leases))
    changed = events.next(PeersChanged)
    assert (len(changed.put), changed.deleted) == (20, ())
    assert any(isinstance(event, OwnLeaseLost) for event in events.seen)
    assert manager.acquire(attrs("1.1.1.1")).key == "10.5.1.0-24"


@pytest.mark.parametrize("ttl", [None, 100.0])
def test_a_lease_in_a_restored_backup_is_kept_and_written_anew(world: World, tmp_path: Path, ttl: float | None) -> None:
    world.lease("10.5.1.0-24", "1.1.1.1", ttl)
    manager, events = joined(world, 1)
    backup = world.copy(tmp_path / "backup.db")
    world.lease("10.5.2.0-24", "2.2.2.2")
    events.next(PeersChanged)
    manager.update(attrs("1.1.1.1"))
    world.become(backup)
    wait_until(lambda: manager.counters["renewals"], "it is written anew")
    assert (world.entry("10.5.1.0-24").expiry is None) == (ttl is None)
    manager.update(attrs("1.1.1.1"))
    world.lease("10.5.3.0-24", "3.3.3.3")
    events.next(PeersChanged)
    assert not [event for event in events.seen if isinstance(event, OwnLeaseLost | OwnLeaseChanged)]
    assert set(troubles(events.seen)) <= {"registry-unavailable", "registry-replaced", "registry-recovered"}


def test_a_lease_that_is_anothers_in_a_restored_backup_is_lost(world: World, tmp_path: Path) -> None:
    entry = world.lease("10.5.1.0-24", "9.9.9.9")
    backup = world.copy(tmp_path / "backup.db")
    world.admin.delete(entry.key, entry.revision)
    manager, events = joined(world, 1)
    world.become(backup)
    assert "9.9.9.9" in events.next(OwnLeaseLost).reason
    assert [lease.attrs for lease in events.next(PeersChanged).put] == [attrs("9.9.9.9")]
    assert manager.acquire(attrs("1.1.1.1")).key != "10.5.1.0-24"


def test_an_acquisition_beside_a_snapshot_is_not_judged_by_it(world: World) -> None:
    class Slow(SqliteRegistry):
        """Between its first snapshot and the answer somebody else has time to write."""

        beside: threading.Thread | None = None

        def snapshot(self) -> Listing:
            listing = super().snapshot()
            beside, self.beside = self.beside, None
            if beside:
                beside.start()
                beside.join(0.2)
            return listing

    registry = Slow(world.path)
    manager = world.manager(registry=registry, previous=(IPv4Network("10.5.1.0/24"), None))
    registry.beside = thread = threading.Thread(target=manager.acquire, args=[attrs("1.1.1.1")])
    events = Events(manager)
    events.next(PeersReset)
    thread.join()
    world.lease("10.5.2.0-24", "2.2.2.2")
    events.next(PeersChanged)
    assert [type(event) for event in events.seen] == [PeersReset, PeersChanged]
    assert manager.update(attrs("1.1.1.1")).key == "10.5.1.0-24"
