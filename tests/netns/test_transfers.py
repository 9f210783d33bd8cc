"""Bulk traffic through two whole data planes: every byte the same, every datagram received once, in order, or counted.

One transfer of the size that shows rare faults in the setting that is everybody's, then one factor changed at a time.
FLANNEL_UDP_LONG=1 (make test-long) adds the full product of the factors.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest

from flannel_udp._dataplane import UDP_PORT
from flannel_udp.forwarder import Loops
from flannel_udp.options import default_threads

from ..conftest import DEADLINE, require_tun, wait_until
from ..dataplane.packets import naive_checksum
from .agent import Agent, KernelVxlan, subnet_of
from .ethtool import offloads_off
from .topology import Topology
from .transfer import BLOCK, UDP_SEGMENT, bad_checksums, family_of, transfer

MakePair: TypeAlias = Callable[..., tuple[Agent, Agent]]

LONG = "FLANNEL_UDP_LONG" in os.environ
SIZE = 1 << 30
PART = 64 << 20
"""Bytes where one factor is changed."""
RUN = 127
"""Datagrams in a message, at most."""
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def checksum_errors(agent: Agent | KernelVxlan) -> int:
    """InCsumErrors of TCP and UDP on a node."""
    return bad_checksums(agent.node)


@pytest.fixture
def pair(topology: Callable[..., Topology]) -> Iterator[MakePair]:
    """Make two agents that know each other; at the end no checksum was wrong and the counters' law holds."""
    require_tun()
    made: list[Agent] = []

    def make(family: int = 4, *, mtu: int = 1500, tun_mtus: tuple[int, int] = (0, 0), off: tuple[str, ...] = (),
             far_off: tuple[str, ...] | None = None, threads: int = default_threads()) -> tuple[Agent, Agent]:
        nodes = topology(2, mtu).nodes
        offs = (off, off if far_off is None else far_off)
        made.extend(Agent(node, family, loops=Loops(threads), off=less) for node, less in zip(nodes, offs, strict=True))
        one, two = made
        one.knows(two)
        two.knows(one)
        for agent, tun_mtu in zip(made, tun_mtus, strict=True):
            if tun_mtu:
                agent.node.ip(f"link set {agent.tun.name} mtu {tun_mtu}")
        return one, two

    yield make
    with contextlib.ExitStack() as closing:
        for agent in made:
            closing.callback(agent.close)
        assert [checksum_errors(agent) for agent in made] == [0] * len(made)
        assert [agent.exits for agent in made] == [[]] * len(made)


def both_ways(one: Agent, two: Agent, size: int, flows: int = 1) -> None:
    """TCP in each direction, one after the other, in so many flows that share the size."""
    for client, server in ((one, two), (two, one)):
        with ThreadPoolExecutor(flows) as pool:
            done = [pool.submit(transfer, client.node, server.node, server.tunnel, size // flows, salt)
                    for salt in range(flows)]
        for flow in done:
            flow.result()


def segments_per_message(agent: Agent) -> float:
    counters = agent.forwarder.counters()["out"]
    return counters.outcomes["sent"] / counters.events["messages"]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("flows", [1, 8, 64])
def test_tcp_both_ways(pair: MakePair, flows: int) -> None:
    """The default setting."""
    one, two = pair()
    both_ways(one, two, SIZE, flows)
    assert segments_per_message(one) > 2, "super-packets leave as runs"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads(pair: MakePair, family: int, threads: int) -> None:
    one, two = pair(family, threads=threads)
    both_ways(one, two, PART)
    assert segments_per_message(one) > 2


OFF = [("tun",), ("udp_segment",), ("udp_gro",), ("tun", "udp_segment", "udp_gro")]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("off", OFF, ids="-".join)
def test_with_an_offload_switched_off(pair: MakePair, family: int, off: tuple[str, ...]) -> None:
    one, two = pair(family, off=off)
    both_ways(one, two, PART)


@pytest.mark.parametrize("family", [4, 6])
def test_a_far_side_that_reads_one_packet_per_datagram(pair: MakePair, family: int) -> None:
    """The wire is unchanged: a peer with none of this understands."""
    one, two = pair(family, far_off=("tun", "udp_segment", "udp_gro"))
    both_ways(one, two, PART)


@pytest.mark.parametrize("family", [4, 6])
def test_over_a_link_without_offloads(pair: MakePair, family: int) -> None:
    one, two = pair(family)
    for agent in (one, two):
        agent.node.call(offloads_off, agent.node.interface)
    both_ways(one, two, PART)


MTUS = [
    # of the underlay, of the two TUNs; the first is nearly the least that IPv6 knows
    (1328, (1280, 1280)), (9000, (8952, 8952)), (65535, (65487, 65487)), (9000, (1280, 8952)), (1500, (1452, 1300)),
]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("mtu", "tun_mtus"), MTUS, ids=str)
def test_mtus(pair: MakePair, family: int, mtu: int, tun_mtus: tuple[int, int]) -> None:
    one, two = pair(family, mtu=mtu, tun_mtus=tun_mtus)
    both_ways(one, two, PART)


