"""The life of a lease: races of many, answers that got lost, deletions of many, and addresses that change."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flannel_udp.errors import LeaseError, RegistryUnavailable
from flannel_udp.lease import LeaseAttrs, encode_attrs
from flannel_udp.registry import Entry, Registry, open_registry
from flannel_udp.registry.sqlite import SqliteRegistry
from flannel_udp.subnet import OwnLeaseChanged, OwnLeaseLost, OwnLeaseRenewed, PeersChanged, PeersReset, Trouble
from flannel_udp.subnet.leased import LeasedSubnetManager
from tests.conftest import wait_until
from tests.control.leased_world import CONFIG, Events, World, attrs
from tests.interop.etcd_cluster import VERSIONS, Cluster, cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flannel_udp.etcd_options import EtcdOptions

V6 = '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}'
DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}'
NODES = 50
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["sqlite", *VERSIONS])
def store(request: pytest.FixtureRequest) -> Iterator[Cluster | None]:
    if request.param == "sqlite":
        yield None
        return
    with cluster(request.param) as running:
        yield running


@pytest.fixture
def place(store: Cluster | None, tmp_path: Path) -> tuple[str, EtcdOptions | None]:
    """One and the same registry, as a URL and options."""
    return (f"sqlite://{tmp_path}/registry.db", None) if store is None else ("etcd://", store.options())


@pytest.fixture
def managers(place: tuple[str, EtcdOptions | None]) -> Iterator[Callable[..., LeasedSubnetManager]]:
    made: list[LeasedSubnetManager] = []

    def make(**options: object) -> LeasedSubnetManager:
        made.append(LeasedSubnetManager(open_registry(place[0], etcd=place[1]), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def admin(place: tuple[str, EtcdOptions | None]) -> Iterator[Registry]:
    with closing(open_registry(place[0], etcd=place[1])) as registry:
        yield registry


def test_fifty_nodes_at_once_get_fifty_subnets(place: tuple[str, EtcdOptions | None], admin: Registry) -> None:
    """Processes that choose by the same random numbers; no family is given away twice."""
    admin.write_config(DUAL)
    done = subprocess.run([sys.executable, "-P", "-m", "tests.control.racers", str(NODES)], input=pickle.dumps(place),
                          stdout=subprocess.PIPE, check=True, timeout=180, cwd=ROOT, env={**os.environ,
                                                                                          "PYTHONPATH": str(ROOT)})
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {number for number, *_ in told} == set(range(1, NODES + 1))
    assert len({subnet for _, subnet, _ in told}) == NODES, told
    assert len({subnet for *_, subnet in told}) == NODES
    leases = {entry.key: entry.value for entry in admin.snapshot().entries}
    assert leases == {f"{v4}&{v6}".replace("/", "-"): encode_attrs(attrs(f"192.0.2.{number}"))
                      for number, v4, v6 in told}


def test_ipv6_only_leases_are_told_apart_by_their_ipv6_addresses(
        admin: Registry, managers: Callable[..., LeasedSubnetManager]) -> None:
    admin.write_config(V6)
    taken = {}
    for number in (1, 2):
        manager = managers()
        manager.config()
        taken[number] = manager.acquire(LeaseAttrs(None, IPv6Address(f"2001:db8::{number}")))
    assert taken[1].ipv6_subnet != taken[2].ipv6_subnet
    assert all(lease.key == f"0.0.0.0-0&{lease.ipv6_subnet}".replace("/", "-") for lease in taken.values())
    assert sorted(entry.key for entry in admin.snapshot().entries) == sorted(lease.key for lease in taken.values())
    again = managers()
    again.config()
    assert again.acquire(LeaseAttrs(None, IPv6Address("2001:db8::1"))).key == taken[1].key
    events = Events(again)
    assert [lease.key for lease in events.next(PeersReset).leases] == [taken[2].key]
    assert isinstance(taken[1].ipv6_subnet, IPv6Network)


def joined(managers: Callable[..., LeasedSubnetManager], ip: str, **options: object,
           ) -> tuple[LeasedSubnetManager, Events]:
    manager = managers(**options)
    manager.config()
    manager.acquire(attrs(ip))
    events = Events(manager)
    events.next(PeersReset)
    return manager, events


def delete(admin: Registry, key: str) -> None:
    entry = next(entry for entry in admin.snapshot().entries if entry.key == key)
    admin.delete(key, entry.revision)


def test_a_lost_lease_is_taken_again_or_another_where_it_is_gone(
        admin: Registry, managers: Callable[..., LeasedSubnetManager]) -> None:
    admin.write_config(CONFIG)
    manager, events = joined(managers, "1.1.1.1")
    first = manager.update(attrs("1.1.1.1"))
    delete(admin, first.key)
    assert "expired or was deleted" in events.next(OwnLeaseLost).reason
    assert manager.acquire(attrs("1.1.1.1")).key == first.key
    delete(admin, first.key)
    events.next(OwnLeaseLost)
    admin.create(first.key, encode_attrs(attrs("9.9.9.9")), None, admin.snapshot().revision)
    second = manager.acquire(attrs("1.1.1.1"))
    assert second.key != first.key
    assert {entry.key for entry in admin.snapshot().entries} == {first.key, second.key}
    heir = next(entry for entry in admin.snapshot().entries if entry.key == second.key)
    admin.update(second.key, encode_attrs(attrs("8.8.8.8")), 100.0, heir.revision)
    assert "belongs to 8.8.8.8 now" in events.next(OwnLeaseLost).reason


def test_another_address_keeps_the_lease_and_makes_old_leases_of_it_no_peers(
        admin: Registry, managers: Callable[..., LeasedSubnetManager]) -> None:
    admin.write_config(CONFIG)
    old = "10.5.77.0-24"
    admin.create(old, encode_attrs(attrs("7.7.7.7")), 100.0, admin.snapshot().revision)
    manager, events = joined(managers, "1.1.1.1")
    _, others = joined(managers, "2.2.2.2")
    lease = manager.update(attrs("7.7.7.7"))
    changed = others.next(PeersChanged)
    assert [(one.key, one.attrs) for one in changed.put] == [(lease.key, attrs("7.7.7.7"))]
    wait_until(lambda: events.drain() and "second lease" in manager.skipped.get(old, ""), "it is no peer any more")
    assert not [event for event in events.seen if isinstance(event, OwnLeaseLost | OwnLeaseChanged)]


def test_a_reservation_goes_before_the_lease_that_a_node_had(
        admin: Registry, managers: Callable[..., LeasedSubnetManager]) -> None:
    admin.write_config(CONFIG)
    manager, _ = joined(managers, "1.1.1.1")
    had = manager.update(attrs("1.1.1.1"))
    admin.create("10.5.200.0-24", encode_attrs(attrs("1.1.1.1")), None, admin.snapshot().revision)
    again = managers(previous=(had.subnet, None))
    again.config()
    lease = again.acquire(attrs("1.1.1.1"))
    assert (lease.key, lease.expiry) == ("10.5.200.0-24", None)


def test_a_subnet_reserved_for_nobody_is_not_given_away_and_no_peer(
        admin: Registry, managers: Callable[..., LeasedSubnetManager]) -> None:
    admin.write_config('{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}')
    admin.create("10.5.1.0-24", encode_attrs(LeaseAttrs(None)), None, admin.snapshot().revision)
    manager = managers()
    manager.config()
    assert manager.acquire(attrs("1.1.1.1")).key == "10.5.2.0-24"
    events = Events(manager)
    assert events.next(PeersReset).leases == ()
    assert manager.skipped == {}


class Deaf(SqliteRegistry):
    """Does what it is asked to write, and loses the answer so many times."""

    losses = 0

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        entry = super().update(key, value, ttl, expected)
        if self.losses:
            self.losses -= 1
            raise RegistryUnavailable("the answer got lost")
        return entry


@pytest.mark.parametrize("ttl", [2.0, None])
def test_a_write_whose_answer_got_lost_is_not_taken_for_another_hands(world: World, ttl: float | None) -> None:
    if ttl is None:
        world.lease("10.5.1.0-24", "1.1.1.1", None)
    registry = Deaf(world.path)
    manager = world.manager(registry=registry, ttl=2.0, renew_margin=1.9)
    manager.config()
    lease = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    if ttl:
        registry.losses = 1
        wait_until(lambda: not registry.losses, "a renewal was done, and its answer lost")
        events.next(OwnLeaseRenewed)
    else:
        registry.losses = 1
        with pytest.raises(RegistryUnavailable):
            manager.update(attrs("7.7.7.7"))
        assert manager.update(attrs("7.7.7.7")).key == lease.key
    world.lease("10.5.2.0-24", "2.2.2.2")
    events.next(PeersChanged)
    assert not [event for event in events.seen if isinstance(event, OwnLeaseChanged | OwnLeaseLost)]
    assert "own-lease-shared" not in [event.cause for event in events.seen if isinstance(event, Trouble)]
    # The next write by another hand is one.
    world.overwrite(lease.key, encode_attrs(manager.update(attrs("7.7.7.7")).attrs), ttl and 100.0)
    changed = events.next(OwnLeaseChanged).lease
    assert changed.key == lease.key
    assert changed.expiry is None if ttl is None else 0 < (changed.expiry or 0) < math.inf, "etcd's events tell none"


def test_leases_deleted_with_the_own_one_stand_for_a_while(world: World) -> None:
    for number in (2, 3):
        world.lease(f"10.5.{number}.0-24", f"{number}.{number}.{number}.{number}")
    manager = world.manager(grace=2.0)
    manager.config()
    own = manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    assert len(events.next(PeersReset).leases) == 2
    for key in (own.key, "10.5.2.0-24", "10.5.3.0-24"):
        entry = world.entry(key)
        world.admin.delete(key, entry.revision)
    events.next(OwnLeaseLost)
    manager.acquire(attrs("1.1.1.1"))
    world.lease("10.5.2.0-24", "22.2.2.2")
    changed = events.next(PeersChanged)
    assert ([lease.attrs for lease in changed.put], changed.deleted) == ([attrs("22.2.2.2")], ())
    assert any(isinstance(event, Trouble) and event.cause == "leases-deleted" for event in events.seen)
    changed = events.next(PeersChanged)
    assert (changed.put, [lease.key for lease in changed.deleted]) == ((), ["10.5.3.0-24"])
    entry = world.entry("10.5.2.0-24")
    world.admin.delete(entry.key, entry.revision)
    assert [lease.key for lease in events.next(PeersChanged).deleted] == ["10.5.2.0-24"]  # the grace is over


def test_an_own_address_is_no_ipv4_one(world: World) -> None:
    with pytest.raises(LeaseError):
        world.manager().update(LeaseAttrs(IPv4Address("1.1.1.1")))
