"""The watch of etcd through everything that befalls a server: each change once, in order, and none of it for free."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from flannel_udp.errors import Compacted, RegistryUnavailable
from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.registry import Change
from flannel_udp.registry.etcd import EtcdRegistry
from flannel_udp.registry.etcd_watch import EtcdWatch
from tests.conftest import DEADLINE, wait_until
from tests.interop.etcd_cluster import VERSIONS, Cluster, cluster
from tests.interop.tcp_proxy import Proxy, proxy

KEY = "10.5.1.0-24"


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(version: str) -> Iterator[Cluster]:
    with cluster(version) as running:
        yield running


@pytest.fixture
def options(store: Cluster) -> EtcdOptions:
    return store.options()


@pytest.fixture
def registry(options: EtcdOptions) -> Iterator[EtcdRegistry]:
    with contextlib.closing(EtcdRegistry(options)) as registry:
        yield registry


class Writer:
    """A thread that counts up in one key; a value is written only after the one before, so that no change is missing
    unseen."""

    def __init__(self, options: EtcdOptions) -> None:
        self.registry = EtcdRegistry(options)
        entry = self.registry.create(KEY, b"0", None, self.registry.snapshot().revision)
        self.revision, self.count = entry.revision, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.registry.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(RegistryUnavailable):
                value = str(self.count + 1).encode()
                try:
                    self.revision = self.registry.update(KEY, value, None, self.revision).revision
                except RegistryUnavailable:  # perhaps it was done
                    (entry,) = self.registry.snapshot().entries
                    self.revision, self.count = entry.revision, int(entry.value)
                    continue
                self.count += 1


class Reader:
    """A thread that reads a watch, whatever it raises."""

    def __init__(self, watch: EtcdWatch) -> None:
        self.watch = watch
        self.changes: list[Change] = []
        self.problems: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.changes += self.watch.wait(0.1)
            except (RegistryUnavailable, Compacted) as error:
                self.problems.append(error)
                self._stop.wait(0.05)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.watch.close()

    @property
    def last(self) -> int:
        return int(self.changes[-1].value) if self.changes else 0


def test_trap_03_five_restarts_under_a_writer_lose_and_double_nothing(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    (member,) = store.members
    with Writer(options) as writer:
        reader = Reader(registry.watch(writer.revision))
        try:
            for _ in range(5):
                seen = reader.last
                wait_until(lambda seen=seen: reader.last > seen + 20, "changes come")  # type: ignore[misc]
                member.kill()
                member.start()
            seen = reader.last
            wait_until(lambda: reader.last > seen + 20, "changes come after the last restart too")
            writer._stop.set()
            writer._thread.join()
            wait_until(lambda: reader.last == writer.count, "the last change")
        finally:
            reader.close()
    assert [int(change.value) for change in reader.changes] == list(range(1, writer.count + 1))
    assert not [problem for problem in reader.problems if isinstance(problem, Compacted)]


@pytest.fixture
def road(store: Cluster) -> Iterator[Proxy]:
    with proxy(store.members[0].address, 2379) as between:
        yield between


@pytest.fixture
def far(options: EtcdOptions, road: Proxy) -> Iterator[EtcdRegistry]:
    """The registry as it is seen through a proxy."""
    endpoint = Endpoint("127.0.0.1", road.port, False)
    with contextlib.closing(EtcdRegistry(EtcdOptions(endpoints=(endpoint,), prefix=options.prefix))) as registry:
        yield registry


def write(registry: EtcdRegistry, count: int) -> list[int]:
    """Make so many changes; their revisions."""
    revisions = [registry.create(KEY, b"0", None, registry.snapshot().revision).revision]
    for number in range(1, count):
        revisions.append(registry.update(KEY, b"%d" % number, None, revisions[-1]).revision)
    return revisions


def test_a_backlog_that_comes_in_parts_is_resumed_after_the_part_that_came(
    registry: EtcdRegistry, far: EtcdRegistry, road: Proxy
) -> None:
    """etcd sends a thousand changes at a time, under the revision that it stands at already."""
    start = registry.snapshot().revision
    revisions = write(registry, 2500)
    watch = far.watch(start)
    changes = list(watch.wait(DEADLINE))
    road.cut()
    cut_at = len(changes)
    deadline = time.monotonic() + DEADLINE
    while len(changes) < len(revisions) and time.monotonic() < deadline:
        changes += watch.wait(1)
    assert [change.revision for change in changes] == revisions
    assert cut_at < len(revisions)
    watch.close()


def test_compaction_while_disconnected_is_told_once_and_a_snapshot_heals_it(
    registry: EtcdRegistry, far: EtcdRegistry, road: Proxy
) -> None:
    watch = far.watch(registry.snapshot().revision)
    first, *_ = revisions = write(registry, 3)
    changes: list[Change] = []
    wait_until(lambda: changes.extend(watch.wait(0.1)) or len(changes) == 3, "the changes before")  # type: ignore[func-returns-value]
    assert changes[0].revision == first
    road.closed = True
    road.cut()
    for number in range(5):
        revisions.append(registry.update(KEY, b"%d" % number, None, revisions[-1]).revision)
    registry.compact(revisions[-1])
    road.closed = False
    with pytest.raises(Compacted):
        wait_for_news(watch)
    watch.close()
    listing = far.snapshot()
    assert [entry.revision for entry in listing.entries] == [revisions[-1]]
    after = far.watch(listing.revision)
    newest = registry.update(KEY, b"x", None, revisions[-1]).revision
    assert [change.revision for change in wait_for_news(after)] == [newest]
    after.close()


def wait_for_news(watch: EtcdWatch) -> tuple[Change, ...]:
    """Wait through outages."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with contextlib.suppress(RegistryUnavailable):
            if changes := watch.wait(1):
                return changes
    return ()