if LONG:

    @pytest.mark.timeout(0)
    @pytest.mark.parametrize("flows", [1, 8, 64])
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("plain_link", [False, True], ids=["offloads", "plain link"])
    @pytest.mark.parametrize(("mtu", "tun_mtus"), [(1500, (1452, 1452)), *MTUS], ids=str)
    @pytest.mark.parametrize("off", [(), *OFF], ids=str)
    @pytest.mark.parametrize("family", [4, 6])
    def test_the_full_product(pair: MakePair, family: int, off: tuple[str, ...], mtu: int, tun_mtus: tuple[int, int],
                              plain_link: bool, threads: int, flows: int) -> None:
        one, two = pair(family, mtu=mtu, tun_mtus=tun_mtus, off=off, threads=threads)
        for agent in (one, two) if plain_link else ():
            agent.node.call(offloads_off, agent.node.interface)
        both_ways(one, two, PART, flows)


def drops_of(port: int, family: int) -> int:
    """Datagrams that a socket of this namespace had no room for, by its port."""
    table = Path("/proc/thread-self/net", "udp" if family == 4 else "udp6").read_text().splitlines()[1:]
    return sum(int(line.split()[-1]) for line in table if int(line.split()[1].rsplit(":", 1)[1], 16) == port)


def tun_drops(agent: Agent) -> int:
    """Packets for which the TUN's queue had no room."""
    shown = agent.node.call(Path("/proc/thread-self/net/dev").read_text)
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"{agent.tun.name}:"))
    return int(line.split(":")[1].split()[11])


class Sequenced:
    """UDP flows whose datagrams are numbered, into one socket."""

    def __init__(self, source: Agent, sink: Agent) -> None:
        self.source, self.family = source, source.family
        # While the kernel asks for a neighbour, packets wait; with the answer, one of another CPU may overtake them.
        assert source.node.ping(sink.address).returncode == 0
        with sink.node.entered():
            self.sink = socket.socket(family_of(sink.tunnel), socket.SOCK_DGRAM)
        self.sink_agent = sink
        self.sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
        self.sink.bind((f"{sink.tunnel}", 0))
        self.sink.settimeout(0.2)
        self.seen: dict[int, list[int]] = {}
        self.done = False

    def send(self, flow: int, count: int, size: int, segment: int) -> None:
        """Send at full rate; `segment`: so many datagrams per call."""
        with self.source.node.entered():
            sender = socket.socket(family_of(self.source.tunnel), socket.SOCK_DGRAM)
        with sender:
            sender.bind((self.address_of(flow), 0))
            sender.connect(self.sink.getsockname()[:2])
            if segment > 1:
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            for first in range(0, count, segment):
                sender.send(b"".join(struct.pack("!II", flow, first + i).ljust(size, b"\x5a") for i in range(segment)))

    def address_of(self, flow: int) -> str:
        """Where a flow comes from: here all from one."""
        del flow
        return f"{self.source.tunnel}"

    def lost(self) -> int:
        """How many datagrams the last socket had no room for."""
        return self.sink_agent.node.call(drops_of, self.sink.getsockname()[1], self.family)

    def complete(self) -> bool:
        """Whether all that was delivered is received, or was lost at the last socket."""
        received = sum(len(numbers) for numbers in self.seen.values())
        return self.sink_agent.forwarder.counters()["in"].outcomes["delivered"] == received + self.lost()

    def receive(self) -> None:
        while True:
            try:
                data = self.sink.recv(2048)
            except TimeoutError:
                if self.done and self.complete():
                    return
                continue
            flow, number = struct.unpack_from("!II", data)
            assert data[8:] == b"\x5a" * (len(data) - 8)
            self.seen.setdefault(flow, []).append(number)

    def run(self, flows: int, count: int, size: int, segment: int) -> int:
        """Send, receive what comes, and return how many the last socket had no room for."""
        with ThreadPoolExecutor(flows + 1) as pool:
            receiver = pool.submit(self.receive)
            for sending in [pool.submit(self.send, flow, count, size, segment) for flow in range(flows)]:
                sending.result()
            self.done = True
            receiver.result()
        lost = self.lost()
        self.sink.close()
        return lost


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("size", "segment"), [(64, 1), (1400, 1), (64, 40), (1400, 20)])
@pytest.mark.parametrize("flows", [1, 3])
def test_udp_at_full_rate(pair: MakePair, family: int, size: int, segment: int, flows: int) -> None:
    """No reordering in a flow, no duplicate, and the path's counters tell where each missing datagram went."""
    count = 120_000 if LONG else 12_000
    one, two = pair(family)
    sequenced = Sequenced(one, two)
    lost = sequenced.run(flows, count, size, segment)
    for flow, numbers in sequenced.seen.items():
        assert all(a < b for a, b in pairwise(numbers)), f"flow {flow}: reordered or doubled"
    received = sum(len(numbers) for numbers in sequenced.seen.values())
    wait_until(lambda: two.forwarder.counters()["in"].law_holds, "the traffic rests")
    out, into = one.forwarder.counters()["out"], two.forwarder.counters()["in"]
    outer_lost = two.node.call(drops_of, UDP_PORT, family)
    # The kernel drops whole frames and messages, and counts each as one.
    before = count * flows - out.outcomes["sent"]
    assert out.outcomes["sent"] == out.packets - out.outcomes["out_of_network"]
    assert 0 <= before <= tun_drops(one) * segment
    between = out.outcomes["sent"] - into.packets
    assert 0 <= between <= outer_lost * RUN
    assert into.outcomes["delivered"] == received + lost
    assert received > 0


