"""A Worker between two pairs of sockets, for tests without root: no device, no namespace, all loops and all rooms.

    kernel <──socketpair──> tun │ Worker │ udp <──loopback──> peer
One read of a SOCK_SEQPACKET socket gives one packet, as a TUN does. The node is number 1, the peer number 2.
"""

import contextlib
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from flannel_udp._dataplane import (
    EVENTS,
    FIRST_PEER,
    OUTCOMES,
    OWN_SLOT,
    SOURCE_CHECKS,
    UDP_OVERHEAD_V4,
    UDP_OVERHEAD_V6,
    Builder,
    Worker,
)

from ..conftest import DEADLINE, wait_until
from .answers import Answers
from .packets import packed

UDP_GRO = 104  # linux/udp.h
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_DO = 10, 23, 0, 2  # linux/in.h, linux/in6.h
RECEIVE_TOS = {4: (socket.IPPROTO_IP, 13), 6: (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)}  # linux/in.h
PEER = FIRST_PEER
LEAK = (300 if os.environ.get("FLANNEL_UDP_SANITIZED") else 16) << 20
"""Growth of memory that is a leak: the tests that look for one do a thing so often that a block each would be more.

Less is none: a loop that the scheduler stops in a batch holds what is published meanwhile, and the sanitizer keeps
256 MiB of freed memory to find uses of it.
"""
LOOPS = {"out": "tun_to_udp", "in": "udp_to_tun"}


def udp_socket(address: str, *, fragment: bool = False) -> socket.socket:
    """A non-blocking UDP socket as flannel_udp/underlay.py opens it, on any port."""
    discovery = PMTUDISC_DONT if fragment else PMTUDISC_DO
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discovery)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discovery)
    opened.bind((address, 0))
    opened.setblocking(False)
    return opened


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Rig:
    """Node 1, running, and peer 2; `with` ends the loops and holds them to the law of the counters.

    `answers`, by direction: who answers that loop's system calls in the kernel's place.
    """

    def __init__(self, family: int = 4, source_check: str = "known", coat: bytes = b"",
                 tun_type: int = socket.SOCK_SEQPACKET, *, gro: bool = True,
                 answers: dict[str, Answers] | None = None, ttl_step: int = 1, expected: bytes = b"",
                 ecn: bool = False, fragment: bool = False, sources: int = 0) -> None:
        self.family = family
        self.answers = answers or {}
        self.kernel, self.tun = socket.socketpair(socket.AF_UNIX, tun_type)
        self.kernel.settimeout(DEADLINE)
        self.tun.setblocking(False)
        node, peer = ("127.0.0.1", "127.0.0.2") if family == 4 else ("::1", "::1")
        self.udp, self.path, self.peer = udp_socket(node, fragment=fragment), udp_socket(node), udp_socket(peer)
        self.sources = [udp_socket(node, fragment=fragment) for _ in range(sources)]
        for opened in (self.udp, self.peer) if ecn else ():
            opened.setsockopt(*RECEIVE_TOS[family], 1)
        self.peer.settimeout(DEADLINE)
        self.udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, gro)
        self.builder = Builder(packed(self.overlay(0)), *((16, 24) if family == 4 else (48, 64)))
        self.worker = Worker(self.builder, coat_length=len(coat), ttl_step=ttl_step, expected=expected, ecn=ecn,
                             source_check=SOURCE_CHECKS[source_check],
                             overhead=(UDP_OVERHEAD_V4 if family == 4 else UDP_OVERHEAD_V6) + len(coat))
        self.builder.set_own(packed(self.overlay(1)), [packed(node), packed(self.overlay(1))])
        self.set_route(1, OWN_SLOT)
        self.set_route(2, PEER)
        self.builder.set_peer(PEER, 1, packed(peer), self.peer.getsockname()[1], coat)
        self.builder.publish()
        self.stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.ended: dict[str, OSError | None] = {}
        self.threads: list[threading.Thread] = []

    def overlay(self, subnet: int) -> str:
        """The first address of a subnet of the overlay."""
        return f"10.5.{subnet}.0" if self.family == 4 else f"fd05:0:0:{subnet}::"

    def set_route(self, subnet: int, slot: int) -> None:
        """Lead a subnet to a slot, from the next publish on."""
        self.builder.set_route(packed(self.overlay(subnet)), 24 if self.family == 4 else 64, slot)

    def set_peer(self, slot: int, address: str, port: int = 8285) -> None:
        """Place a peer at an underlay address, and publish."""
        self.builder.set_peer(slot, 1, packed(address), port)
        self.builder.publish()

    def run(self, direction: str) -> None:
        """Be the thread of one loop."""
        self.ended[direction] = None
        if direction in self.answers:
            self.answers[direction].install()
        try:
            getattr(self.worker, LOOPS[direction])(
                self.tun.fileno(), self.udp.fileno(), self.path.fileno(), self.stop_fd,
                tuple(source.fileno() for source in self.sources))
        except OSError as error:
            self.ended[direction] = error

    def start(self) -> None:
        """Start both loops."""
        self.threads = [threading.Thread(target=self.run, args=(direction,)) for direction in LOOPS]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Stop both loops, and see them end."""
        os.eventfd_write(self.stop_fd, 1)
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        os.eventfd_read(self.stop_fd)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.stop()
            self.check_law()
        finally:
            self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for opened in (self.kernel, self.tun, self.udp, self.path, self.peer, *self.sources):
            opened.close()
        with contextlib.suppress(OSError):
            os.close(self.stop_fd)
        for answers in self.answers.values():
            answers.close()

    def give(self, packet: bytes) -> None:
        """Be the kernel that routes a packet into the TUN."""
        self.kernel.send(packet)

    def take(self) -> bytes:
        """Be the kernel that gets a packet out of the TUN."""
        return self.kernel.recv(1 << 16)

    def send(self, datagram: bytes) -> None:
        """Be the peer that sends a datagram."""
        self.peer.sendto(datagram, self.udp.getsockname())

    def receive(self) -> bytes:
        """Be the peer that receives one."""
        return self.peer.recv(1 << 16)

    def outcomes(self, direction: str) -> dict[str, int]:
        """What became of the packets of one direction, zeros left out."""
        _, outcomes, _ = self.worker.counters(direction)
        return {name: count for (name, _, _), count in zip(OUTCOMES, outcomes, strict=True) if count}

    def events(self, direction: str) -> dict[str, int]:
        """What happened besides."""
        return {name: count for (name, _), count in zip(EVENTS, self.worker.counters(direction)[2], strict=True)}

    def wait_for(self, direction: str, outcome: str, count: int = 1) -> None:
        """Wait until so many packets had an outcome."""
        wait_until(lambda: self.outcomes(direction).get(outcome, 0) >= count,
                   f"{count} x {outcome}, {direction}")

    def comes_to(self, direction: str, outcomes: dict[str, int]) -> None:
        """Wait until all packets have an outcome, and these are the outcomes."""
        wait_until(lambda: sum(self.outcomes(direction).values()) >= sum(outcomes.values()), f"{outcomes}, {direction}")
        assert self.outcomes(direction) == outcomes

    def check_law(self) -> None:
        """Packets in are the sum of outcomes, and each outcome is one that its direction may have."""
        for direction in LOOPS:
            packets, outcomes, _ = self.worker.counters(direction)
            assert packets == sum(outcomes)
            allowed = {name for name, way, _ in OUTCOMES if way in (direction, "both")}
            assert self.outcomes(direction).keys() <= allowed
