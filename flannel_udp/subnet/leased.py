"""The subnet manager that chooses this node's subnet itself and keeps it, as a lease, in a registry.

It does what flannel's does, but every write is a compare-and-swap. A new lease is created only if nothing below
subnets/ changed since the snapshot it was chosen from, and whoever loses that race chooses again. A lease is renewed,
updated or given back only at the revision that this node wrote or saw last: a node that was away too long cannot
overwrite its heir.

One thread follows the registry and renews; the caller's threads acquire, update and release. Both meet at one lock,
held over a write and over taking note of it, so that the thread never meets the echo of a write before the writer knows
of it. While the registry cannot be reached nothing is taken back: peers and the own lease stand as last known.

Two nodes with the same public address share one lease, as in flannel: each takes the other for its own former self. It
shows only when the other writes, and is told then (Trouble "own-lease-shared").
"""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import (
    Compacted,
    ConfigError,
    Conflict,
    LeaseError,
    NoConfig,
    RegistryError,
    RegistryUnavailable,
    UsageError,
)
from flannel_udp.lease import Lease, LeaseAttrs, LeaseEvent, decode_attrs, decode_lease, encode_attrs, parse_subnet_key
from flannel_udp.lease import subnet_key as write_key
from flannel_udp.subnet import (
    ConfigChanged,
    OwnLeaseChanged,
    OwnLeaseLost,
    PeersChanged,
    PeersReset,
    SubnetEvent,
    Trouble,
)
from flannel_udp.subnet.choose import Subnets, choose, fits
from flannel_udp.subnet.peers import PeerTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from flannel_udp.registry import Change, Entry, Registry, Watch

TTL: Final = 86400.0  # specification: flannel's 24 hours
RENEW_MARGIN: Final = 3600.0  # specification: flannel's default of 60 minutes
ACQUIRE_TIMEOUT: Final = 30.0  # our choice: seconds of lost races before giving up
_WAIT_MAX: Final = 60.0  # our choice: seconds; how late a stepped clock is noticed
_BACKOFF_MIN: Final = 0.1  # specification: flannel's reconnection delays
_BACKOFF_MAX: Final = 5.0
_CLOSE_SECONDS: Final = 1.0


