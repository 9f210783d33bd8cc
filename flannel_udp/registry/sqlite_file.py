"""The file behind the sqlite registry: opening it, its tables, its locks, and what its errors mean to a user."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from flannel_udp.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_APPLICATION_ID: Final = 0x666C7564  # "flud": says that the file is ours
_SCHEMA_VERSION: Final = 1
FIRST_REVISION: Final = 1  # of a registry that holds nothing, whether its file is made yet or not
_SCHEMA: Final = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, compacted INTEGER NOT NULL)",
    f"INSERT INTO meta VALUES (1, {FIRST_REVISION}, {FIRST_REVISION})",  # noqa: S608 our own constant
    "CREATE TABLE config (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL, revision INTEGER NOT NULL)",
    "CREATE TABLE subnets (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, expiry REAL)",
    "CREATE INDEX subnets_by_revision ON subnets (revision)",
    "CREATE INDEX subnets_by_expiry ON subnets (expiry)",
    "CREATE TABLE changes (revision INTEGER PRIMARY KEY, kind TEXT, key TEXT, value BLOB, expiry REAL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)
_LOCK_SLICE: Final = 0.05  # seconds that SQLite may sleep in one attempt at a lock, out of reach of close()


class SqliteFile:
    """An open database `db`, sure to be ours, and the identity of the file it was."""

    def __init__(self, path: str, patience: Patience) -> None:
        self._path = path
        self._identity = _identity(path)
        self.db = sqlite3.connect(
            f"file:{quote(path)}?mode=rw", uri=True, timeout=_LOCK_SLICE, isolation_level=None, check_same_thread=False
        )
        try:
            patience.insist(self._prepare)
        except BaseException:  # raised again: the caller got nothing to close
            self.db.close()
            raise

    def stands(self) -> bool:
        """Whether the path still names the file that is open."""
        try:
            return _identity(self._path) == self._identity
        except FileNotFoundError:
            return False

    def _prepare(self) -> None:
        # Tables first: whoever makes them commits both at once, so that seen tables have their mark.
        if self._tables() and self._pragma("application_id") != _APPLICATION_ID:
            raise RegistryUnavailable(f"registry {self._path}: an SQLite database, but not a registry of flannel_udp")
        if (mode := self._pragma("journal_mode = WAL")) != "wal":
            raise RegistryUnavailable(f"registry {self._path}: the file system allows no write-ahead log ({mode})")
        # A power cut may cost the last changes, never their order; all who knew of them lost power too.
        self.db.execute("PRAGMA synchronous = NORMAL")
        if self._pragma("user_version") == 0:
            self._create_schema()
        if (version := self._pragma("user_version")) != _SCHEMA_VERSION:
            raise RegistryUnavailable(f"registry {self._path}: schema {version}, while this program knows only 1")

    def _create_schema(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            if not self._tables():
                for statement in _SCHEMA:
                    self.db.execute(statement)
            self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def _tables(self) -> int:
        count: int = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        return count

    def _pragma(self, text: str) -> object:
        return self.db.execute(f"PRAGMA {text}").fetchone()[0]


class Patience:
    """Tries again while the database is locked, until a deadline or until the registry is closed."""

    def __init__(self, timeout: float, gave_up: Callable[[], bool]) -> None:
        self._deadline = time.monotonic() + timeout
        self._gave_up = gave_up

    def insist(self, action: Callable[[], T]) -> T:
        """Do it until it works; errors other than "locked" are the caller's."""
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or self._gave_up() or time.monotonic() > self._deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.01))


def create_file(path: str) -> None:
    """Make the file with mode 0600 if it does not exist; SQLite gives its companions the same mode."""
    # An existing file must not be opened here: closing it would drop the locks that this process has on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 called at each wake-up, where a Path would double its cost
    return status.st_dev, status.st_ino


def is_busy(error: sqlite3.Error) -> bool:
    """Whether a lock stood in the way."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


@contextlib.contextmanager
def explained(path: str, on_error: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into RegistryUnavailable, one line, after `on_error`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        on_error()
        raise RegistryUnavailable(f"registry {path}: {_explain(error, path)}") from error


_EXPLANATIONS: Final = {
    "SQLITE_BUSY": "locked by another process",
    "SQLITE_NOTADB": "not an SQLite database, or its first page is damaged; move it away to start anew",
    "SQLITE_CORRUPT": "damaged; move it away to start anew",
    "SQLITE_READONLY": "not writable",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_FULL": "no space left on the device",
    "SQLITE_IOERR": "input/output error",
}


def _explain(error: sqlite3.Error | OSError, path: str) -> str:
    """Say in one line what the user can mend."""
    if isinstance(error, FileNotFoundError):
        folder = os.path.dirname(path)  # noqa: PTH120 the path is a text everywhere in this file
        return "the file was removed" if os.path.isdir(folder) else f"folder {folder} does not exist"  # noqa: PTH112
    if os.path.isdir(path):  # noqa: PTH112
        return "is a folder: name a file in it, to be made if it is not there"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    name = getattr(error, "sqlite_errorname", "")
    for prefix, text in _EXPLANATIONS.items():
        if name.startswith(prefix):
            return f"{text} ({error})"
    return str(error)
