"""The sqlite registry where it is more than the contract: many processes, sudden deaths, latency, clocks, bad files."""

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import Compacted, Conflict, NoConfig, RegistryUnavailable, UsageError
from flannel_udp.registry import bell, open_registry, sqlite
from flannel_udp.registry.sqlite import SqliteRegistry
from tests.conftest import require, wait_until

ROOT = Path(__file__).parents[2]

RACER = """
import sys
from ipaddress import IPv4Address
from flannel_udp.lease import LeaseAttrs
from flannel_udp.registry import open_registry
from flannel_udp.subnet.leased import LeasedSubnetManager
manager = LeasedSubnetManager(open_registry(sys.argv[1]), acquire_timeout=60)
print("ready", flush=True)
sys.stdin.readline()
print(manager.acquire(LeaseAttrs(IPv4Address(sys.argv[2]))).key)
manager.close()
"""
WRITER = """
import sys
from flannel_udp.errors import Conflict
from flannel_udp.registry import open_registry
registry = open_registry(sys.argv[1])
print("ready", flush=True)
step = 0
while True:
    step += 1
    try:
        registry.create(f"10.{sys.argv[2]}.{step % 200}.0-24", b"x" * 3000, 0.2, registry.snapshot().revision)
    except Conflict:
        pass
"""


