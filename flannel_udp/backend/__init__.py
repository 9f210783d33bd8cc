"""Backends: how the overlay is carried. The protocols, and the table of those that exist.

A backend knows what a lease must say, and has a tunnel for each address family that it carries in one: none where the
kernel's routes do all. A tunnel knows which device and sockets it takes, and where a peer's lease sends packets. Both
hold nothing that changes: that is the data path's (path.py), the peers' (peers.py), and of both together the carrier's
(carrier.py), which are built from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flannel_udp.backend.alloc import AllocBackend
from flannel_udp.backend.hostgw import HostGwBackend
from flannel_udp.backend.udp import UdpBackend
from flannel_udp.backend.vxlan import VxlanBackend
from flannel_udp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flannel_udp.backend.peers import DirectRoute, NextHop
    from flannel_udp.config import NetworkConfig
    from flannel_udp.forwarder import Counters, Doors, Notice, PeerStatus, Queue
    from flannel_udp.lease import Lease, LeaseAttrs
    from flannel_udp.link import Address, Interface, Network
    from flannel_udp.options import NodeOptions
    from flannel_udp.tun import Tun, TunLinks
    from flannel_udp.underlay import ExternalInterface, UnderlayLinks, UnderlaySockets

    Maker = Callable[[NetworkConfig, ExternalInterface, NodeOptions, UnderlayLinks], "Backend"]


class DataPlane(Protocol):
    """The face of the data plane: forwarder.Forwarder."""

    def set_own(self, subnet: Network, tunnel_address: Address, local_addresses: Iterable[Address]) -> None: ...  # noqa: D102
    def set_peer(self, subnet: Network, underlay: Address, port: int, coat: bytes = b"") -> None: ...  # noqa: D102
    def delete_peer(self, subnet: Network) -> None: ...  # noqa: D102
    def publish(self) -> None: ...  # noqa: D102
    def start(self, queues: Sequence[Queue], on_exit: Callable[[str, OSError | None], None],  # noqa: D102
              doors: Doors) -> None: ...
    def stop(self) -> None: ...  # noqa: D102
    def peers(self) -> list[PeerStatus]: ...  # noqa: D102
    def counters(self) -> dict[str, Counters]: ...  # noqa: D102
    def notices(self) -> list[Notice]: ...  # noqa: D102
    def given_up(self) -> dict[str, str]: ...  # noqa: D102
    def status(self) -> dict[str, object]: ...  # noqa: D102


class Tunnel(Protocol):
    """The way of one address family's packets to other nodes, for this node and this configuration."""

    name: str
    """The backend's."""
    family: int
    """4 or 6: of inner and outer packets alike."""
    mtu: int
    """Of the device."""

    def subnet(self, lease: Lease) -> Network:
        """Of a lease the subnet whose packets this tunnel carries; LeaseError if it has none."""

    def tunnel(self, lease: Lease) -> Interface:
        """The device's address under this node's lease."""

    def next_hop(self, lease: Lease) -> NextHop:
        """Where packets for a peer's lease go; LeaseError says why nowhere."""

    def forwarder(self) -> DataPlane:
        """A data plane that encapsulates as this backend does."""

    def check_device(self) -> None:
        """Raise what would hinder open_device(), without leaving anything behind."""

    def open_device(self, lease: Lease, links: TunLinks) -> Tun:
        """The device, up and routed to."""

    def open_sockets(self) -> UnderlaySockets:
        """The socket that datagrams go through, and one that is asked for path MTUs: those of the first queue."""


class Backend(Protocol):
    """One way to carry the overlay, for this node and this configuration."""

    name: str
    mtu: int
    """What pods are told: no tunnel's is smaller."""

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        """One for each address family that is carried in one, in the order of families."""

    def attrs(self) -> LeaseAttrs:
        """What this node's lease tells its peers."""

    def direct(self, lease: Lease) -> Iterable[DirectRoute]:
        """The kernel's routes that reach a peer without a tunnel; none where it is reached through one, or not.

        LeaseError, after those that there are, says why there are no more.
        """


BACKENDS: Mapping[str, Maker] = {"udp": UdpBackend, "vxlan": VxlanBackend, "host-gw": HostGwBackend,
                                 "alloc": AllocBackend}


def backend_of(config: NetworkConfig) -> Maker:
    """The maker of the configured backend."""
    maker = BACKENDS.get(config.backend_type)
    if maker is None:
        raise ConfigError(f'Backend.Type "{config.backend_type}": this program carries {", ".join(BACKENDS)} only')
    return maker
