"""flannel's host-gw backend: no tunnel, but a route of the kernel's to each peer's subnet by way of its node.

The nodes must be on one link. One that is behind a router would not be reached, for the router knows nothing of pods;
flannel sets a route all the same or logs the kernel's refusal, here such a peer is skipped with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannel_udp.backend.family import PUBLIC, families_of, host_of, subnet_of, underlay_of
from flannel_udp.backend.peers import DirectRoute
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.lease import LeaseAttrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannel_udp.backend import Tunnel
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions
    from flannel_udp.underlay import ExternalInterface, UnderlayLinks


class HostGwBackend:
    """The host-gw backend on one external interface."""

    name = "host-gw"

    def __init__(self, config: NetworkConfig, external: ExternalInterface, options: NodeOptions,
                 links: UnderlayLinks) -> None:
        del options
        self._families = families_of(config)
        public = {4: external.public_address, 6: external.public_address6}
        for family in self._families:
            if public[family] != underlay_of(external, family):
                raise UnderlayError(f"{PUBLIC[family]} {public[family]} is not the address of interface "
                                    f"{external.name}: host-gw needs all nodes on one link, and so none behind NAT")
        self.tunnels: tuple[Tunnel, ...] = ()
        self.mtu = external.mtu
        self._external = external
        self._links = links

    def attrs(self) -> LeaseAttrs:
        """The public addresses and the name: byte for byte flannel's."""
        return LeaseAttrs(self._external.address if 4 in self._families else None,
                          self._external.address6 if 6 in self._families else None, self.name)

    def direct(self, lease: Lease) -> Iterator[DirectRoute]:
        """A route for each family that both nodes have; LeaseError says at last why one has none."""
        if lease.attrs.backend_type != self.name:
            other = lease.attrs.backend_type or "udp or alloc"
            raise LeaseError(f"is a node of the {other} backend, which sends no packets to {self.name} nodes")
        families = [family for family in self._families if (lease.subnet if family == 4 else lease.ipv6_subnet)]
        if not families:
            raise LeaseError("has no subnet of a family that this node has")
        reasons = []
        for family in families:
            try:
                route = self._route(lease, family)
            except LeaseError as error:  # the other family may have its way all the same
                reasons.append(str(error))
            else:
                yield route
        if reasons:
            raise LeaseError("; ".join(reasons))

    def _route(self, lease: Lease, family: int) -> DirectRoute:
        address = host_of(lease, family)
        way = self._links.route_to(address)
        if way and not way.unicast:
            raise LeaseError(f"{PUBLIC[family]} {address} is not the address of one other host")
        if way is None or way.index != self._external.index or way.gateway or way.blackhole:
            by = f"is reached by way of {way.gateway}" if way and way.gateway else f"is not on {self._external.name}"
            raise LeaseError(f"{PUBLIC[family]} {address} {by}: host-gw needs all nodes on one link")
        return DirectRoute(subnet_of(lease, family), address, self._external.index)
