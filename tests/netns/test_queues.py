"""Several queues: order in each flow, nothing lost or doubled uncounted, all queues in use, and how threads behave."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp import steering
from flannel_udp._dataplane import UDP_PORT
from flannel_udp.forwarder import Loops
from flannel_udp.steering import steer
from flannel_udp.underlay import open_beside

from ..conftest import DEADLINE, require_steering, wait_until
from .agent import Agent, subnet_of
from .test_forwarder_loops import named_by_the_kernel, rested, threads_of, voluntary_switches
from .test_transfers import LONG, RUN, Sequenced, checksum_errors, drops_of, tun_drops
from .topology import Topology
from .transfer import transfer

MakePair: TypeAlias = Callable[..., tuple[Agent, Agent]]
QUEUES = [2, 4]
FLOWS = 16
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


@pytest.fixture
def pair(topology: Callable[..., Topology]) -> Iterator[MakePair]:
    """Make two agents of several queues that know each other; at the end no checksum was wrong and the law holds."""
    require_steering()
    made: list[Agent] = []

    def make(queues: int = 4, family: int = 4, loops: Loops = Loops(threads=1),  # noqa: B008 - it is frozen
             steering: Callable[[int], None] = steer) -> tuple[Agent, Agent]:
        made.extend(Agent(node, family, loops=loops, queues=queues, steering=steering) for node in topology(2).nodes)
        one, two = made
        one.knows(two)
        two.knows(one)
        return one, two

    yield make
    with contextlib.ExitStack() as closing:
        for agent in made:
            closing.callback(agent.close)
        assert [checksum_errors(agent) for agent in made] == [0] * len(made)


def shares(agent: Agent, direction: str) -> list[int]:
    """Packets in, by queue."""
    return [queue[f"packets_{direction}"] for queue in agent.forwarder.queues()]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("queues", QUEUES)
def test_tcp_both_ways_in_many_flows(pair: MakePair, queues: int, threads: int, family: int) -> None:
    """Every byte arrives as it was sent, and several queues take part in sending it."""
    one, two = pair(queues, family, Loops(threads))
    size = (256 if LONG else 32) << 20
    with ThreadPoolExecutor(2 * FLOWS) as pool:
        done = [pool.submit(transfer, client.node, server.node, server.tunnel, size // FLOWS, salt)
                for salt in range(FLOWS) for client, server in ((one, two), (two, one))]
    for flow in done:
        flow.result()
    for agent in (one, two):
        assert sum(share > 0 for share in shares(agent, "out")) > 1, shares(agent, "out")


class Scattered(Sequenced):
    """Flows from an address each: so they are spread, which UDP flows between the same two addresses are not."""

    def __init__(self, source: Agent, sink: Agent, flows: int) -> None:
        super().__init__(source, sink)
        for flow in range(flows):
            source.node.ip(f"addr add {self.address_of(flow)} dev lo")

    def address_of(self, flow: int) -> str:
        return f"{self.source.subnet[2 + flow]}"


def reordered(sequenced: Sequenced) -> list[int]:
    """Flows in which a datagram overtook another, or came twice."""
    return [flow for flow, numbers in sequenced.seen.items() if not all(a < b for a, b in pairwise(numbers))]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("size", "segment"), [(64, 1), (1400, 1), (1400, 20)])
@pytest.mark.parametrize("queues", QUEUES)
def test_udp_at_full_rate(pair: MakePair, queues: int, size: int, segment: int, family: int) -> None:
    """No reordering in a flow, no duplicate, and the path's counters tell where each missing datagram went."""
    flows, count = 8, 60_000 if LONG else 6_000
    one, two = pair(queues, family, Loops(threads=2))
    sequenced = Scattered(one, two, flows)
    lost = sequenced.run(flows, count, size, segment)
    assert reordered(sequenced) == []
    received = sum(map(len, sequenced.seen.values()))
    wait_until(lambda: two.forwarder.counters()["in"].law_holds, "the traffic rests")
    out, into = one.forwarder.counters()["out"], two.forwarder.counters()["in"]
    assert out.outcomes["sent"] == out.packets - out.outcomes["out_of_network"]
    assert 0 <= count * flows - out.outcomes["sent"] <= tun_drops(one) * segment
    assert 0 <= out.outcomes["sent"] - into.packets <= two.node.call(drops_of, UDP_PORT, family) * RUN
    assert into.outcomes["delivered"] == received + lost
    assert received > 0
    assert sum(share > 0 for share in shares(one, "out")) > 1, "the flows are spread"
    assert sorted(shares(two, "in"))[:-1] == [0] * (queues - 1), "one peer, one queue"


