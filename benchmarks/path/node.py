"""One node's data plane alone, in the network namespace that it is started in: TUN, sockets, Forwarder, loops.

For benchmarks and profiles: no daemon, no registry, one peer, everything settable. When it is ready it prints its
settings as one line of JSON, then answers each line on its standard input with another, its counters; at end of file it
stops and leaves nothing.

    python -m benchmarks.path.node --address 192.0.2.1 --peer 192.0.2.2 --number 1 --overlay 10.50.0.0/16 --port 8290
"""

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Any

import pytun

from flannel_udp._dataplane import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    UDP_OVERHEAD_V4,
    UDP_OVERHEAD_V6,
    VXLAN_OVERHEAD_V4,
    VXLAN_OVERHEAD_V6,
)
from flannel_udp.backend import vtep
from flannel_udp.forwarder import Doors, Encapsulation, Forwarder, Loops, Queue
from flannel_udp.options import default_threads
from flannel_udp.steering import steer
from flannel_udp.underlay import SOCKET_BUFFER, UnderlaySockets, open_beside, open_underlay_sockets

# Specification: linux/if_tun.h, asm-generic/socket.h.
TUNSETOFFLOAD, OFFLOADS = 0x4004_54D0, 0x6F
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SUBNET_LENGTH = {4: 24, 6: 64}
OVERHEADS = {
    ("udp", 4): UDP_OVERHEAD_V4, ("udp", 6): UDP_OVERHEAD_V6, ("vxlan", 4): VXLAN_OVERHEAD_V4,
    ("vxlan", 6): VXLAN_OVERHEAD_V6,
}  # fmt: skip
ETHERTYPES = {4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6}
LINK_MTU = 1500
VNI = 1


def parser(*, exit_on_error: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, exit_on_error=exit_on_error)
    parser.add_argument("--address", type=ip_address, required=True, help="underlay address of this node")
    parser.add_argument("--peer", type=ip_address, required=True, help="underlay address of the other")
    parser.add_argument("--number", type=int, choices=(1, 2), required=True, help="which of the two subnets is its own")
    parser.add_argument("--overlay", type=ip_network, required=True)
    parser.add_argument("--family", type=int, choices=(4, 6), default=4, help="of the addresses and the overlay")
    parser.add_argument("--backend", choices=("udp", "vxlan"), default="udp", help="whose record to forward by")
    parser.add_argument("--device", choices=("tun", "tap"), default="tun", help="a tap for the backend vxlan only")
    parser.add_argument("--port", type=int, default=8285)
    parser.add_argument("--source-ports", type=int, default=0, help="to spread flows over; 0: all by the one port")
    parser.add_argument("--mtu", type=int, default=0, help="of the TUN; 0: what fits a link of 1500 bytes")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=default_threads(), help="for each queue")
    parser.add_argument("--queues", type=int, default=1, help="of the TUN, each with a socket of its own")
    parser.add_argument("--busy-poll", type=int, default=0, help="microseconds")
    parser.add_argument("--txqueuelen", type=int, default=0, help="of the TUN; 0: the kernel's own")
    parser.add_argument("--gso-max-segs", type=int, default=0, help="of the TUN; 0: the kernel's own")
    parser.add_argument("--sched-batch", action="store_true", help="run the loops as SCHED_BATCH")
    parser.add_argument("--buffer", type=int, default=SOCKET_BUFFER, help="bytes of either socket buffer")
    parser.add_argument("--no-offload", action="store_true", help="neither on the TUN nor on the socket")
    return parser


@contextlib.contextmanager
def street_doors(chosen: argparse.Namespace) -> Iterator[list[UnderlaySockets]]:
    """Open the underlay sockets as the daemon does, those of each queue."""
    offload, vxlan = not chosen.no_offload, chosen.backend == "vxlan"
    first = open_underlay_sockets(chosen.address, chosen.port, segment=offload, gro=offload, fragment=vxlan, tos=vxlan,
                                  sources=chosen.source_ports)  # fmt: skip
    with contextlib.ExitStack() as closing:
        closing.callback(first.close)
        doors = [first, *open_beside(first, chosen.queues - 1)]
        for door in doors:
            closing.callback(door.close)
            for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
                door.street.setsockopt(1, option, chosen.buffer)
        yield doors