def test_progress_keeps_an_idle_watch_ahead_of_compaction(version: str) -> None:
    name = "experimental-watch-progress-notify-interval" if version == "debian" else "watch-progress-notify-interval"
    with cluster(version, 1, f"--{name}=100ms") as store, proxy(store.members[0].address, 2379) as road:
        options = store.options()
        far = EtcdRegistry(EtcdOptions(endpoints=(Endpoint("127.0.0.1", road.port, False),), prefix=options.prefix))
        watch = far.watch(far.snapshot().revision)
        for _ in range(10):
            revision = store.put("/elsewhere", b"x")
        wait_until(lambda: watch._next > revision, "a progress notification")
        near = EtcdRegistry(options)
        near.compact(revision)
        road.cut()
        created = near.create(KEY, b"{}", None, near.snapshot().revision)
        assert [change.revision for change in wait_for_news(watch)] == [created.revision]
        for opened in (watch, near, far):
            opened.close()


def test_another_store_in_its_place_is_told_as_compacted(version: str, registry: EtcdRegistry) -> None:
    write(registry, 20)
    revision = registry.snapshot().revision
    with cluster(version) as other:
        client = EtcdRegistry(other.options(), timeout=5)
        watch = client.watch(revision)
        with pytest.raises(Compacted, match="another etcd"):
            watch.wait(DEADLINE)
        with pytest.raises(Compacted):  # for good
            watch.wait(DEADLINE)
        watch.close()
        client.close()


@pytest.mark.timeout(180)
def test_trap_13_a_frozen_server_is_noticed_within_10_s(
    store: Cluster, registry: EtcdRegistry
) -> None:
    (member,) = store.members
    revision = write(registry, 1)[-1]
    reader = Reader(registry.watch(revision))
    updated = registry.update(KEY, b"1", None, revision)
    wait_until(lambda: reader.last == 1, "the watch is alive")
    time.sleep(1)  # gRPC's measuring pings, which follow data, are answered: only the keep-alive is left to notice it
    member.freeze()
    frozen = time.monotonic()
    try:
        wait_until(lambda: reader.problems, "it is told")
        assert time.monotonic() - frozen < 10 + 5  # the second is for a machine with other work
        assert str(reader.problems[0]).startswith(f"etcd: http://{member.address}:2379: ")
    finally:
        member.thaw()
    registry.update(KEY, b"2", None, updated.revision)
    wait_until(lambda: reader.last == 2, "it goes on by itself")
    reader.close()


