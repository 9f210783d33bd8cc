"""Whether this node does its work and, if not, what is missing; and the figures of its work, as values.

For probes, systemd and /metrics (probes.py). The owner thread alone asks; nothing in here waits for anybody, or costs
more with more peers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flannel_udp.status import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannel_udp.backend.carrier import Carrier
    from flannel_udp.lease import Lease
    from flannel_udp.status import Problems
    from flannel_udp.subnet import SubnetManager

# Our choice: seconds without a word from the registry before this node no longer counts as ready. Longer than a restart
# of etcd or the election of a leader; meanwhile standing routes serve.
REGISTRY_GRACE = 60.0


class Condition:
    """What the owner thread notes of itself, beside what is asked of manager, carrier and problems."""

    def __init__(self, manager: SubnetManager, problems: Problems) -> None:
        self._manager = manager
        self._problems = problems
        self._carrier: Carrier | None = None
        self.awaited = "starting"
        """What the start still waits for; empty once it is over."""
        self.lease_lost = ""
        """Why this node's lease is no longer its own; empty while it is."""
        self.config = "current"
        """The network configuration in use is that of the registry; or there it is "changed", or "invalid"."""

    def opened(self, carrier: Carrier) -> None:
        """Tell of what carries packets, which the start makes late."""
        self._carrier = carrier

    def missing(self) -> list[str]:
        """What is missing for this node to be ready, a line each."""
        return [self.awaited] if self.awaited or not self._carrier else list(self._missing(self._carrier))

    def line(self) -> str:
        """The whole in one line."""
        if missing := self.missing():
            return "; ".join(missing)
        assert self._carrier
        assert self._carrier.lease
        devices = [f"device {device['name']}" for device in self._carrier.devices()]
        subnets = [f"subnet {subnet}" for subnet in self._carrier.lease.subnets]
        return ", ".join([*subnets, *devices, f"{self._carrier.peer_count()} peers"])

    def health(self) -> dict[str, Any]:
        """For /readyz."""
        return {"missing": self.missing()}

    def figures(self) -> dict[str, Any]:
        """For /metrics; without a data path (at the start) what there is."""
        registry = self._manager.health()
        told = {
            "version": VERSION,
            "ready": not self.missing(),
            "config": self.config,
            "registry": {"up": not registry.trouble, "lag": registry.lag, **registry.counters},
            "problems": [what for what, _ in self._problems.items()],
        }
        carrier = self._carrier
        if carrier is None or carrier.lease is None:
            return told
        return {**told, "lease": _lease(carrier.lease, registry.lease_written_at), "paths": carrier.figures(),
                "direct": carrier.routes.figures()}

    def _missing(self, carrier: Carrier) -> Iterator[str]:
        if self.lease_lost:
            yield f"lease: {self.lease_lost}"
        elif carrier.lease and carrier.lease.expiry is not None and carrier.lease.expiry <= time.time():
            yield f"lease: {carrier.lease.key} has expired"
        registry = self._manager.health()
        if registry.trouble and registry.lag > REGISTRY_GRACE:
            yield f"registry: not heard for {registry.lag:.0f} s: {registry.trouble}"
        yield from (f"data path: {trouble}" for trouble in carrier.troubles())
        # A changed configuration is no fault of this node's: it goes on with the old one, which works.
        yield from (f"{what}: {line}" for what, line in self._problems.items() if what != "config")


def _lease(lease: Lease, written_at: float | None) -> dict[str, Any]:
    return {
        "subnet": str(lease.subnet or ""),
        "ipv6_subnet": str(lease.ipv6_subnet or ""),
        "expiry": lease.expiry,
        "age": None if written_at is None else max(0.0, time.time() - written_at),
    }
