"""Datagrams in, with UDP_GRO and without: whole, in order, whatever their size; and what the kernel says instead."""

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flannel_udp._probe import coalesce

from ..conftest import wait_until
from . import packets
from .answers import Answers, Message, kernel
from .packets import hop
from .rig import PEER, Rig, udp_socket
from .super_packets import BULK4, Flow, text

UDP_SEGMENT, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 103, 32, 33  # linux/udp.h, asm-generic/socket.h
MSG_TRUNC, MSG_CTRUNC = 0x20, 0x08  # linux/socket.h
SLOTS = 64
"""Datagrams that one call receives where a message is one datagram."""
GRO = pytest.mark.parametrize("gro", [True, False], ids=["gro", "singles"])
INTO = Flow(protocol="udp", source="10.5.2.2", destination="10.5.1.2")


@contextmanager
def queued(datagrams: list[bytes], *, gro: bool, answers: Answers | None = None, vnet: bool = False,
           family: int = 4, prepare: Callable[[Rig], object] | None = None) -> Iterator[Rig]:
    """A Rig that begins with these datagrams in its socket's buffer."""
    rig = Rig(family, gro=gro, answers={"in": answers} if answers else None)
    rig.udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    rig.tun.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
    rig.worker.use(vnet=vnet, uso=vnet, segment=True, busy_poll=0)
    rig.peer.setblocking(True)
    for datagram in datagrams:
        rig.send(datagram)
    if prepare is not None:
        prepare(rig)
    with rig:
        yield rig


def numbered(count: int, size: int = 100) -> list[bytes]:
    return [packets.packet(4, 2, 1, struct.pack("!I", number).ljust(size, b"\x5a")) for number in range(count)]


@GRO
@pytest.mark.parametrize("count", [1, 2, SLOTS - 1, SLOTS, SLOTS + 1, 200, 700])
def test_what_is_queued_comes_whole_and_in_order(gro: bool, count: int) -> None:
    with queued(numbered(count), gro=gro) as rig:
        assert [rig.take() for _ in range(count)] == [hop(one) for one in numbered(count)]
        rig.wait_for("in", "delivered", count)
        assert rig.events("in")["messages"] == count


@GRO
def test_any_sizes_beside_one_another(gro: bool) -> None:
    """The largest datagram there is between small ones: none is cut off, none is laid over another."""
    sizes = [8, 65507 - 20, 1, 0, 1452, 1453, 9000, 65507 - 20, 65507 - 21, 2000, 64, *([40_000] * 9), 5]
    made = [packets.packet(4, 2, 1, text(size, place)) for place, size in enumerate(sizes)]
    with queued(made, gro=gro) as rig:
        for one in made:
            assert rig.take() == hop(one)
        rig.wait_for("in", "delivered", len(made))


@GRO
def test_each_has_its_own_sender(gro: bool) -> None:
    """Known and unknown ones in turn, and datagrams of no byte."""
    def strangers_too(rig: Rig) -> None:
        with udp_socket("127.0.0.77") as stranger:
            for place, one in enumerate(numbered(40)):
                (rig.peer, stranger)[place % 2].sendto(one, rig.udp.getsockname())
            rig.peer.sendto(b"", rig.udp.getsockname())

    with queued([], gro=gro, prepare=strangers_too) as rig:
        assert [rig.take() for _ in range(20)] == [hop(one) for one in numbered(40)[::2]]
        rig.comes_to("in", {"delivered": 20, "unknown_sender": 20, "truncated": 1})


@GRO
def test_a_message_of_many_is_the_same_datagrams(gro: bool) -> None:
    """What one call has sent, UDP_SEGMENT and all; with UDP_GRO it is one message, and a merged frame either way."""
    parts = INTO.segments(text(20_500), 1000)

    def as_one(rig: Rig) -> None:
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(parts[0]))
        rig.send(b"".join(parts))

    with queued([], gro=gro, vnet=True, prepare=as_one) as rig:
        (vnet, frame, _), = coalesce([hop(one) for one in parts], True)
        assert rig.take() == vnet + frame
        rig.wait_for("in", "delivered", 21)
        events = rig.events("in")
        assert (events["messages"], events["frames"], events["super_packets"]) == (1 if gro else 21, 1, 1)


def test_one_call_receives_many() -> None:
    """recvmmsg where a message is one datagram: 200 of them are four calls, the last of which tells that it is."""
    calls: list[int] = []

    def counted(*arguments: int) -> int:
        calls.append(kernel("recvmmsg", *arguments[:5]))
        return calls[-1]

    with queued(numbered(200), gro=False, answers=Answers(recvmmsg=counted)) as rig:
        rig.wait_for("in", "delivered", 200)
        assert calls == [64, 64, 64, 8]


class Receives:
    """The kernel's answers to a loop that receives: flags or an errno beside the message of a number."""

    def __init__(self, flags: dict[int, int] | None = None, errors: dict[int, int] | None = None) -> None:
        self.flags, self.errors = flags or {}, errors or {}
        self.received = self.called = 0

    def answers(self) -> Answers:
        return Answers(recvmsg=self.recvmsg, recvmmsg=self.recvmmsg)

    def failed(self) -> int | None:
        self.called += 1
        return -self.errors[self.called - 1] if self.called - 1 in self.errors else None

    def recvmsg(self, fd: int, address: int, flags: int, *_: int) -> int:
        error = self.failed()
        if error is not None:
            return error
        done = kernel("recvmsg", fd, address, flags)
        if done >= 0:
            self.mark(address)
        return done

    def recvmmsg(self, fd: int, vector: int, count: int, flags: int, *_: int) -> int:
        error = self.failed()
        if error is not None:
            return error
        done = kernel("recvmmsg", fd, vector, count, flags, 0)
        for place in range(max(done, 0)):
            self.mark(vector + place * Message.MMSG_SIZE)
        return done

    def mark(self, address: int) -> None:
        Message(address).add_flags(self.flags.get(self.received, 0))
        self.received += 1