PLACES = ["tun", "underlay socket", "our own outcomes", "last socket"]


@pytest.mark.parametrize("place", PLACES)
def test_a_lost_datagram_is_found_in_a_counter(pair: MakePair, place: str) -> None:
    """Losses brought about, at one place at a time: each datagram that is missing stands in this place's counter.

    Without UDP_SEGMENT, so that everything counts single datagrams.
    """
    one, two = pair(off=("udp_segment",))
    numbered, flows, each = Sequenced(one, two), 15, 200
    if place == "tun":
        one.pause()
    elif place == "underlay socket":
        two.pause()
        two.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    elif place == "last socket":
        numbered.sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    else:
        one.forwarder.delete_peer(two.subnet)
        one.forwarder.publish()
    for flow in range(flows):  # no more at a time than queues have room for, where they are emptied
        numbered.send(flow, each, 64, 1)
        wait_until(lambda due=each * (flow + 1): place == "tun"  # type: ignore[misc]
                   or one.forwarder.counters()["out"].packets >= due, "it went out")
    if place in ("tun", "underlay socket"):
        (one if place == "tun" else two).go_on()
    numbered.done = True
    numbered.receive()
    for numbers in numbered.seen.values():
        assert numbers == sorted(set(numbers))
    received = sum(map(len, numbered.seen.values()))
    found = {"tun": tun_drops(one), "underlay socket": two.node.call(drops_of, UDP_PORT, 4),
             "our own outcomes": one.outcomes("out").get("no_route", 0), "last socket": numbered.lost()}
    assert {name for name, lost in found.items() if lost} == {place}
    assert received + found[place] == flows * each
    assert (received == 0) == (place == "our own outcomes")
    numbered.sink.close()


def test_a_plain_socket_reads_one_packet_per_datagram(topology: Callable[..., Topology]) -> None:
    """A peer that is nothing but a UDP socket: a message of many datagrams is to it what it always was."""
    require_tun()
    near, far = topology(2).nodes
    agent = Agent(near)
    try:
        agent.forwarder.set_peer(subnet_of(2), far.address, UDP_PORT)
        agent.forwarder.publish()
        with far.entered():
            plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with near.entered():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with plain, sender:
            plain.bind((f"{far.address}", UDP_PORT))
            plain.settimeout(DEADLINE)
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(BLOCK[:20_500], (f"{subnet_of(2)[9]}", 7))
            received = [plain.recv(1 << 16) for _ in range(21)]
        assert agent.events("out")["super_packets"] == 1
        assert b"".join(one[28:] for one in received) == BLOCK[:20_500]
        assert [len(one) for one in received] == [1028] * 20 + [528]
        assert all(naive_checksum(one[:20]) == b"\0\0" for one in received)
    finally:
        agent.close()
