"""The table of peers: what changed, told from leases and from events of leases. Values in, values out.

A key that cannot be read touches no other, and does not take away what was known of its own: a standing route is better
than none, until the key is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flannel_udp.lease import Lease, LeaseEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flannel_udp.link import Network


@dataclass(frozen=True)
class Difference:
    """What an owner of routes has to do, `deleted` first, and the keys that newly make no sense, with the reason."""

    put: tuple[Lease, ...]
    deleted: tuple[Lease, ...]
    skipped: tuple[tuple[str, str], ...]


class PeerTable:
    """Peers by their key in the registry."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        self.skipped: dict[str, str] = {}
        self._holders: dict[Network, tuple[str, ...]] = {}
        """Under which keys a subnet stands: one, unless others wrote without the guard of ours."""

    def reset(self, events: Iterable[LeaseEvent], keep: bool = False) -> Difference:
        """Make the table hold exactly these puts; whole leases are compared, so a changed address is a change.

        `keep`: peers that are not among them stay for the time being.
        """
        puts = list(events)
        gone = (self.leases.keys() | self.skipped.keys()) - {event.key for event in puts}
        if keep:
            gone -= self.leases.keys()
        return self.apply([*(LeaseEvent("delete", key, 0) for key in sorted(gone)), *puts])

    def apply(self, events: Iterable[LeaseEvent]) -> Difference:
        """Take events in their order and say what came of all of them together."""
        before: dict[str, Lease | None] = {}
        skipped: dict[str, str] = {}
        for event in events:
            before.setdefault(event.key, self.leases.get(event.key))
            if event.kind == "delete":
                self._drop(event.key)
                self.skipped.pop(event.key, None)
            elif event.lease is None:
                if self.skipped.get(event.key) != event.problem:
                    skipped[event.key] = event.problem
                self.skipped[event.key] = event.problem
            else:
                self._hold(event.key, event.lease)
                self.skipped.pop(event.key, None)
        deleted = [old for key, old in before.items() if old and key not in self.leases]
        put = [new for key, old in before.items() if (new := self.leases.get(key)) and not new.same_as(old)]
        return Difference((*put, *self._shared(deleted, put)), tuple(deleted), tuple(skipped.items()))

    def _shared(self, deleted: list[Lease], put: list[Lease]) -> list[Lease]:
        """Leases that stand and have a subnet in common with a deleted one, whose deletion would take theirs away.

        Only a registry that others wrote to without the guard of ours has such pairs.
        """
        keys = {key for lease in deleted for subnet in lease.subnets for key in self._holders.get(subnet, ())}
        return [lease for key in sorted(keys) if (lease := self.leases[key]) not in put]

    def _hold(self, key: str, lease: Lease) -> None:
        if key not in self.leases:  # otherwise its subnets are the same as before: they are what the key says
            for subnet in lease.subnets:
                others = self._holders.setdefault(subnet, (key,))
                if key not in others:
                    self._holders[subnet] = (*others, key)
        self.leases[key] = lease

    def _drop(self, key: str) -> None:
        lease = self.leases.pop(key, None)
        for subnet in lease.subnets if lease else ():
            others = tuple(other for other in self._holders.pop(subnet) if other != key)
            if others:
                self._holders[subnet] = others
