"""This node's own lease in a registry: chosen, written by compare-and-swap, and judged when another hand touches it.

A new lease is created only if nothing below subnets/ changed since the snapshot it was chosen from. It is renewed,
updated or given back only at the revision that this node wrote or saw last, so that a node that was away too long
cannot overwrite its heir. A reservation (an entry without expiry) stays one, whatever is done to it.

A write whose answer never came may have been done all the same. What it would have written is remembered, so that its
echo is not taken for another hand's.

Not safe for several threads: leased.py holds a lock around every call.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from flannel_udp.errors import Conflict, LeaseError, RegistryRefused, RegistryUnavailable
from flannel_udp.lease import (
    Lease,
    LeaseAttrs,
    LeaseEvent,
    decode_attrs,
    decode_lease,
    encode_attrs,
    parse_subnet_key,
    subnet_key,
)
from flannel_udp.registry import UNTOLD, Entry
from flannel_udp.subnet import OwnLeaseChanged, OwnLeaseLost, SubnetEvent, Trouble
from flannel_udp.subnet.choose import Subnets, choose, fits

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from flannel_udp.config import NetworkConfig
    from flannel_udp.registry import Registry

_RETRY: Final = 10.0  # our choice: seconds until a renewal that was refused is tried again


class OwnLease:
    """The own lease, if there is one: `lease`, its `key` in the registry and the time `renew_at` to renew it."""

    def __init__(
        self,
        registry: Registry,
        ttl: float,
        margin: float,
        previous: Subnets,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._registry = registry
        self._ttl = ttl
        self._margin = margin
        self._previous = previous
        self._clock = clock
        self._rng = rng
        self.lease: Lease | None = None
        self.key = ""
        self.renew_at = math.inf
        self.written_at: float | None = None
        self._unanswered: LeaseAttrs | None = None

    def standing(self, attrs: LeaseAttrs) -> Lease | None:
        """What the registry has for this node before acquire() writes it; of several any one."""
        for entry in self._registry.snapshot().entries:
            with contextlib.suppress(LeaseError):
                lease = decode_lease(entry.key, entry.value, entry.revision, entry.expiry)
                if same_node(lease.attrs, attrs):
                    return lease
        return None

    def acquire(self, config: NetworkConfig, attrs: LeaseAttrs) -> Lease:
        """Take the lease of this node's address, or a new one; Conflict where another node was faster."""
        listing = self._registry.snapshot()
        taken: dict[str, Subnets] = {}
        mine: list[Entry] = []
        for entry in listing.entries:
            try:
                taken[entry.key] = parse_subnet_key(entry.key)  # whatever the value, the subnet is not free
                if same_node(decode_attrs(entry.value), attrs):
                    mine.append(entry)
            except LeaseError:
                continue
        fitting = [entry for entry in mine if fits(config, taken[entry.key])]
        if fitting:
            # An administrator's reservation goes before what this node happened to have.
            entry = min(fitting, key=lambda entry: (entry.expiry is not None, taken[entry.key] != self._previous,
                                                    entry.key))
            return self._write(entry, attrs)
        for entry in mine:
            if entry.expiry is not None:  # a reservation is an administrator's, even one that no longer fits
                self._registry.delete(entry.key, entry.revision)
                del taken[entry.key]
        chosen = choose(config, taken.values(), self._previous, self._rng)
        entry = self._registry.create(subnet_key(*chosen), encode_attrs(attrs), self._ttl, listing.revision)
        return self._note(entry, attrs)

    def update(self, attrs: LeaseAttrs) -> Lease:
        """Write new attributes; LeaseError if the lease is not this node's any more."""
        try:
            return self._write(self._entry(), attrs)
        except Conflict:
            return self._write(self._find(), attrs)  # what another wrote may not have been judged yet

    def renew(self) -> bool:
        """Renew if it is time; Conflict if another hand wrote the lease."""
        if self.lease is None or self._clock() < self.renew_at:
            return False
        self._write(self._entry(), self.lease.attrs)
        return True

    def put_off(self) -> None:
        """Renew a little later: the registry will not now."""
        self.renew_at = self._clock() + min(_RETRY, self._margin / 4)

    def release(self) -> None:
        """Delete the lease, so that its subnet is free at once."""
        if self.lease is None:
            return
        if self.lease.expiry is not None:
            try:
                self._registry.delete(self.key, self.lease.revision)
            except Conflict:
                self._registry.delete(self.key, self._find().revision)
        self._forget()

    def judge(self, event: LeaseEvent) -> list[SubnetEvent]:
        """Take note of a change of the own key, and say what it means unless this node made it."""
        own = self.lease
        if own is None or event.key != self.key or event.revision <= own.revision:
            return []  # the revision tells the echo of this node's own writing
        return self._judge(own, event)

    def compare(self, event: LeaseEvent) -> list[SubnetEvent]:
        """Take note of how the own key stands in a snapshot ("delete": not at all) made since the last write here.

        Revisions say nothing then: a registry that was made anew or restored from a backup counts from another start.
        """
        own = self.lease
        if own is None:
            return []
        lease = event.lease
        if lease is None or not same_node(lease.attrs, own.attrs) or event.revision > own.revision:
            return self._judge(own, event)
        if event.revision < own.revision:
            self._keep(replace(lease, attrs=own.attrs))
            self.renew_at = self._clock()  # what stands there is a backup's
        return []

    def _judge(self, own: Lease, event: LeaseEvent) -> list[SubnetEvent]:
        if event.kind == "delete":
            self._forget()
            return [OwnLeaseLost(f"lease {self.key} expired or was deleted")]
        if event.lease is None:
            self.lease, self.renew_at = replace(own, revision=event.revision), self._clock()
            return [Trouble("own-lease-unreadable", f"{self.key}: {event.problem}; written anew")]
        if event.lease.attrs == self._unanswered:
            self._keep(event.lease)
            self._unanswered, self.written_at = None, self._clock()
            return []
        if not same_node(event.lease.attrs, own.attrs):
            self._forget()
            heir = event.lease.attrs.public_ip or event.lease.attrs.public_ipv6
            return [OwnLeaseLost(f"lease {self.key} belongs to {heir} now")]
        kept = self._keep(replace(event.lease, attrs=own.attrs))
        address = own.attrs.public_ip or own.attrs.public_ipv6
        shared = f"{self.key} was written by another hand: an administrator's, or a second node's at {address}"
        return [Trouble("own-lease-shared", shared), OwnLeaseChanged(replace(event.lease, expiry=kept.expiry))]

    def as_peer(self, event: LeaseEvent) -> LeaseEvent:
        """What an event means to the table of peers: nothing of this node's own is a peer."""
        own, lease = self.lease, event.lease
        if lease and lease.expiry is None and lease.attrs.public_ip is None and lease.attrs.public_ipv6 is None:
            return LeaseEvent("delete", event.key, event.revision)  # reserved for nobody
        if own is None:
            return event
        if event.key == self.key:
            return LeaseEvent("delete", event.key, event.revision)
        if lease is None:
            return event
        if same_node(lease.attrs, own.attrs):
            return replace(event, lease=None, problem="a second lease of this node's public address")
        if _overlap(lease, own):
            return replace(event, lease=None, problem=f"overlaps this node's own lease {self.key}")
        return event

    def _entry(self) -> Entry:
        """The own lease as an entry, for what a write needs of it."""
        if self.lease is None:
            raise LeaseError("this node holds no lease to write")
        return Entry(self.key, b"", self.lease.revision, self.lease.expiry)

    def _find(self) -> Entry:
        """Find the own lease in the registry; LeaseError if it is another's by now."""
        assert self.lease is not None
        for entry in self._registry.snapshot().entries:
            if entry.key == self.key:
                attrs = decode_attrs(entry.value)
                if attrs == self._unanswered or same_node(attrs, self.lease.attrs):
                    return entry
        raise LeaseError(f"lease {self.key} is no longer this node's")

    def _write(self, entry: Entry, attrs: LeaseAttrs) -> Lease:
        ttl = None if entry.expiry is None else self._ttl
        try:
            written = self._registry.update(entry.key, encode_attrs(attrs), ttl, entry.revision)
        except RegistryRefused:  # this one was answered
            raise
        except RegistryUnavailable:
            self._unanswered = attrs
            raise
        return self._note(written, attrs)

    def _note(self, entry: Entry, attrs: LeaseAttrs) -> Lease:
        """Remember what this node wrote."""
        subnet, ipv6_subnet = parse_subnet_key(entry.key)
        self.key = entry.key
        self.written_at = self._clock()
        self._unanswered = None
        return self._keep(Lease(subnet, ipv6_subnet, attrs, entry.expiry, entry.revision))

    def _keep(self, lease: Lease) -> Lease:
        if lease.expiry == UNTOLD:  # another hand wrote it
            lease = replace(lease, expiry=self._registry.expiry(self.key))
        self.lease = lease
        self._previous = lease.subnet, lease.ipv6_subnet
        self.renew_at = math.inf if lease.expiry is None else lease.expiry - self._margin
        return lease

    def _forget(self) -> None:
        """Hold no lease any more; its subnet stays the preferred one."""
        self.lease, self.renew_at = None, math.inf


def same_node(one: LeaseAttrs, other: LeaseAttrs) -> bool:
    """Whether two leases are of one node: flannel's rule, the public IPv4 address; the IPv6 one where there is none."""
    if one.public_ip is None and other.public_ip is None:
        return one.public_ipv6 is not None and one.public_ipv6 == other.public_ipv6
    return one.public_ip == other.public_ip


def _overlap(one: Lease, other: Lease) -> bool:
    return bool(one.subnet and other.subnet and one.subnet.overlaps(other.subnet)) or bool(
        one.ipv6_subnet and other.ipv6_subnet and one.ipv6_subnet.overlaps(other.ipv6_subnet)
    )
