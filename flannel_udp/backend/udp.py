"""flannel's udp backend: one raw IPv4 packet per datagram, port 8285 at both ends, nothing else.

A udp lease says the public address and no more, neither backend nor port: each node uses its own configured port for
all. IPv4 only, as flannel's; the IPv6 subnet of a dual-stack lease has no tunnel here.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

from flannel_udp._dataplane import UDP_OVERHEAD_V4
from flannel_udp.backend.peers import NextHop
from flannel_udp.config import UDP_MTU_MIN, parse_udp_config
from flannel_udp.errors import ConfigError, LeaseError, UnderlayError
from flannel_udp.forwarder import Encapsulation, Forwarder, Loops
from flannel_udp.lease import LeaseAttrs
from flannel_udp.steering import steer
from flannel_udp.tun import check_tun, open_tun
from flannel_udp.underlay import open_underlay_sockets

if TYPE_CHECKING:
    from ipaddress import IPv4Network

    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions
    from flannel_udp.tun import Tun, TunLinks
    from flannel_udp.underlay import ExternalInterface, UnderlaySockets

_BROADCAST = IPv4Address(0xFFFFFFFF)
DEVICE = "flannel%d"  # specification: flannel's pattern
# No coat; flannel counts a hop at either end, beside the kernels' own.
ENCAPSULATION = Encapsulation(coat_length=0, ttl_step=1, overhead=UDP_OVERHEAD_V4)


class UdpBackend:
    """The udp backend on one external interface."""

    name = "udp"

    def __init__(self, config: NetworkConfig, external: ExternalInterface, options: NodeOptions) -> None:
        keys = parse_udp_config(config)
        if config.network is None:
            raise ConfigError("Network is missing: the udp backend carries IPv4")
        if external.address is None:
            raise UnderlayError(f"interface {external.name} has no IPv4 address")
        underlay_mtu = keys.mtu or external.mtu
        if underlay_mtu < UDP_MTU_MIN:
            raise UnderlayError(f"interface {external.name} has MTU {underlay_mtu}; udp needs {UDP_MTU_MIN}")
        self.mtu = underlay_mtu - UDP_OVERHEAD_V4
        self.port = keys.port
        self._network = config.network
        self._subnet_len = config.subnet_len
        self._address = external.address
        self._public_address = external.public_address
        self._options = options

    def attrs(self) -> LeaseAttrs:
        """The public address, and nothing else: byte for byte flannel's."""
        return LeaseAttrs(self._public_address)

    def subnet(self, lease: Lease) -> IPv4Network:
        """The IPv4 subnet."""
        if lease.subnet is None:
            raise LeaseError("has no IPv4 subnet")
        return lease.subnet

    def tunnel(self, lease: Lease) -> IPv4Interface:
        """The subnet's network address, alone, so that the kernel adds no routes of its own."""
        return IPv4Interface((self.subnet(lease).network_address, 32))

    def next_hop(self, lease: Lease) -> NextHop:
        """The peer's public address and our own port, as with flannel. Nodes of another backend would not listen."""
        if lease.attrs.backend_type not in ("", self.name):
            raise LeaseError(f"is a node of the {lease.attrs.backend_type} backend, which does not understand udp")
        if lease.attrs.public_ip is None:
            raise LeaseError("tells no PublicIP")
        address = lease.attrs.public_ip
        if address.is_multicast or address.is_loopback or address == _BROADCAST:  # no packet may be led there
            raise LeaseError(f"PublicIP {address} is not the address of one host")
        return NextHop(self.subnet(lease), address, self.port)

    def forwarder(self) -> Forwarder:
        """A data plane for the network."""
        loops = Loops(self._options.threads, self._options.cpus, self._options.busy_poll)
        return Forwarder(self._network, self._subnet_len, ENCAPSULATION, self._options.source_check, loops)

    def check_device(self) -> None:
        """Raise TunError if no TUN device can be made here."""
        check_tun(DEVICE)

    def open_device(self, lease: Lease, links: TunLinks) -> Tun:
        """The TUN device, to which the whole network is routed; bridges of local subnets have longer prefixes."""
        return open_tun(DEVICE, self.mtu, self.tunnel(lease), self._network, links,
                        offload=not self._options.no_tun_offload, queues=self._options.queues, steer=steer)

    def open_sockets(self) -> UnderlaySockets:
        """Bound to the interface's address, one of them to the port."""
        return open_underlay_sockets(self._address, self.port, segment=not self._options.no_udp_segment,
                                     gro=not self._options.no_udp_gro)
