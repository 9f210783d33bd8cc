"""Where leases live: the protocol that every registry speaks, and the table of URL schemes.

A registry is an ordered store in etcd's manner: one network configuration and any number of entries below subnets/,
under one revision that each change raises by one. It knows keys and bytes only; what they mean is lease.py's business.
Every call is synchronous, ends within the timeout the registry was opened with, and may come from any thread; close()
from another thread makes pending calls give up. All of them raise RegistryUnavailable where the registry cannot be
reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from flannel_udp.errors import UsageError
from flannel_udp.etcd_options import EtcdOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CALL_TIMEOUT: Final = 5.0  # our choice: seconds; well above any healthy answer, well below a lease's renew margin
UNTOLD: Final = math.inf
"""The expiry of an entry that has one, where the registry would need a call more to know it: Registry.expiry tells."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key below subnets/ with its value; without an expiry (unix time, or UNTOLD) it is a reservation."""

    key: str
    value: bytes
    revision: int
    expiry: float | None


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries, ordered by key, as they were at one revision."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """The network configuration's text and the revision that wrote it."""

    text: str
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change. A deletion (by hand or by expiry) has no value; a change of the configuration has no key."""

    kind: Literal["put", "delete", "config", "config-delete"]
    revision: int
    key: str = ""
    value: bytes = b""
    expiry: float | None = None


class Watch(Protocol):
    """A stream of changes, read by one thread."""

    def wait(self, timeout: float) -> tuple[Change, ...]:
        """Return the changes since the last call, oldest first, as soon as there are any; () on timeout or cancel.

        Raises Compacted when changes were lost for this watch: take a new snapshot and watch from there. Raises
        RegistryUnavailable when the registry was not to be reached for a while; the watch itself goes on trying, and
        the next wait() may bring what was missed.
        """

    def cancel(self) -> None:
        """Make wait() return now and ever after; from any thread."""

    def close(self) -> None:
        """Give back what the watch holds; from the reading thread, or after it ended."""


class Registry(Protocol):
    """A store of leases. `ttl` None makes a reservation, which never expires; otherwise seconds from now."""

    def read_config(self) -> StoredConfig:
        """Return the network configuration; raises NoConfig."""

    def write_config(self, text: str, expected: int | None = None) -> int:
        """Store the configuration, return its revision. `expected`: Conflict unless it has that revision (0: none)."""

    def snapshot(self) -> Listing:
        """Return all entries below subnets/ and the revision they stand at."""

    def expiry(self, key: str) -> float | None:
        """Return when an entry ends (unix time), None for a reservation; Conflict if there is no such entry."""

    def expiries(self, keys: Collection[str]) -> dict[str, float | None]:
        """The same of many at once; what is gone is left out."""

    def watch(self, after: int) -> Watch:
        """Watch all changes whose revision is greater than `after`; wait() raises Compacted if these are gone."""

    def create(self, key: str, value: bytes, ttl: float | None, since: int) -> Entry:
        """Add an entry if nothing below subnets/ is newer than revision `since` and the key is free; else Conflict.

        The expiry of what is returned is always told, here and in update().
        """

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        """Replace the entry if its revision is the expected one, else Conflict; the time to live starts anew."""

    def delete(self, key: str, expected: int) -> int:
        """Delete the entry if its revision is the expected one, else Conflict; return the revision of the deletion."""

    def compact(self, revision: int) -> None:
        """Forget what changes up to a revision replaced; a watch that missed some gets Compacted.

        A revision to come counts as now.
        """

    def close(self) -> None:
        """Give everything back; pending and later calls, waits included, raise RegistryUnavailable. Idempotent."""


def _open_etcd(url: str, timeout: float, etcd: EtcdOptions) -> Registry:
    if url != "etcd://":
        raise UsageError(f"registry {url!r}: nothing may follow etcd://, the endpoints are said in --etcd-endpoints")
    from flannel_udp.registry.etcd import EtcdRegistry

    return EtcdRegistry(etcd, timeout)


def _open_sqlite(url: str, timeout: float, _: EtcdOptions) -> Registry:
    from flannel_udp.registry.sqlite import SqliteRegistry

    return SqliteRegistry.from_url(url, timeout)


SCHEMES: Final[dict[str, Callable[[str, float, EtcdOptions], Registry]]] = {
    "etcd": _open_etcd,
    "sqlite": _open_sqlite,
}


def open_registry(url: str, timeout: float = CALL_TIMEOUT, etcd: EtcdOptions | None = None) -> Registry:
    """Open the registry that a URL names, for etcd:// the one of the options; calls end within `timeout` seconds."""
    scheme, separator, _ = url.partition("://")
    opener = SCHEMES.get(scheme) if separator else None
    if opener is None:
        known = ", ".join(f"{name}://" for name in sorted(SCHEMES))
        raise UsageError(f"registry {url!r}: unknown scheme; known: {known} (for example sqlite:///var/lib/leases.db)")
    return opener(url, timeout, etcd or EtcdOptions())
