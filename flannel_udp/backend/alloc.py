"""flannel's alloc backend: a subnet is leased and told in subnet.env; to bring packets there is left to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannel_udp.backend.family import families_of
from flannel_udp.lease import LeaseAttrs

if TYPE_CHECKING:
    from flannel_udp.backend import Tunnel
    from flannel_udp.backend.peers import DirectRoute
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions
    from flannel_udp.underlay import ExternalInterface, UnderlayLinks


class AllocBackend:
    """The alloc backend."""

    name = "alloc"

    def __init__(self, config: NetworkConfig, external: ExternalInterface, options: NodeOptions,
                 links: UnderlayLinks) -> None:
        del options, links
        self.tunnels: tuple[Tunnel, ...] = ()
        self.mtu = external.mtu
        self._families = families_of(config)
        self._external = external

    def attrs(self) -> LeaseAttrs:
        """The public addresses, without a name: byte for byte flannel's."""
        return LeaseAttrs(self._external.public_address if 4 in self._families else None,
                          self._external.public_address6 if 6 in self._families else None)

    def direct(self, lease: Lease) -> tuple[DirectRoute, ...]:
        """None."""
        del lease
        return ()
