"""The embedded registry, sqlite:///path: one file shared by the processes of one machine, whatever their namespaces.

Tables mirror etcd: the entries that stand now, and the last changes for watches to follow (sqlite_file.py). A writer
takes the database's write lock (BEGIN IMMEDIATE), raises the one revision for each change, commits, and rings the bell
(bell.py). Whoever looks first deletes what has expired, as a change with a revision like any other; a watch sleeps no
longer than until the next expiry, so that an idle machine notices it too.

Time is the wall clock: it alone is the same for all processes, namespaces and boots that share the file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from flannel_udp.errors import Compacted, Conflict, NoConfig, RegistryUnavailable, UsageError
from flannel_udp.registry import CALL_TIMEOUT, Change, Entry, Listing, StoredConfig
from flannel_udp.registry.bell import Bell, ring
from flannel_udp.registry.sqlite_file import FIRST_REVISION, Patience, SqliteFile, create_file, explained, is_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

HISTORY: Final = 10_000  # our choice: changes kept for watches; about 2 MB, and hours of the busiest cluster
_SAFETY_SECONDS: Final = 1.0  # a writer killed between commit and bell is noticed after at most this long


class SqliteRegistry:
    """A Registry (see the protocol) in one SQLite file, made with mode 0600 by the first write or watch."""

    def __init__(
        self,
        path: str,
        timeout: float = CALL_TIMEOUT,
        clock: Callable[[], float] = time.time,
        history: int = HISTORY,
    ) -> None:
        self.path = path
        self._timeout = timeout
        self.clock = clock
        self._history = history
        self._lock = threading.Lock()
        self._closed = False
        self._file: SqliteFile | None = None
        self._may_create = True
        self._watches: set[SqliteWatch] = set()

    @classmethod
    def from_url(cls, url: str, timeout: float = CALL_TIMEOUT) -> SqliteRegistry:
        """Open sqlite:///absolute/path, also with four slashes, as others want it; UsageError for any other form."""
        path = url.removeprefix("sqlite://")
        if not path.startswith("/") or path.endswith("/"):
            raise UsageError(f"registry {url!r}: give the absolute path of a file, as in sqlite:///var/lib/leases.db")
        return cls("/" + path.lstrip("/"), timeout)

    def read_config(self) -> StoredConfig:
        """See the protocol."""
        if self._is_unmade():
            raise NoConfig(f"registry {self.path} does not exist yet: flannel-udp config set makes it")
        with self._transaction("DEFERRED") as db:
            row = db.execute("SELECT text, revision FROM config").fetchone()
        if row is None:
            raise NoConfig(f"registry {self.path} holds no network configuration yet")
        return StoredConfig(*row)

    def write_config(self, text: str, expected: int | None = None) -> int:
        """See the protocol."""
        with self._transaction("IMMEDIATE") as db:
            row = db.execute("SELECT revision FROM config").fetchone()
            found = row[0] if row else 0
            if expected is not None and found != expected:
                raise Conflict(f"network configuration has revision {found}, not {expected}")
            revision = self._record(db, "config", value=text.encode())
            db.execute("INSERT OR REPLACE INTO config VALUES (1, ?, ?)", (text, revision))
        return revision

    def snapshot(self) -> Listing:
        """See the protocol."""
        if self._is_unmade():
            return Listing((), FIRST_REVISION)
        self.expire()
        with self._transaction("DEFERRED") as db:
            rows = db.execute("SELECT key, value, revision, expiry FROM subnets ORDER BY key").fetchall()
            (revision,) = db.execute("SELECT revision FROM meta").fetchone()
        return Listing(tuple(Entry(*row) for row in rows), revision)

    def expiry(self, key: str) -> float | None:
        """See the protocol."""
        for entry in self.snapshot().entries:
            if entry.key == key:
                return entry.expiry
        raise Conflict(f"{key} is gone")

    def expiries(self, keys: Collection[str]) -> dict[str, float | None]:
        """See the protocol."""
        wanted = set(keys)
        return {entry.key: entry.expiry for entry in self.snapshot().entries if entry.key in wanted}

    def watch(self, after: int) -> SqliteWatch:
        """See the protocol."""
        with self._transaction("DEFERRED"):  # what cannot be opened is to fail here
            watch = SqliteWatch(self, after)
            self._watches.add(watch)
        return watch

    def create(self, key: str, value: bytes, ttl: float | None, since: int) -> Entry:
        """See the protocol."""
        with self._transaction("IMMEDIATE") as db:
            row = db.execute("SELECT key FROM subnets WHERE revision > ? OR key = ? LIMIT 1", (since, key)).fetchone()
            if row is not None:
                raise Conflict(f"{row[0]} was written since revision {since}")
            return self._put(db, key, value, ttl)

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        """See the protocol."""
        with self._transaction("IMMEDIATE") as db:
            _expect(db, key, expected)
            return self._put(db, key, value, ttl)

    def delete(self, key: str, expected: int) -> int:
        """See the protocol."""
        with self._transaction("IMMEDIATE") as db:
            _expect(db, key, expected)
            return self._delete(db, key)

    def compact(self, revision: int) -> None:
        """See the protocol."""
        with self._transaction("IMMEDIATE") as db:
            _forget(db, revision)

    def close(self) -> None:
        """See the protocol."""
        self._closed = True  # ends a pending call's wait for the database, and so frees the lock
        with self._lock:
            for watch in tuple(self._watches):
                watch.cancel()
            self._drop()

    # What a watch needs too.

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def expire(self) -> None:
        """Delete what has expired; cheap when nothing has."""
        with self._transaction("DEFERRED") as db:
            due = db.execute("SELECT 1 FROM subnets WHERE expiry <= ? LIMIT 1", (self.clock(),)).fetchone()
        if due:
            with self._transaction("IMMEDIATE"):
                pass  # every writer expires first

    def open_file(self) -> SqliteFile:
        """Open a connection of the caller's own, which it closes; raises RegistryUnavailable."""
        with explained(self.path):
            return SqliteFile(self.path, self._patience())

    def forget_watch(self, watch: SqliteWatch) -> None:
        """Take a closed watch off the list."""
        self._watches.discard(watch)

    # One transaction from begin to bell.

    @contextlib.contextmanager
    def _transaction(self, mode: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[sqlite3.Connection]:
        with self._locked(), explained(self.path, on_error=self._drop):
            db = self._connected()
            patience = self._patience()
            patience.insist(lambda: db.execute(f"BEGIN {mode}"))
            try:
                # The first read takes the lock that a deferred transaction has not taken yet.
                before = patience.insist(lambda: db.execute("SELECT revision FROM meta").fetchone())
                if mode == "IMMEDIATE":
                    self._expire_due(db)
                yield db
                after = db.execute("SELECT revision FROM meta").fetchone()
                db.execute("COMMIT")
            except BaseException:  # raised again: an open transaction would lock all others out
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        if after != before:
            self._ring()

    def _is_unmade(self) -> bool:
        """Whether nobody has made the file yet: an empty registry, which to look at must not make it."""
        path = Path(self.path)
        return self._may_create and not path.exists() and path.parent.is_dir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._timeout):
            raise RegistryUnavailable(f"registry {self.path}: busy with another call for {self._timeout:g} s")
        try:
            yield
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        """Return the open database; a file that went away is not silently replaced by an empty one."""
        if self._closed:
            raise RegistryUnavailable(f"registry {self.path}: closed")
        if self._file is not None and not self._file.stands():
            self._drop()
        if self._file is None:
            if self._may_create:
                create_file(self.path)
            self._file = SqliteFile(self.path, self._patience())
            self._may_create = False
        return self._file.db

    def _patience(self) -> Patience:
        return Patience(self._timeout, lambda: self._closed)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.db.close()
            self._file = None

    def _ring(self) -> None:
        # The change stands: a bell that cannot be rung only makes watches late.
        with contextlib.suppress(OSError):
            ring(self.path)

    # Changes; all inside of a transaction.

    def _put(self, db: sqlite3.Connection, key: str, value: bytes, ttl: float | None) -> Entry:
        expiry = None if ttl is None else self.clock() + ttl
        revision = self._record(db, "put", key, value, expiry)
        db.execute("INSERT OR REPLACE INTO subnets VALUES (?, ?, ?, ?)", (key, value, revision, expiry))
        return Entry(key, value, revision, expiry)

    def _delete(self, db: sqlite3.Connection, key: str) -> int:
        db.execute("DELETE FROM subnets WHERE key = ?", (key,))
        return self._record(db, "delete", key)

    def _expire_due(self, db: sqlite3.Connection) -> None:
        due = db.execute("SELECT key FROM subnets WHERE expiry <= ? ORDER BY expiry", (self.clock(),)).fetchall()
        for (key,) in due:
            self._delete(db, key)

    def _record(
        self, db: sqlite3.Connection, kind: str, key: str = "", value: bytes = b"", expiry: float | None = None
    ) -> int:
        db.execute("UPDATE meta SET revision = revision + 1")
        revision: int = db.execute("SELECT revision FROM meta").fetchone()[0]
        db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", (revision, kind, key, value, expiry))
        _forget(db, revision - self._history)
        return revision


