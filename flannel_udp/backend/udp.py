"""flannel's udp backend: one raw IP packet per datagram, port 8285 at both ends, nothing else.

A udp lease says the public address and no more, neither backend nor port: each node uses its own configured port for
all. flannel's carries IPv4 only. Here IPv6 is carried in the same way, between IPv6 addresses and by a device of its
own, where the configuration enables it: an extension, which flannel's nodes leave alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannel_udp._dataplane import UDP_OVERHEAD_V4, UDP_OVERHEAD_V6
from flannel_udp.backend.family import families_of, host_of, network_of, subnet_of, tunnel_of, underlay_of
from flannel_udp.backend.peers import DirectRoute, NextHop
from flannel_udp.config import UDP_MTUS_MIN, parse_udp_config
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.forwarder import Encapsulation, Forwarder, Loops
from flannel_udp.lease import LeaseAttrs
from flannel_udp.steering import steer
from flannel_udp.tun import check_tun, open_tun
from flannel_udp.underlay import open_underlay_sockets

if TYPE_CHECKING:
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.link import Interface, Network
    from flannel_udp.options import NodeOptions
    from flannel_udp.tun import Tun, TunLinks
    from flannel_udp.underlay import ExternalInterface, UnderlayLinks, UnderlaySockets

# Specification: flannel's pattern. Our choice: one that neither it nor the names of flannel's other backends ever meet.
DEVICES = {4: "flannel%d", 6: "flannel-v6-%d"}
OVERHEADS = {4: UDP_OVERHEAD_V4, 6: UDP_OVERHEAD_V6}


class UdpBackend:
    """The udp backend on one external interface."""

    name = "udp"

    def __init__(self, config: NetworkConfig, external: ExternalInterface, options: NodeOptions,
                 _links: UnderlayLinks | None = None) -> None:
        self.tunnels = tuple(UdpTunnel(family, config, external, options) for family in families_of(config))
        self.mtu = min(tunnel.mtu for tunnel in self.tunnels)
        self._attrs = LeaseAttrs(external.public_address, external.public_address6)

    def attrs(self) -> LeaseAttrs:
        """The public addresses, and nothing else: of IPv4 byte for byte flannel's."""
        return self._attrs

    def direct(self, _lease: Lease) -> tuple[DirectRoute, ...]:
        """Nobody is reached past the tunnel, as with flannel."""
        return ()


class UdpTunnel:
    """One address family of it."""

    name = UdpBackend.name

    def __init__(self, family: int, config: NetworkConfig, external: ExternalInterface, options: NodeOptions) -> None:
        keys = parse_udp_config(config)
        self.family = family
        self._network, self._subnet_len = network_of(config, family)
        self._address = underlay_of(external, family)
        underlay_mtu = keys.mtu or external.mtu
        if underlay_mtu < UDP_MTUS_MIN[family]:
            raise UnderlayError(f"interface {external.name} has MTU {underlay_mtu}; udp over IPv{family} needs "
                                f"{UDP_MTUS_MIN[family]}")
        self.mtu = underlay_mtu - OVERHEADS[family]
        self.port = keys.port
        self._options = options

    def subnet(self, lease: Lease) -> Network:
        """That of the family."""
        return subnet_of(lease, self.family)

    def tunnel(self, lease: Lease) -> Interface:
        """The subnet's network address, alone."""
        return tunnel_of(lease, self.family)

    def next_hop(self, lease: Lease) -> NextHop:
        """The peer's public address and our own port, as with flannel. Nodes of another backend would not listen."""
        if lease.attrs.backend_type not in ("", self.name):
            raise LeaseError(f"is a node of the {lease.attrs.backend_type} backend, which does not understand udp")
        return NextHop(self.subnet(lease), host_of(lease, self.family), self.port)

    def forwarder(self) -> Forwarder:
        """A data plane for the network: no coat; flannel counts a hop at either end, beside the kernels' own."""
        encapsulation = Encapsulation(coat_length=0, ttl_step=1, overhead=OVERHEADS[self.family])
        loops = Loops(self._options.threads, self._options.cpus, self._options.busy_poll)
        return Forwarder(self._network, self._subnet_len, encapsulation, self._options.source_check, loops)

    def check_device(self) -> None:
        """Raise TunError if no TUN device can be made here."""
        check_tun(DEVICES[self.family])

    def open_device(self, lease: Lease, links: TunLinks) -> Tun:
        """The TUN device, to which the whole network is routed; bridges of local subnets have longer prefixes."""
        return open_tun(DEVICES[self.family], self.mtu, self.tunnel(lease), self._network, links,
                        offload=not self._options.no_tun_offload, queues=self._options.queues, steer=steer)

    def open_sockets(self) -> UnderlaySockets:
        """Bound to the interface's address, one of them to the port."""
        return open_underlay_sockets(self._address, self.port, segment=not self._options.no_udp_segment,
                                     gro=not self._options.no_udp_gro)
