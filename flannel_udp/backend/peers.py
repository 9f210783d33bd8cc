"""Which peers' leases the forwarder carries, and which it cannot, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flannel_udp import logs
from flannel_udp.errors import LeaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flannel_udp.backend import DataPlane, Tunnel
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, Network

_log = logs.get("peers")


@dataclass(frozen=True)
class NextHop:
    """Where packets for a subnet go."""

    subnet: Network
    underlay: Address
    port: int
    coat: bytes = b""
    """What stands before each inner packet."""


@dataclass(frozen=True)
class DirectRoute:
    """A peer's subnet that the kernel routes to without a tunnel, by way of the peer's address on a link of ours."""

    subnet: Network
    gateway: Address
    index: int


class PeerRoutes:
    """The peers' leases, told to a data plane one by one. What cannot be told is skipped and touches no other."""

    def __init__(self, tunnel: Tunnel, plane: DataPlane) -> None:
        self._tunnel = tunnel
        self._plane = plane
        self._leases: dict[str, Lease] = {}
        self._routed: dict[str, Network] = {}
        self.skipped: dict[str, str] = {}
        """By the lease's key: why its packets have nowhere to go."""

    def use(self, tunnel: Tunnel) -> None:
        """Take the same kind of tunnel on another underlay."""
        self._tunnel = tunnel

    def count(self) -> int:
        """How many are routed to."""
        return len(self._routed)

    def reset(self, leases: Iterable[Lease]) -> None:
        """These are all peers that there are; those that stay are not interrupted."""
        fresh = {lease.key: lease for lease in leases}
        self.change(fresh.values(), [lease for key, lease in self._leases.items() if key not in fresh])

    def change(self, put: Iterable[Lease], deleted: Sequence[Lease]) -> None:
        """Peers that came or changed, and peers that went."""
        for lease in deleted:
            self._leases.pop(lease.key, None)
            self.skipped.pop(lease.key, None)
            self._unroute(lease.key)
        for lease in put:
            self._leases[lease.key] = lease
            self._route(lease)
        if deleted:
            self.retry()  # who went may have stood in their way, or left the slot that they lacked

    def retry(self) -> None:
        """Try the skipped ones again: this node's own subnet may have stood in their way."""
        for key in list(self.skipped):
            self._route(self._leases[key])

    def _route(self, lease: Lease) -> None:
        try:
            hop = self._tunnel.next_hop(lease)
            self._plane.set_peer(hop.subnet, hop.underlay, hop.port, hop.coat)
        except LeaseError as error:
            self._unroute(lease.key)
            if self.skipped.get(lease.key) != str(error):
                self.skipped[lease.key] = str(error)
                _log.warning("peer skipped", lease=lease.key, reason=error)
            return
        self.skipped.pop(lease.key, None)
        self._routed[lease.key] = hop.subnet

    def _unroute(self, key: str) -> None:
        subnet = self._routed.pop(key, None)
        if subnet is not None:
            self._plane.delete_peer(subnet)
