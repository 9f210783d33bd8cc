"""flannel's vxlan backend without the kernel's VXLAN: a device for each family, and 22 bytes before each inner packet.

On the wire nothing tells a node of this program from one of flannel's. The inner Ethernet header is written here once
for each peer and checked by the data plane; no ARP or neighbour discovery ever goes through the tunnel, since flannel's
nodes have permanent neighbours for all peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flannel_udp import logs
from flannel_udp._dataplane import ETHERTYPE_IPV4, ETHERTYPE_IPV6, VXLAN_COAT, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6
from flannel_udp.backend import vtep
from flannel_udp.backend.family import host_of, network_of, subnet_of, tunnel_of, underlay_of
from flannel_udp.backend.peers import DirectRoute, NextHop
from flannel_udp.config import parse_vxlan_config, vxlan_mtu_min
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.forwarder import Encapsulation, Forwarder, Loops
from flannel_udp.lease import LeaseAttrs
from flannel_udp.steering import steer
from flannel_udp.tun import check_tun, open_tun
from flannel_udp.underlay import open_underlay_sockets

if TYPE_CHECKING:
    from flannel_udp.backend import Tunnel
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, Interface, Network
    from flannel_udp.options import NodeOptions
    from flannel_udp.tun import Tun, TunLinks
    from flannel_udp.underlay import ExternalInterface, UnderlayLinks, UnderlaySockets

_log = logs.get("vxlan")

OVERHEADS = {4: VXLAN_OVERHEAD_V4, 6: VXLAN_OVERHEAD_V6}
ETHERTYPES = {4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6}
ANY_MAC = bytes(6)


@dataclass
class VxlanTunnel:
    """The tunnel of one address family: IPv4 in IPv4 or IPv6 in IPv6, as flannel's."""

    family: int
    device: str
    """Its name."""
    vni: int
    port: int
    mac: bytes
    mtu: int
    network: Network
    subnet_len: int
    address: Address
    """Of the external interface: datagrams leave from it, and come to it."""
    options: NodeOptions
    name: str = "vxlan"

    def subnet(self, lease: Lease) -> Network:
        """See the protocol."""
        return subnet_of(lease, self.family)

    def tunnel(self, lease: Lease) -> Interface:
        """See the protocol. Peers' kernels have it as their gateway, so it must answer."""
        return tunnel_of(lease, self.family)

    def next_hop(self, lease: Lease) -> NextHop:
        """The peer's public address, our own port, and its VtepMAC; its VNI is not looked at, as by flannel."""
        if lease.attrs.backend_type != self.name:
            other = lease.attrs.backend_type or "udp or alloc"
            raise LeaseError(f"is a node of the {other} backend, which does not understand {self.name}")
        subnet, address = subnet_of(lease, self.family), host_of(lease, self.family)
        mac = vtep.told_mac(lease.attrs.backend_data if self.family == 4 else lease.attrs.backend_v6_data)
        if mac == self.mac:  # neither's kernel would take packets from the other
            raise LeaseError(f"VtepMAC {vtep.text_of(mac)} is this node's own")
        return NextHop(subnet, address, self.port, vtep.coat(self.vni, mac, self.mac, ETHERTYPES[self.family]))

    def forwarder(self) -> Forwarder:
        """A data plane for the network, which wants our MAC before each packet that comes."""
        expected = vtep.coat(self.vni, self.mac, ANY_MAC, ETHERTYPES[self.family])
        encapsulation = Encapsulation(VXLAN_COAT, 0, OVERHEADS[self.family], expected=expected, ecn=True)
        loops = Loops(self.options.threads, self.options.cpus, self.options.busy_poll)
        return Forwarder(self.network, self.subnet_len, encapsulation, self.options.source_check, loops)

    def check_device(self) -> None:
        """Raise TunError if no TUN can be made here. Under another name: flannel's device may still have this one."""
        check_tun("flannel%d")

    def open_device(self, lease: Lease, links: TunLinks) -> Tun:
        """The device, to which the whole network is routed; bridges of local subnets have longer prefixes."""
        return open_tun(self.device, self.mtu, self.tunnel(lease), self.network, links,
                        offload=not self.options.no_tun_offload, queues=self.options.queues, steer=steer,
                        tap_mac=self.mac if self.options.device == "tap" else None)

    def open_sockets(self) -> UnderlaySockets:
        """Bound to the interface's address, one of them to the port; like the kernel's VXLAN they let be fragmented."""
        return open_underlay_sockets(self.address, self.port, segment=not self.options.no_udp_segment,
                                     gro=not self.options.no_udp_gro, fragment=True, tos=True,
                                     sources=self.options.source_ports)


class VxlanBackend:
    """The vxlan backend on one external interface."""

    name = "vxlan"

    def __init__(self, config: NetworkConfig, external: ExternalInterface, options: NodeOptions,
                 links: UnderlayLinks) -> None:
        keys = parse_vxlan_config(config)
        if keys.learning:
            _log.warning("Backend.Learning has no effect here: the leases tell every VtepMAC, and nothing is flooded")
        mtu, least = keys.mtu or external.mtu, vxlan_mtu_min(config)
        if mtu < least:
            raise UnderlayError(f"interface {external.name} has MTU {mtu}; vxlan needs {least}")
        self._own = tuple(
            VxlanTunnel(family, device, keys.vni, keys.port, vtep.mac_of(options, device), mtu - OVERHEADS[family],
                        *network_of(config, family), underlay_of(external, family), options)
            for family, device in vtep.devices(config).items())
        self.tunnels: tuple[Tunnel, ...] = self._own
        self.mtu = min(tunnel.mtu for tunnel in self._own)
        self._public = external.public_address, external.public_address6
        self._direct = keys.direct_routing
        self._links = links

    def attrs(self) -> LeaseAttrs:
        """The public addresses and the VtepMACs: byte for byte flannel's."""
        data = {tunnel.family: vtep.data_of(tunnel.vni, tunnel.mac) for tunnel in self._own}
        ipv4, ipv6 = self._public
        return LeaseAttrs(ipv4 if 4 in data else None, ipv6 if 6 in data else None, self.name, data.get(4), data.get(6))

    def direct(self, lease: Lease) -> tuple[DirectRoute, ...]:
        """With DirectRouting the kernel's routes to a peer that can be reached without a router in between."""
        found = []
        for tunnel in self._own if self._direct else ():
            try:
                hop = tunnel.next_hop(lease)
            except LeaseError:
                continue  # the tunnel's peers tell why
            way = self._links.route_to(hop.underlay)
            own = hop.underlay in tunnel.network  # by way of the tunnel's own device
            if way and way.gateway is None and way.index and way.unicast and not own:
                found.append(DirectRoute(hop.subnet, hop.underlay, way.index))
        return tuple(found)