class SqliteWatch:
    """A Watch (see the protocol) with a connection of its own, since data_version tells of others' changes only."""

    def __init__(self, registry: SqliteRegistry, after: int) -> None:
        self._registry = registry
        self._after = after
        self._file = registry.open_file()
        self._bell = Bell(registry.path)
        self._seen = -1
        self._next_expiry: float | None = None

    def wait(self, timeout: float) -> tuple[Change, ...]:
        """See the protocol."""
        deadline = time.monotonic() + timeout
        while not self._bell.cancelled:
            if changes := self._look():
                return changes
            left = deadline - time.monotonic()
            if left <= 0:
                break
            expiry = self._next_expiry
            until_expiry = left if expiry is None else max(0.0, expiry - self._registry.clock())
            self._bell.wait(min(left, _SAFETY_SECONDS, until_expiry))
        if self._registry.closed:
            raise RegistryUnavailable(f"registry {self._registry.path}: closed")
        return ()

    def cancel(self) -> None:
        """See the protocol."""
        self._bell.cancel()

    def close(self) -> None:
        """See the protocol."""
        self._registry.forget_watch(self)
        self._bell.close()
        self._file.db.close()

    def _look(self) -> tuple[Change, ...]:
        if not self._file.stands():
            raise RegistryUnavailable(f"registry {self._registry.path}: the file was removed or replaced")
        if self._next_expiry is not None and self._next_expiry <= self._registry.clock():
            self._registry.expire()
        with explained(self._registry.path):
            try:
                (version,) = self._file.db.execute("PRAGMA data_version").fetchone()
                changes = self._read() if version != self._seen else ()
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                return ()  # the next look sees what this one could not
        self._seen = version
        return changes

    def _read(self) -> tuple[Change, ...]:
        """Read what is new, as of one moment."""
        db = self._file.db
        db.execute("BEGIN")
        try:
            revision, compacted = db.execute("SELECT revision, compacted FROM meta").fetchone()
            # A revision from the future was given by another file in this place.
            if not compacted <= self._after <= revision:
                raise Compacted(f"changes after revision {self._after} are no longer kept (now {revision})")
            (self._next_expiry,) = db.execute("SELECT min(expiry) FROM subnets").fetchone()
            rows = db.execute(
                "SELECT kind, revision, key, value, expiry FROM changes WHERE revision > ? ORDER BY revision",
                (self._after,),
            ).fetchall()
        finally:
            if db.in_transaction:
                db.execute("COMMIT")
        self._after = revision
        return tuple(Change(*row) for row in rows)


def _expect(db: sqlite3.Connection, key: str, revision: int) -> None:
    row = db.execute("SELECT revision FROM subnets WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise Conflict(f"{key} is gone")
    if row[0] != revision:
        raise Conflict(f"{key} has revision {row[0]}, not {revision}")


def _forget(db: sqlite3.Connection, revision: int) -> None:
    db.execute("UPDATE meta SET compacted = max(compacted, min(?, revision))", (revision,))
    db.execute("DELETE FROM changes WHERE revision <= ?", (revision,))
