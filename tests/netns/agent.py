"""A node's data plane for tests: real TUN, real sockets, a Forwarder; no daemon, no leases."""

import contextlib
import struct
import time
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

from flannel_udp._dataplane import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    UDP_OVERHEAD_V4,
    UDP_OVERHEAD_V6,
    UDP_PORT,
    VXLAN_COAT,
    VXLAN_FLAG_VNI,
    VXLAN_OVERHEAD_V4,
    VXLAN_OVERHEAD_V6,
    VXLAN_PORT,
)
from flannel_udp.forwarder import Doors, Encapsulation, Forwarder, Loops, Network, Queue
from flannel_udp.netlink import Links
from flannel_udp.steering import steer
from flannel_udp.tun import open_tun
from flannel_udp.underlay import open_beside, open_underlay_sockets

from ..conftest import wait_until
from .topology import Node

NETWORKS: dict[int, tuple[Network, int]] = {4: (ip_network("10.5.0.0/16"), 24), 6: (ip_network("fd05::/48"), 64)}
OVERHEADS = {4: UDP_OVERHEAD_V4, 6: UDP_OVERHEAD_V6}
VXLAN_OVERHEADS = {4: VXLAN_OVERHEAD_V4, 6: VXLAN_OVERHEAD_V6}
VNI = 0x123456
PATTERNS = {4: "flannel%d", 6: "flannel-v6.%d"}
UNDERLAY_MTU = 1500


def subnet_of(number: int, family: int = 4) -> Network:
    """The subnet of node `number`."""
    return ip_network(f"10.5.{number}.0/24" if family == 4 else f"fd05:0:0:{number}::/64")


def mac_of(number: int) -> bytes:
    """The VTEP's MAC address of node `number`."""
    return bytes([2, 0, 0, 0, 0, number])


def vxlan_coat(to: int, source: int, family: int = 4) -> bytes:
    """VXLAN and inner Ethernet header from one node to another."""
    ethertype = ETHERTYPE_IPV4 if family == 4 else ETHERTYPE_IPV6
    return struct.pack("!II6s6sH", VXLAN_FLAG_VNI, VNI << 8, mac_of(to), mac_of(source), ethertype)