class LeasedSubnetManager:
    """A SubnetManager (see the protocol) over a registry, which it closes with itself."""

    def __init__(
        self,
        registry: Registry,
        *,
        ttl: float = TTL,
        renew_margin: float = RENEW_MARGIN,
        previous: Subnets = (None, None),
        acquire_timeout: float = ACQUIRE_TIMEOUT,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < renew_margin < ttl:
            raise UsageError(f"renew margin {renew_margin:g} s: more than 0, less than the time to live of {ttl:g} s")
        self._registry = registry
        self._ttl = ttl
        self._margin = renew_margin
        self._previous = previous
        self._acquire_timeout = acquire_timeout
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Guarded by the lock: the configuration in use, the own lease and its key in the registry.
        self._config: NetworkConfig | None = None
        self._told_config: str | None = None
        self._own: Lease | None = None
        self._own_key = ""
        self._renew_at = math.inf
        # The thread's own.
        self._post: Callable[[SubnetEvent], None] = _unheard
        self._peers = PeerTable()
        self._revision: int | None = None
        self._first = True
        self._watch: Watch | None = None
        self._down_since: float | None = None
        self._told_down: set[str] = set()
        self._delay = _BACKOFF_MIN
        self.counters = {"renewals": 0, "resyncs": 0, "lost_races": 0, "skipped_keys": 0}

    @property
    def skipped(self) -> dict[str, str]:
        """The keys that are skipped now, with their reasons."""
        return dict(self._peers.skipped)

    def config(self) -> NetworkConfig:
        """See the protocol. acquire() chooses by what this gave last."""
        stored = self._registry.read_config()
        config = parse_network_config(stored.text)
        with self._lock:
            self._config, self._told_config = config, stored.text
        return config

    def acquire(self, attrs: LeaseAttrs) -> Lease:
        """See the protocol."""
        config = self._config or self.config()
        deadline = time.monotonic() + self._acquire_timeout
        tries = 0
        while True:
            try:
                with self._lock:
                    return self._try_acquire(config, attrs)
            except Conflict:
                tries += 1
                self.counters["lost_races"] += 1
            if time.monotonic() > deadline:
                raise LeaseError(f"no subnet: others were faster {tries} times in {self._acquire_timeout:g} s")
            # Spread those who race: the more often this node lost, the wider.
            self._pause(self._rng.uniform(0, min(0.25, 0.002 * 2 ** min(tries, 10))))

    def update(self, attrs: LeaseAttrs) -> Lease:
        """See the protocol."""
        with self._lock:
            own = self._own
            if own is None:
                raise LeaseError("this node holds no lease to update")
            try:
                return self._write(attrs, own.revision)
            except Conflict:
                # The thread may not have met yet what another wrote: still ours, or lost?
                entry = self._find_own()
                return self._write(attrs, entry.revision)

    def events(self, post: Callable[[SubnetEvent], None]) -> None:
        """See the protocol."""
        if self._thread is not None:
            raise RuntimeError("events() was called before")
        self._post = post
        self._thread = threading.Thread(target=self._run, name="subnet-manager", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """See the protocol. A reservation stays; so does a lease that another node has taken."""
        with self._lock:
            own = self._own
            if own is None:
                return
            self._previous = own.subnet, own.ipv6_subnet
            if own.expiry is not None:
                try:
                    self._registry.delete(self._own_key, own.revision)
                except Conflict:
                    self._registry.delete(self._own_key, self._find_own().revision)
            self._own, self._renew_at = None, math.inf

    def close(self) -> None:
        """See the protocol."""
        self._stop.set()
        if (watch := self._watch) is not None:
            watch.cancel()
        self._registry.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)

    # The own lease; with the lock held.

    def _try_acquire(self, config: NetworkConfig, attrs: LeaseAttrs) -> Lease:
        listing = self._registry.snapshot()
        taken: dict[str, Subnets] = {}
        mine: list[Entry] = []
        for entry in listing.entries:
            try:
                taken[entry.key] = parse_subnet_key(entry.key)  # whatever the value, the subnet is not free
                if _same_node(decode_attrs(entry.value), attrs):
                    mine.append(entry)
            except LeaseError:
                continue
        fitting = [entry for entry in mine if fits(config, taken[entry.key])]
        if fitting:
            entry = min(fitting, key=lambda entry: (taken[entry.key] != self._previous, entry.key))
            return self._hold(entry.key, attrs, None if entry.expiry is None else self._ttl, entry.revision)
        for entry in mine:
            if entry.expiry is not None:  # a reservation is an administrator's, even one that no longer fits
                self._registry.delete(entry.key, entry.revision)
                del taken[entry.key]
        chosen = choose(config, taken.values(), self._previous, self._rng)
        entry = self._registry.create(write_key(*chosen), encode_attrs(attrs), self._ttl, listing.revision)
        return self._note(entry, attrs)

    def _hold(self, key: str, attrs: LeaseAttrs, ttl: float | None, revision: int) -> Lease:
        return self._note(self._registry.update(key, encode_attrs(attrs), ttl, revision), attrs)

    def _write(self, attrs: LeaseAttrs, revision: int) -> Lease:
        """Write the own lease anew; a reservation stays one."""
        assert self._own is not None
        return self._hold(self._own_key, attrs, None if self._own.expiry is None else self._ttl, revision)

    def _note(self, entry: Entry, attrs: LeaseAttrs) -> Lease:
        """Remember a write of this node."""
        subnet, ipv6_subnet = parse_subnet_key(entry.key)
        self._own = Lease(subnet, ipv6_subnet, attrs, entry.expiry, entry.revision)
        self._own_key = entry.key
        self._previous = subnet, ipv6_subnet
        self._renew_at = math.inf if entry.expiry is None else entry.expiry - self._margin
        return self._own

    def _find_own(self) -> Entry:
        """Find the own lease in the registry; LeaseError if it is another's by now."""
        own = self._own
        assert own is not None
        for entry in self._registry.snapshot().entries:
            if entry.key == self._own_key and _same_node(decode_attrs(entry.value), own.attrs):
                return entry
        raise LeaseError(f"lease {self._own_key} is no longer this node's")

    # The thread.

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Compacted:
                self._revision = None
            except RegistryError as error:
                self._tell_down(error)
            self._stop.wait(self._rng.uniform(self._delay / 2, self._delay))
            self._delay = min(self._delay * 2, _BACKOFF_MAX)

    def _follow(self) -> None:
        """Follow the registry from where it was left, until the watch fails or a new snapshot is wanted."""
        if self._revision is None or self._down_since is not None:
            self._resync()
            self._tell_up()
        assert self._revision is not None
        watch = self._registry.watch(self._revision)
        self._watch = watch
        try:
            while self._revision is not None and not self._stop.is_set():
                self._renew()
                changes = watch.wait(min(_WAIT_MAX, max(0.0, self._renew_at - self._clock())))
                self._delay = _BACKOFF_MIN
                if changes:
                    self._apply(changes)
        finally:
            self._watch = None
            watch.close()

    def _renew(self) -> None:
        with self._lock:
            own = self._own
            if own is None or self._clock() < self._renew_at:
                return
            try:
                self._write(own.attrs, own.revision)
                self.counters["renewals"] += 1
            except Conflict:
                self._revision = None  # somebody wrote it: a snapshot shows who

    def _resync(self) -> None:
        """Compare everything with a snapshot."""
        listing = self._registry.snapshot()
        try:
            text: str | None = self._registry.read_config().text
        except NoConfig:
            text = None
        puts = [_decode("put", entry.key, entry.revision, entry.value, entry.expiry) for entry in listing.entries]
        with self._lock:
            told = self._judge_config(text)
            if self._own is not None and self._own.revision <= listing.revision:
                absent = LeaseEvent("delete", self._own_key, listing.revision)
                told += self._judge_own(next((put for put in puts if put.key == self._own_key), absent))
            peers = [self._as_peer(put) for put in puts]
        difference = self._peers.reset(peers)
        self._revision = listing.revision
        self.counters["resyncs"] += 1
        if self._first:
            told.append(PeersReset(tuple(self._peers.leases.values())))
            self._first = False
        elif difference.put or difference.deleted:
            told.append(PeersChanged(difference.put, difference.deleted))
        self._tell(told, difference.skipped)

    def _apply(self, changes: tuple[Change, ...]) -> None:
        """Take what a watch told."""
        self._revision = changes[-1].revision
        told: list[SubnetEvent] = []
        peers: list[LeaseEvent] = []
        with self._lock:
            for change in changes:
                if change.kind == "config" or change.kind == "config-delete":
                    told += self._judge_config(change.value.decode() if change.kind == "config" else None)
                    continue
                event = _decode(change.kind, change.key, change.revision, change.value, change.expiry)
                if self._own is not None and event.key == self._own_key:
                    told += self._judge_own(event)
                    if self._own is None:
                        self._revision = None  # what was no peer beside the own lease may be one now
                peers.append(self._as_peer(event))
        difference = self._peers.apply(peers)
        if difference.put or difference.deleted:
            told.append(PeersChanged(difference.put, difference.deleted))
        self._tell(told, difference.skipped)

    def _as_peer(self, event: LeaseEvent) -> LeaseEvent:
        """What an event means to the table of peers: nothing of this node's own is a peer."""
        own, lease = self._own, event.lease
        if own is None or lease is None:
            return event
        if event.key == self._own_key:
            return LeaseEvent("delete", event.key, event.revision)
        if _same_node(lease.attrs, own.attrs):
            return replace(event, lease=None, problem="a second lease of this node's public address")
        if _overlaps(lease, own):
            return replace(event, lease=None, problem=f"overlaps this node's own lease {self._own_key}")
        return event

    def _judge_own(self, event: LeaseEvent) -> list[SubnetEvent]:
        """Take note of a change of the own key that this node did not make."""
        own = self._own
        if own is None or event.revision <= own.revision:
            return []
        if event.kind == "delete":
            return [self._lose(f"lease {self._own_key} expired or was deleted")]
        if event.lease is None:
            self._own, self._renew_at = replace(own, revision=event.revision), self._clock()
            return [Trouble("own-lease-unreadable", f"{self._own_key}: {event.problem}; written anew")]
        if not _same_node(event.lease.attrs, own.attrs):
            heir = event.lease.attrs.public_ip or event.lease.attrs.public_ipv6
            return [self._lose(f"lease {self._own_key} belongs to {heir} now")]
        expiry = event.lease.expiry
        self._own = replace(event.lease, attrs=own.attrs)
        self._renew_at = math.inf if expiry is None else expiry - self._margin
        address = own.attrs.public_ip or own.attrs.public_ipv6
        shared = f"{self._own_key} was written by another hand: an administrator's, or a second node's at {address}"
        return [Trouble("own-lease-shared", shared), OwnLeaseChanged(event.lease)]

    def _lose(self, reason: str) -> OwnLeaseLost:
        self._own, self._renew_at = None, math.inf  # its subnet stays the preferred one
        return OwnLeaseLost(reason)

    def _judge_config(self, text: str | None) -> list[SubnetEvent]:
        if text == self._told_config:
            return []
        self._told_config = text
        if self._config is None:
            return []  # nobody has asked for it yet
        if text is None:
            return [ConfigChanged(None, "the network configuration was deleted")]
        try:
            return [ConfigChanged(parse_network_config(text), "")]
        except ConfigError as error:
            return [ConfigChanged(None, str(error))]

    def _tell(self, events: list[SubnetEvent], skipped: tuple[tuple[str, str], ...]) -> None:
        self.counters["skipped_keys"] += len(skipped)
        for key, problem in skipped:
            events.append(Trouble("skipped-key", f"{key}: {problem}; skipped"))
        for event in events:
            self._post(event)

    def _tell_down(self, error: RegistryError) -> None:
        if self._stop.is_set():
            return
        if self._down_since is None:
            self._down_since = time.monotonic()
        if str(error) not in self._told_down:
            self._told_down.add(str(error))
            self._post(Trouble("registry-unavailable", f"{error}; leases and peers stand as they are"))

    def _tell_up(self) -> None:
        if self._down_since is not None:
            seconds = time.monotonic() - self._down_since
            self._down_since = None
            self._told_down.clear()
            self._post(Trouble("registry-recovered", f"the registry answers again, after {seconds:.1f} s"))

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise RegistryUnavailable("the subnet manager is closed")


def _unheard(event: SubnetEvent) -> None:
    raise AssertionError(f"{event} before events()")


def _same_node(one: LeaseAttrs, other: LeaseAttrs) -> bool:
    """Whether two leases are of one node: flannel's rule, the public IPv4 address; the IPv6 one where there is none."""
    if one.public_ip is None and other.public_ip is None:
        return one.public_ipv6 is not None and one.public_ipv6 == other.public_ipv6
    return one.public_ip == other.public_ip


def _overlaps(one: Lease, other: Lease) -> bool:
    return bool(one.subnet and other.subnet and one.subnet.overlaps(other.subnet)) or bool(
        one.ipv6_subnet and other.ipv6_subnet and one.ipv6_subnet.overlaps(other.ipv6_subnet)
    )


def _decode(kind: Literal["put", "delete"], key: str, revision: int, value: bytes, expiry: float | None) -> LeaseEvent:
    if kind == "delete":
        return LeaseEvent("delete", key, revision)
    try:
        return LeaseEvent("put", key, revision, decode_lease(key, value, revision, expiry))
    except LeaseError as error:
        return LeaseEvent("put", key, revision, problem=str(error))
