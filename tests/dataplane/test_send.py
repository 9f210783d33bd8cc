"""send.pxd: runs through a real socket, and what each thing that the kernel can say does to them.

A super-packet goes in with its vnet_hdr; the far socket reads one datagram per packet, as any peer may. Refusals are
the kernel's own: of a socket without checksums (EINVAL for UDP_SEGMENT), of what no datagram holds, of addresses.
"""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from flannel_udp._probe import icmp_error

from ..conftest import wait_until
from . import packets
from .packets import hop, packed
from .rig import PEER, Rig
from .super_packets import BULK4, BULK6, UDP4, UDP6, Flow, text

SO_NO_CHECK, IPPROTO_UDPLITE = 11, 136  # asm-generic/socket.h, linux/in.h
SIZE = 1000
FLOWS = {4: (BULK4, UDP4), 6: (BULK6, UDP6)}


@contextmanager
def fast(family: int = 4, coat: bytes = b"", *, segment: bool = True, prepare: Callable[[Rig], None] | None = None
         ) -> Iterator[Rig]:
    """A running Rig with a vnet_hdr before each frame."""
    rig = Rig(family, coat=coat)
    rig.worker.use(vnet=True, uso=True, segment=segment, busy_poll=0)
    try:
        if prepare is not None:
            prepare(rig)
    except BaseException:
        rig.close()
        raise
    with rig:
        yield rig


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def give(rig: Rig, flow: Flow, payload: bytes, size: int = SIZE) -> list[bytes]:
    """Give a super-packet to the loop; return the datagrams that are to come of it."""
    data, vnet = flow.super_packet(payload, size)
    rig.give(vnet.packed() + data)
    return [hop(one) for one in flow.segments(payload, size)]


def received(rig: Rig, count: int) -> list[bytes]:
    return [rig.receive() for _ in range(count)]


@pytest.mark.parametrize("coat", [b"", b"a coat of twenty-two b"], ids=["bare", "coated"])
@pytest.mark.parametrize("segment", [True, False], ids=["segment", "singly"])
def test_a_super_packet_is_datagrams_of_plain_packets(family: int, segment: bool, coat: bytes) -> None:
    with fast(family, coat, segment=segment) as rig:
        for flow in FLOWS[family]:
            due = give(rig, flow, text(40_500))
            assert received(rig, 41) == [coat + one for one in due]
        rig.wait_for("out", "sent", 82)
        assert rig.worker.counters("out")[0] == 82
        events = rig.events("out")
        assert (events["frames"], events["super_packets"]) == (2, 2)
        assert events["messages"] == (2 if segment else 82)
        lengths = sum(len(one) for flow in FLOWS[family] for one in flow.segments(text(40_500), SIZE))
        assert rig.worker.peer_count("out", PEER, 1)[:2] == (82, lengths)
        assert rig.worker.given_up() == []


def test_more_segments_than_a_message_holds() -> None:
    """Nothing of the tail is lost, whatever the limit: 127 datagrams, or 65487 bytes."""
    with fast() as rig:
        for payload, size, messages in ((text(150), 1, 2), (text(65000), 1398, 2)):
            before = rig.events("out")["messages"]
            due = give(rig, BULK4, payload, size)
            assert received(rig, len(due)) == due
            wait_until(lambda: sum(rig.outcomes("out").values()) == rig.worker.counters("out")[0], "all are counted")
            assert rig.events("out")["messages"] - before == messages


def test_packets_that_queue_share_a_message(family: int) -> None:
    """Also of different flows, and of any protocol: only size and next hop count. A shorter one is the last."""
    def queue(rig: Rig) -> None:
        for number in range(20):
            size = 100 if number != 10 else 50
            rig.give(bytes(10) + packets.packet(family, 1, 2, bytes([number]) * size))

    with fast(family, prepare=queue) as rig:
        assert [one[-1] for one in received(rig, 20)] == list(range(20))
        rig.wait_for("out", "sent", 20)
        assert (rig.events("out")["messages"], rig.events("out")["batches"]) == (2, 1)


def test_runs_of_different_peers_keep_each_flow_in_order() -> None:
    def queue(rig: Rig) -> None:
        rig.set_route(3, PEER + 1)
        rig.set_peer(PEER + 1, "127.0.0.2", rig.peer.getsockname()[1])
        for number in range(30):
            rig.give(bytes(10) + packets.packet(4, 1, 2 + number % 2, bytes([number]) * 50))

    with fast(prepare=queue) as rig:
        assert [one[-1] for one in received(rig, 30)] == list(range(30))


def test_no_checksums_no_segment() -> None:
    """EINVAL: fewer datagrams in a message, then one each; the tail is not lost, and it is said once."""
    def refuse(rig: Rig) -> None:
        rig.udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)

    with fast(prepare=refuse) as rig:
        for _ in range(3):
            for flow in FLOWS[4]:
                due = give(rig, flow, text(10_500))
                assert received(rig, 11) == due
        rig.wait_for("out", "sent", 66)
        assert rig.worker.given_up() == [("udp_segment", errno.EINVAL)]
        assert rig.outcomes("out") == {"sent": 66}
        assert rig.events("out")["messages"] == 66


def test_udp_lite_is_not_cut_by_the_kernel() -> None:
    """EIO: each datagram goes alone from then on, the tail is not lost, and it is said once."""
    def lite(rig: Rig) -> None:
        for opened in (rig.udp, rig.peer):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as other:
                other.setblocking(False)
                other.bind(opened.getsockname())
                os.dup2(other.fileno(), opened.fileno())

    with fast(prepare=lite) as rig:
        for _ in range(3):
            for flow in FLOWS[4]:
                due = give(rig, flow, text(10_500))
                assert received(rig, 11) == due
        rig.wait_for("out", "sent", 66)
        assert rig.worker.given_up() == [("udp_segment", errno.EIO)]
        assert rig.outcomes("out") == {"sent": 66}
        assert rig.events("out")["messages"] == 66