def spray(queue: int) -> None:
    """Steer each packet to a queue by lot: call bpf_get_prandom_u32, return what it says."""
    program = steering.load(struct.pack("<BBhI", 0x85, 0, 0, 7) + struct.pack("<BBhI", 0x95, 0, 0, 0))
    ioctl(queue, steering.TUNSETSTEERINGEBPF, struct.pack("i", program))
    os.close(program)


def test_flows_that_leave_their_queue_are_reordered(pair: MakePair) -> None:
    """That the tests above can see what the steering prevents: with a program that spreads packets, not flows."""
    one, two = pair(steering=spray)
    sequenced = Scattered(one, two, 4)
    sequenced.run(4, 20_000, 64, 1)
    assert reordered(sequenced)


class Crowd:
    """Many peers of one agent, each a plain socket at an address of its own on another node."""

    def __init__(self, agent: Agent, far: Agent, count: int) -> None:
        self.agent = agent
        self.subnets = [subnet_of(100 + number) for number in range(count)]
        self.sockets = []
        for number, subnet in enumerate(self.subnets):
            address = IPv4Address("192.0.2.100") + number
            far.node.ip(f"addr add {address}/24 dev {far.node.interface}")
            agent.forwarder.set_peer(subnet, address, UDP_PORT)
            with far.node.entered():
                self.sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.sockets[-1].bind((f"{address}", UDP_PORT))
        agent.forwarder.publish()
        with agent.node.entered():
            self.sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self.sink.bind(("", 0))
        self.sink.settimeout(DEADLINE)

    def send(self, number: int, count: int) -> None:
        """Number the datagrams of one peer."""
        top = IP(src=f"{self.subnets[number][2]}", dst=f"{self.agent.tunnel}")
        template = bytes(top / UDP(sport=9, dport=self.sink.getsockname()[1], chksum=0) / bytes(8))[:-8]
        for i in range(count):
            self.sockets[number].sendto(template + struct.pack("!II", number, i), (f"{self.agent.address}", UDP_PORT))

    def close(self) -> None:
        for opened in (*self.sockets, self.sink):
            opened.close()


def test_each_peers_datagrams_keep_to_one_queue_and_the_queues_share_the_peers(pair: MakePair) -> None:
    one, two = pair()
    with contextlib.closing(Crowd(one, two, 64)) as crowd:
        with ThreadPoolExecutor(len(crowd.subnets)) as pool:
            for sending in [pool.submit(crowd.send, number, 200) for number in range(len(crowd.subnets))]:
                sending.result()
        one.wait_for("in", "delivered", 64 * 200)
        seen: dict[int, list[int]] = {}
        for _ in range(64 * 200):
            number, i = struct.unpack("!II", crowd.sink.recv(64))
            seen.setdefault(number, []).append(i)
    assert seen == {number: list(range(200)) for number in range(64)}
    assert all(shares(one, "in")), "with 64 peers no queue goes empty-handed"
    assert all(share % 200 == 0 for share in shares(one, "in"))
    told = {peer.subnet: peer for peer in one.forwarder.peers()}
    assert all((told[subnet].packets_in, told[subnet].bytes_in) == (200, 200 * 36) for subnet in crowd.subnets)
    assert all(told[subnet].last_heard for subnet in crowd.subnets)


