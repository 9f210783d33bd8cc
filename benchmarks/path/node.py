"""One node's data plane alone, in the network namespace that it is started in: TUN, sockets, Forwarder's table, loops.

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
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytun

from flannel_udp._dataplane import EVENTS, FIRST_PEER, OUTCOMES, OWN_SLOT, SOURCE_CHECKS, Builder, Worker
from flannel_udp.options import default_threads
from flannel_udp.steering import steer

# Specification: linux/if_tun.h, linux/udp.h, linux/in.h, asm-generic/socket.h.
TUNSETOFFLOAD, OFFLOADS = 0x4004_54D0, 0x6F
UDP_GRO = 104
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SUBNET_LENGTH = 24
OVERHEAD = 28


def parser(*, exit_on_error: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, exit_on_error=exit_on_error)
    parser.add_argument("--address", type=IPv4Address, required=True, help="underlay address of this node")
    parser.add_argument("--peer", type=IPv4Address, required=True, help="underlay address of the other")
    parser.add_argument("--number", type=int, choices=(1, 2), required=True, help="which of the two subnets is its own")
    parser.add_argument("--overlay", type=IPv4Network, required=True)
    parser.add_argument("--port", type=int, default=8285)
    parser.add_argument("--mtu", type=int, default=1500 - OVERHEAD)
    parser.add_argument("--threads", type=int, choices=(1, 2), default=default_threads(), help="for each queue")
    parser.add_argument("--queues", type=int, default=1, help="of the TUN, each with a socket of its own")
    parser.add_argument("--busy-poll", type=int, default=0, help="microseconds")
    parser.add_argument("--txqueuelen", type=int, default=0, help="of the TUN; 0: the kernel's own")
    parser.add_argument("--gso-max-segs", type=int, default=0, help="of the TUN; 0: the kernel's own")
    parser.add_argument("--sched-batch", action="store_true", help="run the loops as SCHED_BATCH")
    parser.add_argument("--buffer", type=int, default=4 << 20, help="bytes of either socket buffer")
    parser.add_argument("--no-offload", action="store_true", help="neither on the TUN nor on the socket")
    return parser


@contextlib.contextmanager
def street_door(chosen: argparse.Namespace, port: int) -> Iterator[socket.socket]:
    """Open an underlay socket as the daemon does; those of several queues share their port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as door:
        door.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        door.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, chosen.buffer)
        door.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, chosen.buffer)
        if not chosen.no_offload:
            door.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        if port and chosen.queues > 1:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        door.bind((str(chosen.address), port))
        yield door


@contextlib.contextmanager
def front_door(chosen: argparse.Namespace, own: IPv4Network) -> Iterator[list[int]]:
    """Open the TUN's queues, with offloads and steering, address and route."""
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | (0 if chosen.no_offload else pytun.IFF_VNET_HDR)
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
        commands = f"""addr add {own[0]}/32 dev {tun.name}
            link set {tun.name} mtu {chosen.mtu}{queue} up
            route add {chosen.overlay} dev {tun.name}"""
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
        yield descriptors


def table(chosen: argparse.Namespace, own: IPv4Network, peer: IPv4Network) -> list[Worker]:
    """Make a table of two subnets, and a worker over it for each queue."""
    builder = Builder(chosen.overlay.network_address.packed, chosen.overlay.prefixlen, SUBNET_LENGTH)
    workers = [Worker(builder, coat_length=0, ttl_step=1, overhead=OVERHEAD, source_check=SOURCE_CHECKS["known"])
               for _ in range(chosen.queues)]
    builder.set_own(own[0].packed, [own[0].packed, chosen.address.packed])
    builder.set_route(own[0].packed, SUBNET_LENGTH, OWN_SLOT)
    builder.set_route(peer[0].packed, SUBNET_LENGTH, FIRST_PEER)
    builder.set_peer(FIRST_PEER, 1, chosen.peer.packed, chosen.port)
    builder.publish()
    offload = not chosen.no_offload
    for worker in workers:
        worker.use(vnet=offload, uso=offload, segment=offload, busy_poll=chosen.busy_poll * 1000)
    return workers


def counters(workers: list[Worker]) -> dict[str, Any]:
    """Return what was counted so far over all queues, by direction and name; zeros are left out."""
    told: dict[str, Any] = {"given_up": [refusal for worker in workers for refusal in worker.given_up()]}
    for direction in ("out", "in"):
        named = Counter[str]()
        for worker in workers:
            packets, outcomes, events = worker.counters(direction)
            named.update(dict(zip((name for name, *_ in (*OUTCOMES, *EVENTS)), (*outcomes, *events), strict=True)))
            named["packets"] += packets
        told[direction] = {name: count for name, count in named.items() if count or name == "packets"}
    return told


def run(loops: list[Callable[[], None]], workers: list[Worker], stop: int) -> None:
    """Run the loops, each in a thread, and answer until the input ends."""
    threads = [threading.Thread(target=loop) for loop in loops]
    for thread in threads:
        thread.start()
    for _ in sys.stdin:
        print(json.dumps(counters(workers)), flush=True)
    os.eventfd_write(stop, 1)
    for thread in threads:
        thread.join()


def main() -> None:
    chosen = parser().parse_args()
    subnets = list(chosen.overlay.subnets(new_prefix=SUBNET_LENGTH))
    own, peer = subnets[chosen.number], subnets[3 - chosen.number]
    workers = table(chosen, own, peer)
    if chosen.sched_batch:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # the loops' threads inherit it
    stop = os.eventfd(0, os.EFD_NONBLOCK)
    loops: list[Callable[[], None]] = []
    with contextlib.ExitStack() as doors:
        for worker, tun in zip(workers, doors.enter_context(front_door(chosen, own)), strict=True):
            udp, path = (doors.enter_context(street_door(chosen, port)) for port in (chosen.port, 0))
            ways = [worker.both_ways] if chosen.threads == 1 else [worker.tun_to_udp, worker.udp_to_tun]
            loops += [partial(way, tun, udp.fileno(), path.fileno(), stop) for way in ways]
        places = {"address", "peer", "number", "overlay"}
        print(json.dumps({name: value for name, value in vars(chosen).items() if name not in places}), flush=True)
        run(loops, workers, stop)


if __name__ == "__main__":
    main()