@contextlib.contextmanager
def front_door(chosen: argparse.Namespace, own: IPv4Network | IPv6Network) -> Iterator[list[int]]:
    """Open the queues of the TUN or TAP, with offloads and steering, address and route."""
    kind = pytun.IFF_TAP if chosen.device == "tap" else pytun.IFF_TUN
    flags = kind | pytun.IFF_NO_PI | (0 if chosen.no_offload else pytun.IFF_VNET_HDR)
    if chosen.queues > 1:
        flags |= pytun.IFF_MULTI_QUEUE
    with contextlib.ExitStack() as closing:
        descriptors = []
        for _ in range(chosen.queues):
            tun = pytun.TunTapDevice(name=f"fudp{chosen.port}", flags=flags)
            closing.callback(tun.close)
            os.set_blocking(tun.fileno(), False)
            if not chosen.no_offload:
                fcntl.ioctl(tun.fileno(), TUNSETOFFLOAD, OFFLOADS)
            descriptors.append(tun.fileno())
        if chosen.queues > 1:
            steer(descriptors[0])
        queue = f" txqueuelen {chosen.txqueuelen}" if chosen.txqueuelen else ""
        queue += f" gso_max_segs {chosen.gso_max_segs}" if chosen.gso_max_segs else ""
        # A TAP asks for its neighbours' MACs, in IPv6 from an address of its link.
        first = f"address {mac(chosen.number).hex(':')}" if chosen.device == "tap" else "addrgenmode none"
        commands = f"""link set {tun.name} {first}
            addr add {own[0]}/{own.max_prefixlen} dev {tun.name}
            link set {tun.name} mtu {chosen.mtu}{queue} up
            route add {chosen.overlay} dev {tun.name}"""
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
        yield descriptors


def coat(chosen: argparse.Namespace, to: int, source: int) -> bytes:
    """Return what stands before a packet to a node, both by their numbers; nothing for the udp backend."""
    if chosen.backend == "udp":
        return b""
    return vtep.coat(VNI, mac(to), mac(source), ETHERTYPES[chosen.family])


def mac(number: int) -> bytes:
    """Return a node's VtepMAC, by its number."""
    return bytes([2, 0, 0, 0, 0, number])


def table(chosen: argparse.Namespace, own: IPv4Network | IPv6Network, peer: IPv4Network | IPv6Network) -> Forwarder:
    """Make a data plane that knows two subnets."""
    here, there, vxlan = chosen.number, 3 - chosen.number, chosen.backend == "vxlan"
    worn, expected = coat(chosen, there, here), coat(chosen, here, there)
    encapsulation = Encapsulation(len(worn), 0 if vxlan else 1, OVERHEADS[chosen.backend, chosen.family], expected,
                                  ecn=vxlan)  # fmt: skip
    loops = Loops(chosen.threads, busy_poll=chosen.busy_poll)
    forwarder = Forwarder(chosen.overlay, SUBNET_LENGTH[chosen.family], encapsulation, "known", loops)
    forwarder.set_own(own, own[0], [chosen.address])
    forwarder.set_peer(peer, chosen.peer, chosen.port, worn)
    forwarder.publish()
    return forwarder


def counters(forwarder: Forwarder) -> dict[str, Any]:
    """Return what was counted so far over all queues, by direction and name; zeros are left out."""
    told: dict[str, Any] = {"given_up": sorted(forwarder.given_up())}
    for direction, counted in forwarder.counters().items():
        named = counted.outcomes | counted.events
        told[direction] = {name: count for name, count in named.items() if count} | {"packets": counted.packets}
    return told


def ended(loop: str, error: OSError | None) -> None:
    """A loop ended by itself: so does this program, and the run is told why."""
    print(f"{loop}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    chosen = parser().parse_args()
    chosen.mtu = chosen.mtu or LINK_MTU - OVERHEADS[chosen.backend, chosen.family]
    subnets = list(islice(chosen.overlay.subnets(new_prefix=SUBNET_LENGTH[chosen.family]), 3))
    own, peer = subnets[chosen.number], subnets[3 - chosen.number]
    forwarder = table(chosen, own, peer)
    if chosen.sched_batch:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # the loops' threads inherit it
    offload = not chosen.no_offload
    with front_door(chosen, own) as tuns, street_doors(chosen) as streets:
        queues = [
            Queue(tun, door.street.fileno(), door.path.fileno(), tuple(one.fileno() for one in door.sources))
            for tun, door in zip(tuns, streets, strict=True)
        ]
        doors = Doors(vnet=offload, uso=offload, segment=offload, mtu=chosen.mtu, tap=chosen.device == "tap")
        forwarder.start(queues, ended, doors)
        places = {"address", "peer", "number", "overlay"}
        print(json.dumps({name: value for name, value in vars(chosen).items() if name not in places}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(counters(forwarder)), flush=True)
        forwarder.stop()


if __name__ == "__main__":
    main()