class Agent:
    """The data plane of one node, running; it knows no peers. `off`: "tun", "udp_segment", "udp_gro" go without.

    `vxlan`: with that coat; else as the udp backend. `sources`: so many sockets to send from. `tap`: a TAP, not a TUN.
    """

    def __init__(self, node: Node, family: int = 4, source_check: str = "known",
                 address: IPv4Address | IPv6Address | None = None, *, loops: Loops | None = None,
                 off: Collection[str] = (), queues: int = 1, steering: Callable[[int], None] = steer,
                 vxlan: bool = False, sources: int = 0, tap: bool = False) -> None:
        self.node, self.family, self.off = node, family, off
        self.queues, self.steering = queues, steering
        self.vxlan, self.sources, self.tap = vxlan, sources, tap
        self.port = VXLAN_PORT if vxlan else UDP_PORT
        self.overhead = (VXLAN_OVERHEADS if vxlan else OVERHEADS)[family]
        self.address = address or (node.address if family == 4 else node.address6)
        self.subnet = subnet_of(node.number, family)
        self.tunnel = self.subnet.network_address
        self.exits: list[tuple[str, OSError | None]] = []
        self.network, length = NETWORKS[family]
        encapsulation = Encapsulation(coat_length=0, ttl_step=1, overhead=self.overhead)
        if vxlan:
            encapsulation = Encapsulation(VXLAN_COAT, 0, self.overhead, vxlan_coat(node.number, 0, family), ecn=True)
        self.forwarder = Forwarder(self.network, length, encapsulation, source_check, loops or Loops())
        self.forwarder.set_own(self.subnet, self.tunnel, [node.address, node.address6])
        self.forwarder.publish()
        self.open_sockets()
        self.socket, self.path = self.sockets[0].street, self.sockets[0].path
        self.start()

    def open_sockets(self) -> None:
        """Open those of each queue."""
        with self.node.entered():
            first = open_underlay_sockets(self.address, self.port, segment="udp_segment" not in self.off,
                                          gro="udp_gro" not in self.off, fragment=self.vxlan, tos=self.vxlan,
                                          sources=self.sources)
            self.sockets = [first, *open_beside(first, self.queues - 1)]

    def start(self) -> None:
        """Open the TUN and run the loops."""
        address = ip_interface((self.tunnel, self.tunnel.max_prefixlen))
        with self.node.entered(), Links() as links:
            self.tun = open_tun(PATTERNS[self.family], UNDERLAY_MTU - self.overhead, address, self.network,
                                links, offload="tun" not in self.off, queues=self.queues, steer=self.steering,
                                tap_mac=mac_of(self.node.number) if self.tap else None)
        self.go_on()

    def go_on(self) -> None:
        """Run the loops, on what is open."""
        doors = Doors(self.tun.vnet, self.tun.uso, "udp_segment" in self.sockets[0].granted.offloads, self.tun.mtu,
                      self.tap)
        queues = [Queue(fd, sockets.street.fileno(), sockets.path.fileno(),
                        tuple(source.fileno() for source in sockets.sources))
                  for fd, sockets in zip(self.tun.fds, self.sockets, strict=True)]
        self.forwarder.start(queues, lambda loop, error: self.exits.append((loop, error)), doors)

    def pause(self) -> None:
        """End the loops, and leave all open: what comes meanwhile waits in the kernel's queues until go_on()."""
        self.forwarder.stop()

    def stop(self) -> None:
        """End the loops, which takes well below a second, and close the TUN."""
        before = time.monotonic()
        self.forwarder.stop()
        assert time.monotonic() - before < 1
        self.tun.close()

    def knows(self, *others: "Agent | KernelVxlan") -> None:
        """Make these peers."""
        for other in others:
            coat = vxlan_coat(other.node.number, self.node.number, self.family) if self.vxlan else b""
            self.forwarder.set_peer(other.subnet, other.address, self.port, coat)
        self.forwarder.publish()

    def outcomes(self, direction: str) -> dict[str, int]:
        """What became of the packets of one direction, zeros left out."""
        return {name: count for name, count in self.forwarder.counters()[direction].outcomes.items() if count}

    def events(self, direction: str) -> dict[str, int]:
        """What happened besides."""
        return self.forwarder.counters()[direction].events

    def wait_for(self, direction: str, outcome: str, count: int = 1) -> None:
        """Wait until so many packets had an outcome."""
        wait_until(lambda: self.outcomes(direction).get(outcome, 0) >= count,
                   f"{self.node.name}: {count} x {outcome}, {direction}; there are {self.outcomes(direction)}")

    def close(self) -> None:
        """Stop, hold the counters to their law, let go of everything."""
        with contextlib.ExitStack() as closing:
            for sockets in self.sockets:
                closing.callback(sockets.close)
            closing.callback(self.tun.close)
            self.forwarder.stop()
            for direction, counters in self.forwarder.counters().items():
                assert counters.law_holds, f"{self.node.name} {direction}: {counters}"


class KernelVxlan:
    """A node whose kernel does it: a VXLAN device set up as flannel does. No learning, every entry permanent."""

    def __init__(self, node: Node, family: int = 4) -> None:
        self.node, self.family = node, family
        self.address = node.address if family == 4 else node.address6
        self.subnet = subnet_of(node.number, family)
        self.tunnel = self.subnet.network_address
        self.name = "flannel.1" if family == 4 else "flannel-v6.1"
        self.refused = 0
        """So many frames a test means this device to refuse."""
        mtu = UNDERLAY_MTU - VXLAN_OVERHEADS[family]
        node.ip(
            f"link add {self.name} address {mac_of(node.number).hex(':')} mtu {mtu} type vxlan id {VNI} "
            f"dstport {VXLAN_PORT} local {self.address} dev {node.interface} nolearning",
            f"link set {self.name} up",
            f"addr add {self.tunnel}/{self.tunnel.max_prefixlen} dev {self.name}{' nodad' if family == 6 else ''}",
        )

    def knows(self, *others: "Agent | KernelVxlan") -> None:
        """Make these peers: neighbour, forwarding entry, route."""
        for other in others:
            mac = mac_of(other.node.number).hex(":")
            self.node.run("bridge", "fdb", "add", mac, "dev", self.name, "dst", f"{other.address}", "self", "permanent")
            self.node.ip(
                f"neigh add {other.tunnel} dev {self.name} lladdr {mac} nud permanent",
                f"route add {other.subnet} via {other.tunnel} dev {self.name} onlink",
            )
