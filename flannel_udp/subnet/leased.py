"""The subnet manager that chooses this node's subnet itself and keeps it, as a lease, in a registry.

It does what flannel's does, but every write is a compare-and-swap (own.py), whoever loses a race chooses again, and
peers are compared as whole leases (peers.py).

One thread follows the registry and renews; the caller's threads acquire, update and release. Both meet at one lock,
held over a write and over taking note of it, so that the thread never meets the echo of a write before the writer knows
of it. While the registry cannot be reached nothing is taken back: peers and the own lease stand as last known.

A registry may also come back as another one, made anew or restored from a backup. What it says of the own lease counts
at once, for the lease is taken again then; peers that it does not know have a grace to do the same before their routes
are dropped. So have peers whose leases are deleted together with this node's, for whoever deleted the whole folder
deleted nodes that live.

Two nodes with the same public address share one lease, as in flannel: each takes the other for its own former self. It
shows only when the other writes, and is told then (Trouble "own-lease-shared").
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from typing import TYPE_CHECKING, Final, Literal

from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import (
    Compacted,
    ConfigError,
    Conflict,
    Fault,
    LeaseError,
    NoConfig,
    RegistryError,
    RegistryRefused,
    RegistryUnavailable,
    UsageError,
)
from flannel_udp.lease import Lease, LeaseAttrs, LeaseEvent, decode_lease
from flannel_udp.subnet import (
    HEARD_WITHIN,
    ConfigChanged,
    ManagerHealth,
    OwnLeaseRenewed,
    PeersChanged,
    PeersReset,
    SubnetEvent,
    Trouble,
)
from flannel_udp.subnet.own import OwnLease
from flannel_udp.subnet.peers import PeerTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flannel_udp.registry import Change, Registry, Watch
    from flannel_udp.subnet.choose import Subnets

TTL: Final = 86400.0  # specification: flannel's 24 hours
RENEW_MARGIN: Final = 3600.0  # specification: flannel's default of 60 minutes
ACQUIRE_TIMEOUT: Final = 30.0  # our choice: seconds of lost races before giving up
# Our choices, in seconds: a change is to be applied within 2 s of a server's return.
_BACKOFF_MIN: Final = 0.1
_BACKOFF_MAX: Final = 1.0
_CLOSE_SECONDS: Final = 1.0
GRACE: Final = 30.0  # our choice: seconds for peers to come back to a new registry; each tries again within seconds
_KEY_SHOWN: Final = 64  # our choice: characters of a key in the log, and how many keys are named in one line
_KEYS_SHOWN: Final = 4


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
        grace: float = GRACE,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < renew_margin < ttl:
            raise UsageError(f"renew margin {renew_margin:g} s: more than 0, less than the time to live of {ttl:g} s")
        self._registry = registry
        self._acquire_timeout = acquire_timeout
        self._grace = grace
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Guarded by the lock: the configuration in use, and the own lease.
        self._config: NetworkConfig | None = None
        self._told_config: ConfigChanged | None = None
        self._own = OwnLease(registry, ttl, renew_margin, previous, clock, self._rng)
        # The thread's own.
        self._post: Callable[[SubnetEvent], None] = _unheard
        self._peers = PeerTable()
        self._revision = 0
        self._stale = True  # a snapshot is wanted
        self._grace_until: float | None = None
        self._held: set[str] = set()  # deleted, and told to stand until then
        self._first = True
        self._watch: Watch | None = None
        self._down_since: float | None = None
        self._told_down: set[str] = set()
        self._told_refused = ""
        self._delay = _BACKOFF_MIN
        self.counters = {"renewals": 0, "resyncs": 0, "lost_races": 0, "skipped_keys": 0, "errors": 0}
        # What health() tells, by whichever thread called the registry last; this lock is never held over a call.
        self._noting = threading.Lock()
        self._heard_at = time.monotonic()
        self._trouble = ""

    @property
    def skipped(self) -> dict[str, str]:
        """The keys that are skipped now, with their reasons."""
        return dict(self._peers.skipped)

    def config(self) -> NetworkConfig:
        """See the protocol. acquire() chooses by what this gave last."""
        with self._noted():
            stored = self._registry.read_config()
        config = parse_network_config(stored.text)
        with self._lock:
            self._config, self._told_config = config, ConfigChanged(config, "")
        return config

    def standing(self, attrs: LeaseAttrs) -> Lease | None:
        """See the protocol."""
        with self._lock, self._noted():
            return self._own.standing(attrs)

    def acquire(self, attrs: LeaseAttrs) -> Lease:
        """See the protocol."""
        config = self._config or self.config()
        deadline = time.monotonic() + self._acquire_timeout
        tries = 0
        while True:
            try:
                with self._lock, self._noted():
                    return self._own.acquire(config, attrs)
            except Conflict:
                tries += 1
                self.counters["lost_races"] += 1
            if time.monotonic() > deadline:
                raise LeaseError(f"no subnet: others were faster {tries} times in {self._acquire_timeout:g} s")
            # Spread those who race: the more often this node lost, the wider.
            self._pause(self._rng.uniform(0, min(2.0, 0.002 * 2 ** min(tries, 10))))

    def update(self, attrs: LeaseAttrs) -> Lease:
        """See the protocol."""
        with self._lock, self._noted():
            lease = self._own.update(attrs)
            self._stale = True  # under another address other leases are this node's own, and no peers
            return lease

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
            self._own.release()

    def health(self) -> ManagerHealth:
        """See the protocol."""
        with self._noting:
            lag = time.monotonic() - self._heard_at
            return ManagerHealth(lag, self._trouble, self._own.written_at, dict(self.counters))

    def close(self) -> None:
        """See the protocol."""
        self._stop.set()
        if (watch := self._watch) is not None:
            watch.cancel()
        self._registry.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)

    # The thread.

    def _run(self) -> None:
        try:
            self._keep_following()
        except Exception as error:  # whatever it is, the owner raises it
            self._post(Fault("subnet-manager", error))

    def _keep_following(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Compacted:
                self._stale = True
            except RegistryError as error:
                self._tell_down(error)
            self._stop.wait(self._rng.uniform(self._delay / 2, self._delay))
            self._delay = min(self._delay * 2, _BACKOFF_MAX)

    def _follow(self) -> None:
        """Follow the registry from where it was left, until the watch fails or a new snapshot is wanted."""
        if self._stale or self._down_since is not None:
            self._resync()
            self._note_heard()
            self._tell_up()
        watch = self._registry.watch(self._revision)
        self._watch = watch
        try:
            while not self._stale and not self._stop.is_set():
                self._renew()
                until_renewal = max(0.0, self._own.renew_at - self._clock())
                changes = watch.wait(min(HEARD_WITHIN, until_renewal, self._grace_left()))
                self._note_heard()
                self._delay = _BACKOFF_MIN
                if changes:
                    self._apply(changes)
                if not self._grace_left():
                    self._stale = True
        finally:
            self._watch = None
            watch.close()

    def _renew(self) -> None:
        with self._lock:
            try:
                renewed = self._own.lease if self._own.renew() else None
            except Conflict:
                renewed, self._stale = None, True  # somebody wrote it: a snapshot shows who
            except RegistryRefused as error:  # it answers, so the watch goes on
                renewed = None
                self._put_off(error)
        if renewed and self._told_refused:
            self._told_refused = ""
            self._post(Trouble("registry-recovered", "the lease is renewed again"))
        if renewed:
            self.counters["renewals"] += 1
            self._post(OwnLeaseRenewed(renewed))

    def _put_off(self, error: RegistryRefused) -> None:
        self._note_failure(error)
        self._own.put_off()
        if str(error) != self._told_refused:
            self._told_refused = str(error)
            self._post(Trouble("renewal-refused", f"{error}; the lease is not renewed, which is tried again and again"))

    def _resync(self) -> None:
        """Compare everything with a snapshot."""
        with self._lock:  # from the snapshot on, so that this node writes nothing that it does not show
            listing = self._registry.snapshot()
            told = self._judge_config(self._config_text())
            puts = [_decode("put", entry.key, entry.revision, entry.value, entry.expiry) for entry in listing.entries]
            own = self._own.lease
            known = max(self._revision, own.revision if own else 0)
            found = next((put for put in puts if put.key == self._own.key), None)
            told += self._own.compare(found or LeaseEvent("delete", self._own.key, listing.revision))
            peers = [self._own.as_peer(put) for put in puts]
            self._stale = False
        # A registry without the own lease may be a new one too, whose count has overtaken the old one's.
        other = listing.revision < known or bool(own and not found)
        difference = self._peers.reset(peers, keep=self._in_grace(other))
        absent = self._peers.leases.keys() - {put.key for put in puts}
        told += self._tell_other(listing.revision, known, absent) if other else self._hold(absent)
        self._revision = listing.revision
        self.counters["resyncs"] += 1
        if self._first:
            told.append(PeersReset(tuple(self._peers.leases.values())))
            self._first = False
        elif difference.put or difference.deleted:
            told.append(PeersChanged(difference.put, difference.deleted))
        self._tell(told, difference.skipped)

    def _config_text(self) -> str | None:
        try:
            return self._registry.read_config().text
        except NoConfig:
            return None

    def _in_grace(self, other: bool) -> bool:
        """Whether absent peers are to stand; a grace begins with another registry, and anew after each outage in it."""
        if other or (self._grace_until is not None and self._down_since is not None):
            self._grace_until = time.monotonic() + self._grace
        if not self._grace_left():
            self._grace_until = None
            self._held.clear()
        return self._grace_until is not None

    def _grace_left(self) -> float:
        """Seconds until absent peers are dropped."""
        return math.inf if self._grace_until is None else max(0.0, self._grace_until - time.monotonic())

    def _tell_other(self, revision: int, known: int, keys: set[str]) -> list[SubnetEvent]:
        self._held |= keys
        absent = len(keys)
        if revision >= known and not absent:
            return []
        other = f"the registry is another one than before, at revision {revision} after {known}"
        what = other if revision < known else "the registry lost this node's lease, and others"
        stand = f"; {absent} peers that it does not know stand for {self._grace:g} s more" if absent else ""
        return [Trouble("registry-replaced", what + stand)]

    def _apply(self, changes: tuple[Change, ...]) -> None:
        """Take what a watch told."""
        self._revision = changes[-1].revision
        told: list[SubnetEvent] = []
        peers: list[LeaseEvent] = []
        deleted: set[str] = set()
        with self._lock:
            for change in changes:
                if change.kind == "config" or change.kind == "config-delete":
                    text = change.value.decode("utf-8", "replace") if change.kind == "config" else None
                    told += self._judge_config(text)
                    continue
                event = _decode(change.kind, change.key, change.revision, change.value, change.expiry)
                held = self._own.lease is not None
                told += self._own.judge(event)
                if held and self._own.lease is None:
                    self._stale = True  # what was no peer beside the own lease may be one now
                    if event.kind == "delete":
                        self._grace_until = time.monotonic() + self._grace
                if event.kind == "delete" and event.key != self._own.key:
                    deleted.add(event.key)
                peers.append(self._own.as_peer(event))
        if self._grace_left() and self._grace_until is not None:
            told += self._hold(deleted & self._peers.leases.keys())
            peers = [event for event in peers if event.kind != "delete" or event.key not in deleted]
        difference = self._peers.apply(peers)
        if difference.put or difference.deleted:
            told.append(PeersChanged(difference.put, difference.deleted))
        self._tell(told, difference.skipped)

    def _hold(self, keys: set[str]) -> list[SubnetEvent]:
        """Say, once, of which deleted peers the routes stand until the grace is over."""
        keys = keys - self._held
        if not keys:
            return []
        self._held |= keys
        which = ", ".join(sorted(keys)) if len(keys) <= _KEYS_SHOWN else f"{len(keys)} leases"
        return [Trouble("leases-deleted", f"{which} deleted, together with this node's or soon after; packets go there "
                        f"as before for up to {self._grace:g} s, in which a living node takes its lease again")]

    def _judge_config(self, text: str | None) -> list[SubnetEvent]:
        if self._config is None:
            return []  # nobody has asked for it yet
        changed = _read_config(text)
        if changed == self._told_config:
            return []
        self._told_config = changed
        return [changed]

    def _tell(self, events: list[SubnetEvent], skipped: tuple[tuple[str, str], ...]) -> None:
        self.counters["skipped_keys"] += len(skipped)
        for key, problem in skipped:
            shown = key if len(key) <= _KEY_SHOWN else f"{key[:_KEY_SHOWN]}..."
            events.append(Trouble("skipped-key", f"{shown}: {problem}; skipped"))
        for event in events:
            self._post(event)

    def _tell_down(self, error: RegistryError) -> None:
        if self._stop.is_set():
            return
        self._note_failure(error)
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

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Note of the calls in the block, which are no business of the thread, whether the registry answered."""
        try:
            yield
        except (Conflict, NoConfig):
            self._note_heard()  # they are answers
            raise
        except RegistryError as error:
            self._note_failure(error)
            raise
        self._note_heard()

    def _note_heard(self) -> None:
        with self._noting:
            self._heard_at, self._trouble = time.monotonic(), ""

    def _note_failure(self, error: RegistryError) -> None:
        with self._noting:
            self.counters["errors"] += 1
            self._trouble = str(error)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise RegistryUnavailable("the subnet manager is closed")


def _unheard(event: SubnetEvent) -> None:
    raise AssertionError(f"{event} before events()")


def _read_config(text: str | None) -> ConfigChanged:
    if text is None:
        return ConfigChanged(None, "the network configuration was deleted")
    try:
        return ConfigChanged(parse_network_config(text), "")
    except ConfigError as error:
        return ConfigChanged(None, str(error))


def _decode(kind: Literal["put", "delete"], key: str, revision: int, value: bytes, expiry: float | None) -> LeaseEvent:
    if kind == "delete":
        return LeaseEvent("delete", key, revision)
    try:
        return LeaseEvent("put", key, revision, decode_lease(key, value, revision, expiry))
    except LeaseError as error:
        return LeaseEvent("put", key, revision, problem=str(error))
