"""A Forwarder of several queues, its TUN on paper: what they count is told as one; they start and stop together."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_udp.forwarder import Doors, Encapsulation, Forwarder, Loops, Queue
from flannel_udp.options import QUEUES_MOST

from ..conftest import DEADLINE, wait_until
from ..dataplane.packets import ipv4

SO_NO_CHECK = 11  # asm-generic/socket.h; UDP_SEGMENT is refused where it is set
OWN, PEER = IPv4Network("10.5.1.0/24"), IPv4Network("10.5.2.0/24")
HERE, THERE, STRANGE, STRANGER = (f"127.0.0.{number}" for number in range(1, 5))
OUT, IN = ipv4(f"{OWN[2]}", f"{PEER[2]}"), ipv4(f"{PEER[2]}", f"{OWN[2]}")


class Line:
    """One queue: `kernel` is the TUN's far end, `udp` what datagrams come to."""

    def __init__(self) -> None:
        self.kernel, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.udp, self.path = street(HERE), street(HERE)
        for opened in (self.tun, self.udp, self.path):
            opened.setblocking(False)
        self.queue = Queue(self.tun.fileno(), self.udp.fileno(), self.path.fileno())

    def close(self) -> None:
        for opened in (self.kernel, self.tun, self.udp, self.path):
            opened.close()