@GRO
@pytest.mark.parametrize("flag", [MSG_TRUNC, MSG_CTRUNC], ids=["bytes", "size"])
def test_what_is_cut_off_is_counted_and_not_passed_on(gro: bool, flag: int) -> None:
    """Trap 13: bytes are missing, or the size by which a message is divided; its neighbours are whole."""
    made = numbered(5)
    with queued(made, gro=gro, answers=Receives({1: flag, 3: flag}).answers()) as rig:
        assert [rig.take() for _ in range(3)] == [hop(made[place]) for place in (0, 2, 4)]
        rig.comes_to("in", {"delivered": 3, "truncated": 2})


def test_a_message_without_its_size_counts_as_one() -> None:
    """Trap 13: MSG_CTRUNC takes UDP_GRO's size away, and nothing says where the datagrams end."""
    def as_one(rig: Rig) -> None:
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 120)
        rig.send(b"".join(numbered(10)))

    with queued([], gro=True, answers=Receives({0: MSG_CTRUNC}).answers(), prepare=as_one) as rig:
        rig.wait_for("in", "truncated")
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
        rig.send(numbered(1)[0])
        assert rig.take() == hop(numbered(1)[0])
        rig.comes_to("in", {"delivered": 1, "truncated": 1})


@pytest.mark.parametrize(("size", "count"), [(1, 1), (9, 1), (10, 120)])
def test_no_message_has_more_datagrams_than_there_are_descriptors(size: int, count: int) -> None:
    """1200 bytes in datagrams of 1, of 9 and of 10: what no kernel says must not be believed."""
    def resized(fd: int, address: int, flags: int, *_: int) -> int:
        done = kernel("recvmsg", fd, address, flags)
        if done >= 0:
            Message(address).set_gro_size(size)
        return done

    def as_one(rig: Rig) -> None:
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 120)
        rig.send(b"".join(numbered(10)))

    with queued([], gro=True, answers=Answers(recvmsg=resized), prepare=as_one) as rig:
        wait_until(lambda: sum(rig.outcomes("in").values()) >= count, "the message is counted")
        assert rig.worker.counters("in")[0] == count


def test_one_flow_from_two_peers_is_counted_for_each() -> None:
    """Datagrams that would continue one another stay apart where their senders differ, and in order."""
    parts = INTO.segments(text(4000), 1000)

    def by_turns(rig: Rig) -> None:
        with udp_socket("127.0.0.3") as other:
            rig.set_peer(PEER + 1, "127.0.0.3")
            for place, one in enumerate(parts):
                (rig.peer, other)[place // 2].sendto(one, rig.udp.getsockname())

    with queued([], gro=True, vnet=True, prepare=by_turns) as rig:
        frames = coalesce([hop(one) for one in parts[:2]], True) + coalesce([hop(one) for one in parts[2:]], True)
        assert [rig.take() for _ in range(2)] == [vnet + frame for vnet, frame, _ in frames]
        rig.wait_for("in", "delivered", 4)
        for slot in (PEER, PEER + 1):
            assert rig.worker.peer_count("in", slot, 1)[:2] == (2, 2 * len(parts[0]))


@GRO
@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ENOMEM, errno.EHOSTUNREACH], ids=errno.errorcode.get)
def test_errors_beside_datagrams_take_none_of_them(gro: bool, error: int) -> None:
    made = numbered(10)
    with queued(made, gro=gro, answers=Receives(errors={0: error, 1: error}).answers()) as rig:
        assert [rig.take() for _ in range(10)] == [hop(one) for one in made]
        rig.wait_for("in", "delivered", 10)
        assert rig.events("in")["receive_errors"] == 2


@GRO
def test_an_interrupted_call_is_made_again(gro: bool) -> None:
    made = numbered(10)
    with queued(made, gro=gro, answers=Receives(errors={0: errno.EINTR, 1: errno.EINTR}).answers()) as rig:
        assert [rig.take() for _ in range(10)] == [hop(one) for one in made]
        assert rig.events("in")["receive_errors"] == 0


@GRO
def test_a_socket_that_is_none_ends_the_loop(gro: bool) -> None:
    rig = Rig(gro=gro, answers={"in": Receives(errors={0: errno.EBADF}).answers()})
    rig.start()
    wait_until(lambda: rig.ended.get("in"), "the loop ends")
    rig.stop()
    rig.close()
    ended = rig.ended["in"]
    assert ended
    assert ended.errno == errno.EBADF


def test_a_tcp_train_is_merged_however_it_was_received() -> None:
    into = Flow(source="10.5.2.2", destination="10.5.1.2", sequence=BULK4.sequence)
    parts = into.segments(text(30_000), 1000)
    taken = []
    for gro in (True, False):
        with queued(parts, gro=gro, vnet=True) as rig:
            taken.append(rig.take())
    assert taken[0] == taken[1]
    assert len(taken[0]) == 10 + 40 + 30_000