class Clock:
    """A wall clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "registry.db")


@pytest.fixture
def opened(path: str) -> Iterator[Callable[..., SqliteRegistry]]:
    registries: list[SqliteRegistry] = []

    def open_one(**options: object) -> SqliteRegistry:
        registries.append(SqliteRegistry(path, **options))  # type: ignore[arg-type]
        return registries[-1]

    yield open_one
    for registry in registries:
        registry.close()


@contextlib.contextmanager
def child(code: str, *arguments: str, **options: object) -> Iterator["subprocess.Popen[str]"]:
    """A Python process of ours that has said ready."""
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **(pipes | options)) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def put(registry: SqliteRegistry, key: str, value: bytes = b"{}", ttl: float | None = 100.0) -> int:
    return registry.create(key, value, ttl, registry.snapshot().revision).revision


# Several processes.


def test_fifty_processes_get_fifty_different_subnets(path: str, opened: Callable[..., SqliteRegistry]) -> None:
    registry = opened()
    registry.write_config('{"Network":"10.5.0.0/16"}')
    with contextlib.ExitStack() as stack:
        commands = [(RACER, f"sqlite://{path}", f"192.168.0.{number}") for number in range(50)]
        racers = [stack.enter_context(child(*command)) for command in commands]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        keys = [racer.communicate(timeout=100)[0].strip() for racer in racers]
    assert len(set(keys)) == 50
    assert sorted(keys) == [entry.key for entry in registry.snapshot().entries]


def test_a_new_registry_is_made_once_by_whoever_comes_first(path: str) -> None:
    registries = [SqliteRegistry(path) for _ in range(8)]
    revisions: list[int] = []
    start = threading.Barrier(len(registries))

    def work(registry: SqliteRegistry) -> None:
        start.wait()
        revisions.append(registry.write_config("x"))

    threads = [threading.Thread(target=work, args=(registry,)) for registry in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(2, 10))
    for registry in registries:
        registry.close()


def test_writers_killed_in_the_middle_leave_a_usable_registry(path: str, opened: Callable[..., SqliteRegistry]) -> None:
    registry = opened()
    watch = registry.watch(registry.snapshot().revision)
    seen: list[int] = []
    for round_ in range(6):
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(child(WRITER, f"sqlite://{path}", str(round_ * 2 + n))) for n in range(2)]
            before = registry.snapshot().revision
            wait_until(lambda before=before: registry.snapshot().revision > before + 20, "writes")  # type: ignore[misc]
            for writer in writers:
                os.kill(writer.pid, signal.SIGKILL)
                writer.wait()
        put(registry, f"10.200.{round_}.0-24")
        with contextlib.suppress(Compacted):
            seen += [change.revision for change in watch.wait(5)]
    assert seen == sorted(set(seen))
    listing = registry.snapshot()
    assert len({entry.revision for entry in listing.entries}) == len(listing.entries)
    assert max(entry.revision for entry in listing.entries) <= listing.revision
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    watch.close()


def test_another_mount_and_user_namespace_shares_the_registry(path: str, opened: Callable[..., SqliteRegistry]) -> None:
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    able = subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0
    require(able, "needs user namespaces (unshare --user)")
    registry = opened()
    watch = registry.watch(registry.snapshot().revision)
    code = (
        "import sys; from flannel_udp.registry import open_registry as o; r = o(sys.argv[1]);"
        "r.create('10.5.1.0-24', b'{}', 100, r.snapshot().revision); r.close()"
    )
    subprocess.run([*prefix, sys.executable, "-c", code, f"sqlite://{path}"], check=True, cwd=ROOT, timeout=60)
    assert [change.key for change in watch.wait(20)] == ["10.5.1.0-24"]
    watch.close()


# The watch.


def measure_latency(path: str) -> list[float]:
    """Seconds from before a change to its being told, in milliseconds, sorted."""
    reader, writer = SqliteRegistry(path), SqliteRegistry(path)
    watch = reader.watch(reader.snapshot().revision)
    latencies: list[float] = []

    def read() -> None:
        while len(latencies) < 40:
            latencies.extend(1000 * (time.monotonic() - float(change.value)) for change in watch.wait(10))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        put(writer, f"10.5.{number}.0-24", str(time.monotonic()).encode())
        time.sleep(0.02)
    thread.join()
    watch.close()
    reader.close()
    writer.close()
    return sorted(latencies)


def test_a_watch_tells_within_100_ms(path: str) -> None:
    latencies = measure_latency(path)
    assert latencies[20] < 100, latencies
    assert latencies[20] < 20, "inotify should wake at once"


def test_a_watch_tells_within_100_ms_without_inotify(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell, "_watch_file", lambda path: None)  # noqa: ARG005
    latencies = measure_latency(path)
    assert latencies[20] < 100, latencies


def test_an_idle_watch_sleeps(opened: Callable[..., SqliteRegistry], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = opened()
    put(registry, "10.5.1.0-24")
    watch = registry.watch(registry.snapshot().revision)
    assert watch.wait(0.0) == ()
    looks = []
    look = watch._look
    monkeypatch.setattr(watch, "_look", lambda: looks.append(0) or look())  # type: ignore[func-returns-value]
    began = time.thread_time()
    assert watch.wait(3.5) == ()
    assert len(looks) <= 5
    assert (time.thread_time() - began) / 3.5 < 0.005  # 0.001 is the aim, and 0.00025 was measured
    watch.close()


def test_an_idle_watch_notices_an_expiry_near_its_time(
    opened: Callable[..., SqliteRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_SAFETY_SECONDS", 60.0)  # not by chance
    registry, other = opened(), opened()
    put(other, "10.5.1.0-24", ttl=1.0)
    expiry = registry.snapshot().entries[0].expiry
    assert expiry is not None
    watch = registry.watch(registry.snapshot().revision)
    assert [change.kind for change in watch.wait(20)] == ["delete"]
    assert 0 <= time.time() - expiry < 5
    watch.close()


def test_history_is_bounded(opened: Callable[..., SqliteRegistry]) -> None:
    registry = opened(history=10)
    start = registry.snapshot().revision
    old = registry.watch(start)
    recent = registry.watch(start + 20)
    for number in range(30):
        put(registry, f"10.5.{number}.0-24")
    with pytest.raises(Compacted):
        old.wait(1)
    assert [change.revision for change in recent.wait(1)] == list(range(start + 21, start + 31))
    old.close()
    recent.close()


def test_a_file_that_is_removed_is_told_and_not_replaced_by_an_empty_one(
    path: str, opened: Callable[..., SqliteRegistry]
) -> None:
    registry = opened()
    put(registry, "10.5.1.0-24")
    watch = registry.watch(registry.snapshot().revision)
    Path(path).unlink()
    with pytest.raises(RegistryUnavailable, match="removed"):
        watch.wait(20)
    with pytest.raises(RegistryUnavailable, match="removed"):
        registry.snapshot()
    watch.close()
    for companion in ("-wal", "-shm"):
        Path(path + companion).unlink(missing_ok=True)
    opened().write_config("anew")  # by somebody who means it
    assert registry.snapshot().entries == ()
    late = registry.watch(50)
    with pytest.raises(Compacted):
        late.wait(1)
    late.close()


# Time.


def test_expiry_by_whoever_looks_first_is_one_change(opened: Callable[..., SqliteRegistry]) -> None:
    clock = Clock()
    registries = [opened(clock=clock) for _ in range(3)]
    watch = registries[0].watch(registries[0].snapshot().revision)
    created = put(registries[0], "10.5.1.0-24", ttl=10)
    clock.now += 9.9
    assert [len(registry.snapshot().entries) for registry in registries] == [1, 1, 1]
    clock.now += 0.2
    listings = [registry.snapshot() for registry in registries]
    assert [(listing.entries, listing.revision) for listing in listings] == [((), created + 1)] * 3
    assert [(change.kind, change.revision) for change in watch.wait(1)] == [("put", created), ("delete", created + 1)]
    watch.close()


def test_what_has_expired_cannot_be_renewed(opened: Callable[..., SqliteRegistry]) -> None:
    clock = Clock()
    registry = opened(clock=clock)
    revision = put(registry, "10.5.1.0-24", ttl=10)
    clock.now += 11
    with pytest.raises(Conflict):
        registry.update("10.5.1.0-24", b"{}", 10, revision)
    assert put(registry, "10.5.1.0-24") > revision + 1


# The file.


def test_the_file_is_the_owners_alone_unless_it_was_there(path: str, opened: Callable[..., SqliteRegistry]) -> None:
    opened().write_config("x")
    for name in (path, f"{path}-wal", f"{path}-shm"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    other = path + ".shared"
    Path(other).touch()
    Path(other).chmod(0o640)
    registry = SqliteRegistry(other)
    registry.write_config("x")
    assert stat.S_IMODE(Path(other).stat().st_mode) == 0o640
    registry.close()


def refusal(path: str) -> str:
    registry = SqliteRegistry(path, timeout=0.3)
    with pytest.raises(RegistryUnavailable) as caught:
        registry.snapshot()
    registry.close()
    message = str(caught.value)
    assert path in message
    assert len(message.splitlines()) == 1
    return message


def test_bad_files_are_told_in_one_line(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database" * 1000)
    assert "not an SQLite database" in refusal(str(garbage))
    assert garbage.read_bytes() == b"no database" * 1000
    assert f"folder {tmp_path}/none does not exist" in refusal(f"{tmp_path}/none/registry.db")
    assert "is a folder" in refusal(str(tmp_path))
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE songs (title)")
    before = foreign.read_bytes()
    assert "not a registry of flannel_udp" in refusal(str(foreign))
    assert foreign.read_bytes() == before


def test_a_damaged_registry_is_told_in_one_line(path: str) -> None:
    registry = SqliteRegistry(path)
    for number in range(200):
        put(registry, f"10.5.{number}.0-24", b"x" * 500)
    registry.close()
    content = bytearray(Path(path).read_bytes())
    content[4096:] = b"\xaa" * (len(content) - 4096)
    Path(path).write_bytes(content)
    assert "damaged" in refusal(path)


def test_a_schema_of_the_future_is_told(path: str) -> None:
    with contextlib.closing(SqliteRegistry(path)) as registry:
        registry.write_config("x")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    assert "schema 99" in refusal(path)


def test_a_locked_database_is_told_after_the_timeout(path: str) -> None:
    with contextlib.closing(SqliteRegistry(path)) as registry:
        registry.write_config("x")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with contextlib.closing(SqliteRegistry(path, timeout=0.3)) as registry:
            with pytest.raises(RegistryUnavailable, match="locked by another process"):
                registry.write_config("y")
            assert registry.read_config().text == "x"  # readers wait for nobody
        db.execute("ROLLBACK")


def test_close_ends_a_call_that_waits_for_a_lock(path: str) -> None:
    registry = SqliteRegistry(path, timeout=60)
    registry.write_config("x")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, registry.close)
        timer.start()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            registry.write_config("y")
        assert time.monotonic() - began < 10
        timer.join()
        db.execute("ROLLBACK")


def test_what_may_not_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    """As another user, since root may write everywhere."""
    require(os.geteuid() == 0, "needs root, to become somebody without rights")
    code = (
        "import os, sys; from flannel_udp.registry import open_registry as o; os.setgid(65534); os.setuid(65534)\n"
        "try: o(sys.argv[1]).write_config('x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    def attempt(path: Path) -> str:
        command = [sys.executable, "-c", "import flannel_udp.registry.sqlite;" + code, f"sqlite://{path}"]
        return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout

    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    closed = tmp_path / "closed.db"
    with contextlib.closing(SqliteRegistry(str(closed))) as registry:
        registry.write_config("x")
    assert "Permission denied" in attempt(tmp_path / "new.db")
    assert "cannot be opened" in attempt(closed)
    closed.chmod(0o644)
    assert attempt(closed).startswith("RegistryUnavailable registry")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite://relative.db", "sqlite:///", "sqlite:///folder/"])
def test_a_url_without_an_absolute_path_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="absolute path"):
        open_registry(url)


def test_four_slashes_are_as_good_as_three(tmp_path: Path) -> None:
    with contextlib.closing(open_registry(f"sqlite:///{tmp_path}/a.db")) as registry:
        registry.write_config("x")
    assert (tmp_path / "a.db").exists()


def test_odd_names_are_files_too(tmp_path: Path) -> None:
    name = tmp_path / "a b?c#d%41.db"
    with contextlib.closing(open_registry(f"sqlite://{name}")) as registry:
        registry.write_config("x")
    assert name.exists()


def test_to_look_at_a_registry_does_not_make_it(tmp_path: Path) -> None:
    path = tmp_path / "mistyped.db"
    registry = SqliteRegistry(str(path))
    with pytest.raises(NoConfig, match=r"mistyped\.db does not exist yet"):
        registry.read_config()
    assert registry.snapshot().entries == ()
    assert not path.exists()
    registry.create("10.5.1.0-24", b"{}", 60, registry.snapshot().revision)
    assert [entry.key for entry in registry.snapshot().entries] == ["10.5.1.0-24"]
    registry.close()