def test_a_peer_that_cannot_be_sent_to_takes_nothing_from_the_others() -> None:
    """From a loopback address to a real one is EINVAL, with UDP_SEGMENT and without."""
    with fast() as rig:
        rig.set_route(3, PEER + 1)
        rig.set_peer(PEER + 1, "198.51.100.1")
        for _ in range(3):
            give(rig, replace(BULK4, destination="10.5.3.2"), text(5000))
        rig.wait_for("out", "send_error", 15)
        assert (rig.worker.last_error(), rig.worker.given_up()) == (errno.EINVAL, [])
        due = give(rig, BULK4, text(5000))
        assert received(rig, 5) == due
        wait_until(lambda: rig.events("out")["messages"] == 1, "one message of five datagrams")


def test_what_is_forbidden_is_counted_each() -> None:
    """EACCES of a broadcast address, which the socket was not allowed; EPERM of a firewall goes the same way."""
    with fast() as rig:
        rig.set_route(3, PEER + 1)
        rig.set_peer(PEER + 1, "255.255.255.255")
        give(rig, replace(BULK4, destination="10.5.3.2"), text(7001))
        rig.wait_for("out", "send_forbidden", 8)
        assert rig.worker.given_up() == []
        due = give(rig, BULK4, text(5000))
        assert received(rig, 5) == due


@pytest.mark.parametrize("segment", [True, False], ids=["segment", "singly"])
def test_too_big_for_any_datagram_is_answered_and_the_rest_goes(segment: bool) -> None:
    """EMSGSIZE within a queue: those before and after it are sent, in order, and UDP_SEGMENT is kept."""
    large = packets.ipv4("10.5.1.2", "10.5.2.2", bytes(65515), fragment=0x4000)

    def queue(rig: Rig) -> None:
        rig.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        one, two, three = (packets.packet(4, 1, 2, mark) for mark in (b"1", b"2", b"3"))
        for data in (one, large, two, three):
            rig.give(bytes(10) + data)

    with fast(segment=segment, prepare=queue) as rig:
        assert [one[-1:] for one in received(rig, 3)] == [b"1", b"2", b"3"]
        assert rig.take() == bytes(10) + icmp_error(hop(large), packed("10.5.1.0"), 3, 4, 65535 - 28)
        rig.wait_for("out", "sent", 3)
        assert rig.outcomes("out") == {"sent": 3, "too_big": 1}
        assert rig.worker.given_up() == []


def test_a_full_buffer_drops_only_after_a_wait() -> None:
    """EAGAIN, where the kernel gives it: each packet is sent or counted, and none is counted twice."""
    with fast() as rig:
        rig.udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the kernel has
        rig.peer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        total = 0
        for _ in range(20):
            total += len(give(rig, UDP4, text(60_000)))
        wait_until(lambda: sum(rig.outcomes("out").values()) == total, "each packet has an outcome")
        outcomes = rig.outcomes("out")
        assert outcomes.keys() <= {"sent", "send_buffer_full"}
        assert rig.worker.given_up() == []


def test_a_lying_vnet_hdr_ends_the_packet_not_the_loop(family: int) -> None:
    with fast(family) as rig:
        data, vnet = FLOWS[family][0].super_packet(text(3000), SIZE)
        lies = (vnet.but(gso_size=0), vnet.but(gso_type=3), vnet.but(csum_start=65535), vnet.but(gso_type=0x7F),
                vnet.but(gso_type=0, csum_offset=65535))
        for lie in lies:
            rig.give(lie + data)
        rig.give(b"\0" * 3)
        due = give(rig, FLOWS[family][0], text(3000))
        assert received(rig, 3) == due
        rig.wait_for("out", "sent", 3)
        assert rig.outcomes("out") == {"sent": 3, "bad_offload": 5, "truncated": 1}


def test_what_ends_here_counts_its_segments(family: int) -> None:
    """The law is of inner packets on the wire: a super-packet without a route is as many of them."""
    with fast(family) as rig:
        lost = "10.5.9.2" if family == 4 else "fd05:0:0:9::2"
        give(rig, replace(FLOWS[family][0], destination=lost), text(10_000))
        rig.wait_for("out", "no_route", 10)
        assert rig.worker.counters("out")[0] == 10
        assert rig.events("out")["icmp_sent"] == 1


def test_in_one_thread_both_ways(family: int) -> None:
    rig = Rig(family)
    rig.worker.use(vnet=True, uso=True, segment=True, busy_poll=0)
    thread = threading.Thread(
        target=rig.worker.both_ways,
        args=(rig.tun.fileno(), rig.udp.fileno(), rig.path.fileno(), rig.stop_fd))
    rig.threads = [thread]
    thread.start()
    with rig_running(rig):
        for turn in range(20):
            due = give(rig, FLOWS[family][0], text(5000, turn))
            assert received(rig, 5) == due
            data = packets.packet(family, 2, 1, bytes([turn]))
            rig.send(data)
            assert rig.take() == bytes(10) + hop(data)
        rig.wait_for("out", "sent", 100)
        rig.wait_for("in", "delivered", 20)


@contextmanager
def rig_running(rig: Rig) -> Iterator[None]:
    """End as `with rig` does, for threads that the test has started itself."""
    try:
        yield
    finally:
        rig.__exit__(None, None, None)