def test_what_came_before_all_sockets_were_open_is_not_behind_what_comes_after(pair: MakePair) -> None:
    one, two = pair()
    one.stop()
    for sockets in one.sockets:
        sockets.close()
    one.queues = 1
    one.open_sockets()
    (first,) = one.sockets
    with contextlib.closing(Crowd(one, two, 8)) as crowd:
        for number in range(8):
            crowd.send(number, 1)
        wait_until(lambda: len(first.street.recv(100, socket.MSG_PEEK)), "they wait in the one socket")
        with one.node.entered():
            one.sockets += open_beside(first, 3)
        one.queues = 4
        one.start()
        for number in range(8):
            crowd.send(number, 2)
        one.wait_for("in", "delivered", 16)
        found = [struct.unpack("!II", crowd.sink.recv(64)) for _ in range(16)]
        assert sorted(found) == [(number, i) for number in range(8) for i in range(2)]
        assert one.outcomes("in") == {"delivered": 16}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_have_the_numbers_of_their_queues_in_top(pair: MakePair, threads: int) -> None:
    one, _ = pair(2, loops=Loops(threads))
    names = {1: ["both_ways/0", "both_ways/1"],
             2: ["tun_to_udp/0", "udp_to_tun/0", "tun_to_udp/1", "udp_to_tun/1"]}[threads]
    assert list(threads_of(one)) == names
    for name, native_id in threads_of(one).items():
        wait_until(lambda name=name, native_id=native_id:  # type: ignore[misc]
                   named_by_the_kernel(native_id) == name, "the thread has its name")


def test_threads_are_pinned_in_turn(pair: MakePair) -> None:
    usable = sorted(os.sched_getaffinity(0))
    cpus = (usable[-1], usable[0])
    one, two = pair(3, loops=Loops(threads=1, cpus=cpus))
    for name, cpu in zip(("both_ways/0", "both_ways/1", "both_ways/2"), (*cpus, cpus[0]), strict=True):
        wait_until(lambda name=name, cpu=cpu:  # type: ignore[misc]
                   os.sched_getaffinity(threads_of(one)[name]) == {cpu}, "the thread is pinned")
    assert one.node.ping(two.tunnel).returncode == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_sleeping_loops_cost_nothing(pair: MakePair, threads: int) -> None:
    one, two = pair(4, loops=Loops(threads))
    assert one.node.ping(two.tunnel).returncode == 0

    def wakings() -> list[int]:
        return [*map(voluntary_switches, threads_of(one).values()), one.events("out")["wake_ups"],
                one.events("in")["wake_ups"]]

    before = wait_until(lambda: rested(wakings), "what the ping left behind is done")
    time.sleep(1)  # what must not come can only be waited for
    assert wakings() == before


def test_a_deleted_device_ends_every_loop_and_can_be_replaced(pair: MakePair) -> None:
    one, two = pair(4)
    assert one.node.ping(two.tunnel).returncode == 0
    one.node.ip(f"link delete {one.tun.name}")
    wait_until(lambda: len(one.exits) == 4, "each loop tells its end")
    assert {loop for loop, _ in one.exits} == {f"both_ways/{number}" for number in range(4)}
    one.stop()
    one.start()
    assert one.node.ping(two.tunnel).returncode == 0
    assert one.outcomes("out")["sent"] == 2


def test_a_hundred_starts_leave_nothing_over(pair: MakePair) -> None:
    """Device, sockets and threads anew each time; the counters go on, and each stop takes well below a second."""
    one, two = pair(4)

    def held() -> tuple[int, int, int]:
        descriptors, threads = (len(list(Path("/proc/self", folder).iterdir())) for folder in ("fd", "task"))
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return descriptors, threads, memory

    for turn in range(110):
        if turn == 10:
            before = held()
        one.stop()
        for sockets in one.sockets:
            sockets.close()
        one.open_sockets()
        one.start()
    wait_until(lambda: all(count <= most for count, most in zip(held()[:2], before, strict=False)),
               f"descriptors and threads are no more than before, {before}, once the last threads have gone")
    assert held()[2] - before[2] < 16 << 20
    assert one.node.ping(two.tunnel).returncode == 0
    assert one.forwarder.status()["loops"]["queues"] == 4  # type: ignore[index]


def test_a_node_of_one_queue_and_one_of_four_understand_each_other(topology: Callable[..., Topology]) -> None:
    require_steering()
    near, far = topology(2).nodes
    one, two = Agent(near), Agent(far, queues=4)
    one.knows(two)
    two.knows(one)
    with contextlib.closing(one), contextlib.closing(two):
        transfer(one.node, two.node, two.tunnel, 4 << 20)
        transfer(two.node, one.node, one.tunnel, 4 << 20)
        assert (len(shares(one, "in")), len(shares(two, "in"))) == (1, 4)
