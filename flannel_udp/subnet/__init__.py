"""Who gets which subnet: the protocol of a subnet manager, and the events that it posts.

A manager finds the network configuration, holds this node's lease and follows its peers'. leased.py chooses a subnet
itself and keeps it in a registry; a manager whose subnets are given by somebody else fits the same protocol. The daemon
sees nothing but this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from flannel_udp.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease, LeaseAttrs


@dataclass(frozen=True)
class PeersReset:
    """All peers; what is not among them is gone. Posted first."""

    leases: tuple[Lease, ...]


@dataclass(frozen=True)
class PeersChanged:
    """Peers that came or changed, and peers that went. Apply `deleted` first: a subnet may move between two leases."""

    put: tuple[Lease, ...]
    deleted: tuple[Lease, ...]


@dataclass(frozen=True)
class OwnLeaseChanged:
    """Somebody else wrote this node's lease, which is still this node's."""

    lease: Lease


@dataclass(frozen=True)
class OwnLeaseRenewed:
    """The manager renewed this node's lease: the same as before but for expiry and revision."""

    lease: Lease


@dataclass(frozen=True)
class OwnLeaseLost:
    """This node's lease expired, was deleted or now belongs to another; acquire() again."""

    reason: str


@dataclass(frozen=True)
class ConfigChanged:
    """The network configuration is another than config() gave; None: no valid one, and `problem` says why."""

    config: NetworkConfig | None
    problem: str


@dataclass(frozen=True)
class Trouble:
    """Something for the log: `cause` is a fixed word per kind of trouble, `detail` the line for the user."""

    cause: str
    detail: str


SubnetEvent: TypeAlias = (
    PeersReset | PeersChanged | OwnLeaseChanged | OwnLeaseRenewed | OwnLeaseLost | ConfigChanged | Trouble | Fault
)


@dataclass(frozen=True)
class ManagerHealth:
    """How a manager stands with the place that it follows."""

    lag: float
    """Seconds since that place was last heard; it may be quiet for HEARD_WITHIN of them."""
    trouble: str
    """Why it is not heard; empty while it is."""
    lease_written_at: float | None
    """Unix time of the last writing of the own lease; None: not by this process."""
    counters: Mapping[str, int]


HEARD_WITHIN = 10.0
"""Our choice: seconds; how old the last word of a place that is well may be, and how late a clock's step is noticed."""


class SubnetManager(Protocol):
    """Gives this node its subnet, keeps it, and tells of peers."""

    def config(self) -> NetworkConfig:
        """Return the network configuration; raises RegistryUnavailable, NoConfig, ConfigError."""

    def standing(self, attrs: LeaseAttrs) -> Lease | None:
        """The lease that the node of these public addresses has as yet, or None; raises RegistryError."""

    def acquire(self, attrs: LeaseAttrs) -> Lease:
        """Get a lease for this node, the one it had if possible; raises OutOfSubnets, LeaseError, RegistryError."""

    def update(self, attrs: LeaseAttrs) -> Lease:
        """Write new attributes to the own lease; raises LeaseError if there is none any more."""

    def events(self, post: Callable[[SubnetEvent], None]) -> None:
        """Start following peers and renewing, in threads of the manager's own; `post` must not block."""

    def release(self) -> None:
        """Give the own lease back, so that its subnet is free at once."""

    def health(self) -> ManagerHealth:
        """How things stand; waits for nothing, so that the owner may ask at any time."""

    def close(self) -> None:
        """End all threads within a second; idempotent."""