@pytest.mark.timeout(180)
def test_a_frozen_member_is_left_for_another_and_that_is_no_event(version: str) -> None:
    with cluster(version, 3) as store:
        options = store.options()
        registry = EtcdRegistry(options)
        writer = EtcdRegistry(EtcdOptions(endpoints=options.endpoints[1:], prefix=options.prefix))
        revisions = write(registry, 1)
        reader = Reader(registry.watch(revisions[-1]))
        revisions.append(writer.update(KEY, b"1", None, revisions[-1]).revision)
        wait_until(lambda: reader.last == 1, "the watch is alive")
        store.members[0].freeze()
        revisions.append(insist(writer, b"2", revisions[-1]))
        wait_until(lambda: reader.last == 2, "the change comes by another member")
        assert reader.problems == []
        reader.close()
        writer.close()
        registry.close()


def insist(registry: EtcdRegistry, value: bytes, expected: int) -> int:
    """Write although the cluster may be choosing a leader."""
    def write() -> int:
        with contextlib.suppress(RegistryUnavailable):
            return registry.update(KEY, value, None, expected).revision
        (entry,) = registry.snapshot().entries
        return entry.revision if entry.value == value else 0

    return wait_until(write, "a leader")


def test_trap_01_an_etcd_that_is_away_costs_next_to_nothing(
    store: Cluster, registry: EtcdRegistry
) -> None:
    watch = registry.watch(write(registry, 1)[-1])
    assert watch.wait(0.2) == ()
    store.kill()
    with pytest.raises(RegistryUnavailable):
        watch.wait(DEADLINE)
    cpu, wall = time.process_time(), time.monotonic()
    with contextlib.suppress(RegistryUnavailable):
        watch.wait(4)
    while time.monotonic() < wall + 4:
        with contextlib.suppress(RegistryUnavailable):
            watch.wait(wall + 4 - time.monotonic())
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    assert share < 0.2  # etcd3's own watcher takes a whole core
    watch.close()


def test_trap_02_watches_begun_on_a_frozen_server_get_their_own_changes(store: Cluster) -> None:
    one, two = (EtcdRegistry(store.options()) for _ in range(2))
    (member,) = store.members
    revision = one.snapshot().revision
    two.snapshot()
    member.freeze()
    first, second = one.watch(revision), two.watch(revision)
    time.sleep(0.3)  # both ask while nobody answers
    member.thaw()
    mine = [registry.create(key, b"{}", None, registry.snapshot().revision) for registry, key in
            ((two, "10.5.2.0-24"), (one, "10.5.1.0-24"))]
    assert [change.key for change in wait_for_news(first)] == [mine[1].key]
    assert [change.key for change in wait_for_news(second)] == [mine[0].key]
    for opened in (first, second, one, two):
        opened.close()


def test_trap_16_a_watch_that_nobody_reads_holds_up_no_other(registry: EtcdRegistry) -> None:
    start = registry.snapshot().revision
    unread, read = registry.watch(start), registry.watch(start)
    revisions = write(registry, 200)
    changes: list[Change] = []
    while len(changes) < 200:
        more = read.wait(DEADLINE)
        assert more
        changes += more
    assert [change.revision for change in changes] == revisions
    assert [change.revision for change in unread.wait(DEADLINE)][:1] == revisions[:1]
    for watch in (unread, read):
        watch.close()


@pytest.mark.parametrize("state", ["quiet", "away", "frozen"])
def test_trap_15_close_leaves_no_thread_and_says_nothing(
    store: Cluster, options: EtcdOptions, capfd: pytest.CaptureFixture[str], state: str
) -> None:
    before = set(threading.enumerate())
    registry = EtcdRegistry(options)
    watch = registry.watch(registry.snapshot().revision)
    assert watch.wait(0.1) == ()
    if state == "away":
        store.kill()
    if state == "frozen":
        store.members[0].freeze()
    began = time.monotonic()
    registry.close()
    watch.close()
    assert time.monotonic() - began < 5
    wait_until(lambda: set(threading.enumerate()) <= before, "every thread has ended")
    assert capfd.readouterr() == ("", "")


def test_a_new_watch_may_follow_a_closed_one_again_and_again(registry: EtcdRegistry) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        watch = registry.watch(registry.snapshot().revision)
        watch.close()
    wait_until(lambda: len(set(threading.enumerate()) - before) <= 1, "their threads have ended")  # gRPC has one
    assert registry._watches == set()