def street(address: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((address, 0))
    return opened


class Node:
    """A Forwarder that knows one peer, which is a plain socket."""

    def __init__(self, queues: int, threads: int = 1) -> None:
        self.lines = [Line() for _ in range(queues)]
        self.peer = street(THERE)
        self.peer.settimeout(DEADLINE)
        self.exits: list[tuple[str, OSError | None]] = []
        self.forwarder = Forwarder(IPv4Network("10.5.0.0/16"), 24, Encapsulation(0, 1, 28), "known", Loops(threads))
        self.forwarder.set_own(OWN, OWN[0], [IPv4Address(HERE)])
        self.forwarder.set_peer(PEER, IPv4Address(THERE), self.peer.getsockname()[1])
        self.forwarder.publish()

    def start(self, queues: int | None = None, doors: Doors = Doors()) -> None:  # noqa: B008 - it is frozen
        self.forwarder.start([line.queue for line in self.lines[:queues]],
                             lambda loop, error: self.exits.append((loop, error)), doors)

    def told(self, direction: str) -> dict[str, int]:
        return {name: count for name, count in self.forwarder.counters()[direction].outcomes.items() if count}

    def shares(self, direction: str) -> list[int]:
        return [queue[f"packets_{direction}"] for queue in self.forwarder.queues()]

    def close(self) -> None:
        self.forwarder.stop()
        for line in self.lines:
            line.close()
        self.peer.close()
        assert all(counters.law_holds for counters in self.forwarder.counters().values())


@pytest.fixture
def node() -> Iterator[Node]:
    with contextlib.closing(Node(3)) as made:
        yield made


def test_what_the_queues_count_is_told_as_one(node: Node) -> None:
    node.start()
    for number, line in enumerate(node.lines):
        for _ in range(number + 1):
            line.kernel.send(OUT)
            node.peer.sendto(IN, line.udp.getsockname())
    assert {len(node.peer.recv(2048)) for _ in range(6)} == {len(OUT)}
    wait_until(lambda: node.told("in").get("delivered") == 6, "all are delivered")
    assert (node.told("out"), node.told("in")) == ({"sent": 6}, {"delivered": 6})
    assert (node.shares("out"), node.shares("in")) == ([1, 2, 3], [1, 2, 3])
    peer, = node.forwarder.peers()
    assert (peer.packets_out, peer.bytes_out, peer.packets_in, peer.bytes_in) == (6, 6 * len(OUT), 6, 6 * len(IN))
    assert node.forwarder.counters()["out"].events["frames"] == 6
    assert node.forwarder.status()["loops"] == {"threads": 1, "queues": 3, "cpus": "any", "busy_poll_us": 0}


def test_last_heard_is_the_latest_of_any_queue(node: Node) -> None:
    node.start()
    heard: list[float] = []
    for line in (node.lines[1], node.lines[2], node.lines[0]):
        time.sleep(0.02)  # longer than a timer tick, by which it is told
        before = len(heard)
        node.peer.sendto(IN, line.udp.getsockname())
        wait_until(lambda before=before: sum(node.shares("in")) > before, "it is there")  # type: ignore[misc]
        peer, = node.forwarder.peers()
        heard.append(peer.last_heard or 0)
    assert heard[0] < heard[1] < heard[2]


def test_drops_of_all_queues_are_one_notice_with_the_newest_detail(node: Node) -> None:
    node.start()
    strangers = {address: street(address) for address in (STRANGE, STRANGER)}
    strangers[STRANGE].sendto(IN, node.lines[2].udp.getsockname())
    wait_until(lambda: node.told("in").get("unknown_sender") == 1, "one is dropped")
    notice, = node.forwarder.notices()
    assert (notice.cause, notice.count, notice.detail) == ("unknown_sender", 1, STRANGE)
    for line in node.lines[:2]:
        strangers[STRANGER].sendto(IN, line.udp.getsockname())
    wait_until(lambda: node.told("in").get("unknown_sender") == 3, "two more are dropped")
    notice, = node.forwarder.notices()
    assert (notice.cause, notice.count, notice.detail) == ("unknown_sender", 2, STRANGER)
    assert node.forwarder.notices() == []
    for stranger in strangers.values():
        stranger.close()


def test_what_two_queues_gave_up_is_told_once(node: Node) -> None:
    for line in node.lines[:2]:
        line.udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        for _ in range(5):
            line.kernel.send(OUT)  # waits, so that they are a run
    node.start(doors=Doors(segment=True))
    wait_until(lambda: node.told("out") == {"sent": 10}, "all are sent")
    notice, = node.forwarder.notices()
    assert (notice.event, notice.cause) == ("offload given up", "udp_segment")
    assert list(node.forwarder.given_up()) == ["udp_segment"]
    assert node.forwarder.notices() == []


def test_fewer_queues_may_start_later_and_nothing_is_forgotten(node: Node) -> None:
    node.start()
    node.lines[2].kernel.send(OUT)
    wait_until(lambda: node.told("out") == {"sent": 1}, "it is sent")
    node.forwarder.stop()
    node.start(1)
    node.lines[0].kernel.send(OUT)
    wait_until(lambda: node.told("out") == {"sent": 2}, "it is sent, too")
    assert node.shares("out") == [1, 0, 1]
    assert node.forwarder.status()["loops"]["queues"] == 1  # type: ignore[index]


def test_one_queue_that_fails_is_told_by_name_and_the_others_go_on(node: Node) -> None:
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)  # where every read fails
    node.lines[1].queue = replace(node.lines[1].queue, tun=folder)
    node.start()
    wait_until(lambda: node.exits, "its end is told")
    os.close(folder)
    (name, error), = node.exits
    assert (name, error and error.errno) == ("both_ways/1", errno.EISDIR)
    node.lines[2].kernel.send(OUT)
    wait_until(lambda: node.told("out") == {"sent": 1}, "the others go on")


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_queues_as_there_may_be_start_and_stop_within_a_second(threads: int) -> None:
    with contextlib.closing(Node(QUEUES_MOST, threads)) as node:
        for _ in range(3):
            node.start()
            before = time.monotonic()
            node.forwarder.stop()
            assert time.monotonic() - before < 1
        node.start()
        for line in node.lines:
            line.kernel.send(OUT)
            node.peer.sendto(IN, line.udp.getsockname())
        wait_until(lambda: sum(node.shares("in")) == sum(node.shares("out")) == QUEUES_MOST, "all work")
        assert node.shares("out") == [1] * QUEUES_MOST
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        node.forwarder.stop()
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 1, "the eventfd goes"
