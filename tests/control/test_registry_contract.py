"""What every registry must do, whatever it is made of: one suite, parametrised over the registries there are."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import Compacted, Conflict, NoConfig, RegistryUnavailable, UsageError
from flannel_udp.registry import UNTOLD, Change, Registry, Watch, open_registry
from tests.interop.etcd_cluster import VERSIONS, Cluster, cluster

Opener = Callable[[], Registry]
SOON = 20.0  # a generous deadline for what happens at once
# Name, version and size of the clusters to be asked for.
CLUSTERS = {f"{size} of {version}": (version, size) for version in VERSIONS for size in (1, 3)}


@pytest.fixture(scope="module", params=["sqlite", *CLUSTERS])
def store(request: pytest.FixtureRequest) -> Iterator[Cluster | None]:
    """What the registries of one kind live in; one etcd serves all tests, each below a prefix of its own."""
    if request.param == "sqlite":
        yield None
        return
    version, size = CLUSTERS[request.param]
    with cluster(version, size) as running:
        yield running


@pytest.fixture
def opener(store: Cluster | None, tmp_path: Path) -> Opener:
    """Opens one and the same fresh registry again and again."""
    if store is None:
        return lambda: open_registry(f"sqlite://{tmp_path}/registry.db")
    options = store.options()
    return lambda: open_registry("etcd://", etcd=options)


@pytest.fixture
def registry(opener: Opener) -> Iterator[Registry]:
    registry = opener()
    yield registry
    registry.close()


@pytest.fixture
def other(opener: Opener) -> Iterator[Registry]:
    """Another client of the same registry."""
    registry = opener()
    yield registry
    registry.close()


def put(registry: Registry, key: str, value: bytes = b"{}", ttl: float | None = 100.0) -> int:
    return registry.create(key, value, ttl, registry.snapshot().revision).revision


def collect(watch: Watch, count: int) -> list[Change]:
    changes: list[Change] = []
    deadline = time.monotonic() + SOON
    while len(changes) < count and time.monotonic() < deadline:
        changes += watch.wait(1.0)
    return changes


def test_config_is_absent_then_read_then_replaced(registry: Registry, other: Registry) -> None:
    with pytest.raises(NoConfig):
        registry.read_config()
    first = registry.write_config('{"Network":"10.5.0.0/16"}')
    stored = other.read_config()
    assert (stored.text, stored.revision) == ('{"Network":"10.5.0.0/16"}', first)
    second = other.write_config("{}")
    assert second > first
    assert registry.read_config().text == "{}"


def test_config_is_written_by_compare_and_swap(registry: Registry) -> None:
    first = registry.write_config("one", expected=0)
    with pytest.raises(Conflict):
        registry.write_config("two", expected=0)
    second = registry.write_config("two", expected=first)
    with pytest.raises(Conflict):
        registry.write_config("three", expected=first)
    assert registry.read_config().revision == second


def test_snapshot_holds_what_was_created(registry: Registry, other: Registry) -> None:
    assert registry.snapshot().entries == ()
    before = time.time()
    one = put(registry, "10.5.1.0-24", b'{"PublicIP":"1.2.3.4"}', 50)
    two = put(registry, "10.5.0.0-24", b"\x00\xff", None)
    listing = other.snapshot()
    assert [entry.key for entry in listing.entries] == ["10.5.0.0-24", "10.5.1.0-24"]
    assert [entry.value for entry in listing.entries] == [b"\x00\xff", b'{"PublicIP":"1.2.3.4"}']
    assert [entry.revision for entry in listing.entries] == [two, one]
    assert listing.revision == two
    assert listing.entries[0].expiry is None
    assert listing.entries[1].expiry is not None  # if only that there is one
    assert other.expiry("10.5.0.0-24") is None
    expiry = other.expiry("10.5.1.0-24")
    assert expiry is not None
    assert before + 48 <= expiry <= time.time() + 51
    assert listing.entries[1].expiry in {UNTOLD, expiry}


def test_create_fails_when_anything_below_subnets_is_newer(registry: Registry, other: Registry) -> None:
    since = registry.snapshot().revision
    put(other, "10.5.9.0-24")
    with pytest.raises(Conflict):
        registry.create("10.5.1.0-24", b"{}", 100, since)
    since = registry.snapshot().revision
    other.write_config("{}")  # not below subnets/
    assert registry.create("10.5.1.0-24", b"{}", 100, since).key == "10.5.1.0-24"


def test_create_fails_after_a_renewal_of_another(registry: Registry) -> None:
    revision = put(registry, "10.5.9.0-24")
    since = registry.snapshot().revision
    registry.update("10.5.9.0-24", b"{}", 100, revision)
    with pytest.raises(Conflict):
        registry.create("10.5.1.0-24", b"{}", 100, since)


def test_create_fails_on_a_standing_key(registry: Registry) -> None:
    put(registry, "10.5.1.0-24")
    with pytest.raises(Conflict):
        put(registry, "10.5.1.0-24")


def test_the_expiry_of_what_is_gone_is_a_conflict(registry: Registry) -> None:
    with pytest.raises(Conflict):
        registry.expiry("10.5.1.0-24")


def test_expiries_of_many_are_told_at_once(registry: Registry, other: Registry) -> None:
    for number in range(40):
        put(registry, f"10.5.{number}.0-24", ttl=100.0 if number % 2 else None)
    keys = [f"10.5.{number}.0-24" for number in range(38)]
    told = other.expiries([*keys, "10.5.99.0-24"])  # the last is nobody's
    assert sorted(told) == sorted(keys)
    for number, key in enumerate(keys):
        expiry = told[key]
        assert (expiry is not None) == number % 2
        assert expiry is None or 0 < expiry - time.time() <= 101
    assert registry.expiries([]) == {}


def test_what_is_written_tells_its_expiry(registry: Registry) -> None:
    before = time.time()
    entry = registry.create("10.5.1.0-24", b"{}", 100, registry.snapshot().revision)
    for written in (entry, registry.update("10.5.1.0-24", b"{}", 100, entry.revision)):
        assert written.expiry is not None
        assert before + 100 <= written.expiry <= time.time() + 101


def test_update_and_delete_compare_the_revision(registry: Registry, other: Registry) -> None:
    first = put(registry, "10.5.1.0-24", b"1")
    second = other.update("10.5.1.0-24", b"2", 100, first).revision
    assert second > first
    with pytest.raises(Conflict):
        registry.update("10.5.1.0-24", b"3", 100, first)
    with pytest.raises(Conflict):
        registry.delete("10.5.1.0-24", first)
    assert registry.snapshot().entries[0].value == b"2"
    assert registry.delete("10.5.1.0-24", second) > second
    assert registry.snapshot().entries == ()
    for call in (lambda: registry.update("10.5.1.0-24", b"4", 100, second), lambda: registry.delete("x", 1)):
        with pytest.raises(Conflict):
            call()


def test_time_to_live_ends_and_update_prolongs_it(registry: Registry, other: Registry) -> None:
    put(registry, "10.5.1.0-24", ttl=0.3)
    kept = registry.update("10.5.2.0-24", b"{}", 100, put(registry, "10.5.2.0-24", ttl=0.3))
    reserved = registry.update("10.5.3.0-24", b"{}", None, put(registry, "10.5.3.0-24", ttl=0.3))
    assert kept.expiry is not None
    assert reserved.expiry is None
    deadline = time.monotonic() + SOON
    while len(other.snapshot().entries) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [entry.key for entry in other.snapshot().entries] == ["10.5.2.0-24", "10.5.3.0-24"]


def test_watch_tells_changes_in_order_and_once(registry: Registry, other: Registry) -> None:
    since = registry.snapshot().revision
    watch = registry.watch(since)
    first = put(other, "10.5.1.0-24", b"1")
    config = other.write_config("text")
    second = other.update("10.5.1.0-24", b"2", 100, first)
    deleted = registry.delete("10.5.1.0-24", second.revision)  # one's own changes are told too
    changes = collect(watch, 4)
    assert [change.kind for change in changes] == ["put", "config", "put", "delete"]
    assert [change.revision for change in changes] == [first, config, second.revision, deleted]
    assert [change.value for change in changes] == [b"1", b"text", b"2", b""]
    assert [change.key for change in changes] == ["10.5.1.0-24", "", "10.5.1.0-24", "10.5.1.0-24"]
    assert changes[2].expiry in {UNTOLD, second.expiry}
    assert watch.wait(0.05) == ()
    watch.close()


def test_watch_resumes_after_any_kept_revision(registry: Registry) -> None:
    revisions = [put(registry, f"10.5.{n}.0-24") for n in range(5)]
    watch = registry.watch(revisions[1])
    assert [change.revision for change in collect(watch, 3)] == revisions[2:]
    watch.close()


def test_watch_tells_of_an_expiry(registry: Registry) -> None:
    watch = registry.watch(registry.snapshot().revision)
    entry = registry.create("10.5.1.0-24", b"{}", 0.5, registry.snapshot().revision)
    changes = collect(watch, 2)
    assert [(change.kind, change.key) for change in changes] == [("put", "10.5.1.0-24"), ("delete", "10.5.1.0-24")]
    assert changes[1].revision > entry.revision
    watch.close()


def test_compaction_is_told_and_a_snapshot_heals_it(registry: Registry, other: Registry) -> None:
    old = registry.snapshot().revision
    idle = registry.watch(old)
    put(registry, "10.5.9.0-24")
    new = put(registry, "10.5.1.0-24")
    assert collect(idle, 2)[1].revision == new
    other.compact(new)
    late = registry.watch(old)
    with pytest.raises(Compacted):
        collect(late, 1)
    late.close()
    fresh = registry.watch(registry.snapshot().revision)
    after = put(other, "10.5.2.0-24")
    assert [change.revision for change in collect(fresh, 1)] == [after]
    assert [change.revision for change in collect(idle, 1)] == [after]  # what had been read did not matter to it
    fresh.close()
    idle.close()


def test_watch_from_the_future_is_compacted(registry: Registry) -> None:
    """A registry made anew under a watcher's feet: its revisions say nothing about this one's."""
    watch = registry.watch(registry.snapshot().revision + 1000)
    with pytest.raises(Compacted):
        collect(watch, 1)
    watch.close()


def test_cancel_ends_a_wait_from_another_thread(registry: Registry) -> None:
    watch = registry.watch(registry.snapshot().revision)
    timer = threading.Timer(0.2, watch.cancel)
    timer.start()
    began = time.monotonic()
    assert watch.wait(60) == ()
    assert time.monotonic() - began < SOON
    assert watch.wait(60) == ()
    timer.join()
    watch.close()


def test_close_ends_watches_and_later_calls(registry: Registry) -> None:
    watch = registry.watch(registry.snapshot().revision)
    timer = threading.Timer(0.2, registry.close)
    timer.start()
    with pytest.raises(RegistryUnavailable):
        watch.wait(60)
    timer.join()
    registry.close()
    with pytest.raises(RegistryUnavailable):
        registry.snapshot()
    watch.close()


def test_calls_from_several_threads(registry: Registry) -> None:
    def work(number: int) -> None:
        for step in range(10):
            while True:
                try:
                    put(registry, f"10.{number}.{step}.0-24")
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listing = registry.snapshot()
    assert len(listing.entries) == 40
    assert len({entry.revision for entry in listing.entries}) == 40


@pytest.mark.parametrize("bad", ["etcd-x://host", "/var/lib/x.db", "", "sqlite:/x", "etcd:"])
def test_unknown_schemes_are_named(bad: str) -> None:
    with pytest.raises(UsageError, match="sqlite://"):
        open_registry(bad)
