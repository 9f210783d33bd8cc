"""What each errno does to a loop (trap 10): no loop without end, no lost tail, one counted outcome for each datagram.

The kernel's words are put into its mouth (answers.py), as said of a message, of a datagram at any place of a run, or of
a frame; all else is real. What a kernel can be brought to say by itself: test_send.py and ../netns/test_refusals.py.
"""

import errno
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from flannel_udp._probe import coalesce, icmp_error

from ..conftest import wait_until
from . import packets
from .answers import Answers, Message, Sends, kernel
from .packets import hop, packed
from .rig import Rig
from .super_packets import BULK4, BULK6, UDP4, UDP6, Flow, text
from .test_receive import SO_RCVBUFFORCE, queued
from .test_send import FLOWS, give, received

COUNT = 11
"""Datagrams of a super-packet here."""
PAYLOAD = text(COUNT * 1000 - 500)
OUTCOMES = {
    errno.EAGAIN: "send_buffer_full", errno.ENOBUFS: "send_buffer_full",
    errno.ENETUNREACH: "underlay_unreachable", errno.EHOSTUNREACH: "underlay_unreachable",
    errno.ENETDOWN: "underlay_unreachable", errno.EHOSTDOWN: "underlay_unreachable",
    errno.ECONNREFUSED: "underlay_unreachable",
    errno.EPERM: "send_forbidden", errno.EACCES: "send_forbidden",
    errno.ENOMEM: "send_error", errno.EIO: "send_error", errno.EINVAL: "send_error", errno.EFAULT: "send_error",
}
"""What becomes of a single datagram; EMSGSIZE has tests of its own."""
DIVIDED = (errno.EMSGSIZE, errno.EIO, errno.EINVAL)
"""What makes a run go datagram by datagram."""
WHOLE = {number: outcome for number, outcome in OUTCOMES.items() if number not in DIVIDED}
IN_ALL_FAMILIES = pytest.mark.parametrize("family", [4, 6])
AT = pytest.mark.parametrize("place", [0, 1, 5, COUNT - 1])


def named(numbers: object) -> list[str]:
    return [errno.errorcode[number] for number in numbers]  # type: ignore[attr-defined]


@contextmanager
def refusing(sends: Sends, family: int = 4, *, segment: bool = True) -> Iterator[Rig]:
    """A running Rig whose sends are answered."""
    rig = Rig(family, answers={"out": sends.answers()})
    rig.peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    rig.worker.use(vnet=True, uso=True, segment=segment, busy_poll=0)
    with rig:
        yield rig


def settled(rig: Rig, count: int) -> dict[str, int]:
    """What became of `count` packets, once each has an outcome."""
    wait_until(lambda: sum(rig.outcomes("out").values()) == count, f"{count} packets have an outcome")
    assert rig.worker.counters("out")[0] == count
    return rig.outcomes("out")


@IN_ALL_FAMILIES
@pytest.mark.parametrize("error", DIVIDED, ids=named(DIVIDED))
def test_a_message_that_is_refused_goes_one_by_one(family: int, error: int) -> None:
    """Whole, in order; EIO ends the use of messages, EINVAL makes them smaller, a path MTU is no reason for either."""
    sends = Sends(runs={0: error})
    with refusing(sends, family) as rig:
        for flow in (*FLOWS[family], FLOWS[family][0]):
            due = give(rig, flow, PAYLOAD)
            assert received(rig, COUNT) == due
        assert settled(rig, 3 * COUNT) == {"sent": 3 * COUNT}
        assert rig.worker.given_up() == ([] if error == errno.EMSGSIZE else [("udp_segment", error)])
        assert rig.events("out")["messages"] == (3 * COUNT if error == errno.EIO else COUNT + 2)
        assert len(sends.pieces) == (1 if error == errno.EIO else 3)


def test_messages_of_63_and_then_none() -> None:
    """EINVAL: 64 segments are all that older kernels take. If those are too many as well, each goes alone."""
    sends = Sends(runs={0: errno.EINVAL, 3: errno.EINVAL})
    with refusing(sends) as rig:
        for _ in range(3):
            due = give(rig, BULK4, text(12_700), 100)
            assert received(rig, 127) == due
        assert settled(rig, 381) == {"sent": 381}
        # 127 refused; 63, 63, and the last of 127 by itself; 63 refused, and no more messages.
        assert [pieces // 2 for pieces in sends.pieces] == [127, 63, 63, 63]
        assert rig.worker.given_up() == [("udp_segment", errno.EINVAL)]
        assert rig.events("out")["messages"] == 127 + 3 + 127


def test_use_begins_anew_with_the_next_start() -> None:
    with refusing(Sends(runs={0: errno.EIO})) as rig:
        give(rig, BULK4, PAYLOAD)
        received(rig, COUNT)
        wait_until(rig.worker.given_up, "it is told")
        rig.stop()
        rig.worker.use(vnet=True, uso=True, segment=True, busy_poll=0)
        assert rig.worker.given_up() == []
        rig.start()
        give(rig, BULK4, PAYLOAD)
        received(rig, COUNT)
        settled(rig, 2 * COUNT)
        assert rig.events("out")["messages"] == COUNT + 1


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL], ids=named([errno.EIO, errno.EINVAL]))
def test_a_peer_that_takes_nothing_is_no_reason_to_give_up(error: int) -> None:
    sends = Sends(runs={0: error}, singles={place: [errno.EPERM] for place in range(COUNT)})
    with refusing(sends) as rig:
        give(rig, BULK4, PAYLOAD)
        due = give(rig, BULK4, PAYLOAD)
        assert received(rig, COUNT) == due
        assert settled(rig, 2 * COUNT) == {"send_forbidden": COUNT, "sent": COUNT}
        assert rig.worker.given_up() == []
        assert rig.events("out")["messages"] == 1


def test_a_path_mtu_that_older_kernels_call_einval_is_no_reason_to_give_up() -> None:
    sends = Sends(runs={0: errno.EINVAL}, singles={0: [errno.EMSGSIZE]})
    with refusing(sends) as rig:
        due = give(rig, BULK4, PAYLOAD)
        assert received(rig, COUNT - 1) == due[1:]
        assert settled(rig, COUNT) == {"sent": COUNT - 1, "too_big": 1}
        assert rig.worker.given_up() == []


@IN_ALL_FAMILIES
@pytest.mark.parametrize("error", WHOLE, ids=named(WHOLE))
def test_what_is_said_of_a_message_holds_for_each_of_its_datagrams(family: int, error: int) -> None:
    """It is not tried again in parts, the next message is not concerned; a full buffer is waited for once before."""
    runs = {0: error, 1: error} if error == errno.EAGAIN else {0: error}
    with refusing(Sends(runs=runs), family) as rig:
        flow = FLOWS[family][0]
        give(rig, flow, PAYLOAD)
        settled(rig, COUNT)
        due = give(rig, flow, PAYLOAD)
        assert received(rig, COUNT) == due
        assert settled(rig, 2 * COUNT) == {WHOLE[error]: COUNT, "sent": COUNT}
        events = rig.events("out")
        assert events["messages"] == 1
        assert events["send_waits"] == (error == errno.EAGAIN)
        assert events["icmp_sent"] == (COUNT if WHOLE[error] == "underlay_unreachable" else 0)
        assert rig.worker.given_up() == []
        assert rig.worker.last_error() == error


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR], ids=named([errno.EAGAIN, errno.EINTR]))
@pytest.mark.parametrize("segment", [True, False], ids=["segment", "singly"])
def test_what_passes_is_tried_again(error: int, segment: bool) -> None:
    """A full buffer after a wait, an interrupted call at once."""
    sends = Sends(runs={0: error}, singles={5: [error]})
    with refusing(sends, segment=segment) as rig:
        if error == errno.EINTR and not segment:
            sends.passed = 5  # an interrupted sendmmsg has sent nothing
        due = give(rig, BULK4, PAYLOAD)
        assert received(rig, COUNT) == due
        assert settled(rig, COUNT) == {"sent": COUNT}
        assert rig.events("out")["send_waits"] == (error == errno.EAGAIN)
        assert rig.worker.given_up() == []


@AT
@pytest.mark.parametrize("error", OUTCOMES, ids=named(OUTCOMES))
def test_a_datagram_that_is_refused_takes_none_with_it(error: int, place: int) -> None:
    """At any place of a run that goes singly: those before it and after it are sent, in order, and it is counted."""
    said = [error, error] if error == errno.EAGAIN else [error]
    with refusing(Sends(singles={place: said}), segment=False) as rig:
        due = give(rig, BULK4, PAYLOAD)
        assert received(rig, COUNT - 1) == due[:place] + due[place + 1:]
        assert settled(rig, COUNT) == {"sent": COUNT - 1, OUTCOMES[error]: 1}
        assert rig.worker.last_error() == error
        events = rig.events("out")
        assert events["messages"] == COUNT - 1
        assert events["send_waits"] == (error == errno.EAGAIN)
        if OUTCOMES[error] == "underlay_unreachable":
            quoted = due[place]
            assert rig.take() == bytes(10) + icmp_error(quoted, packed("10.5.1.0"), 3, 0, 0)


@AT
@pytest.mark.parametrize("segment", [True, False], ids=["segment", "singly"])
def test_one_that_is_too_big_is_answered_with_what_fits(segment: bool, place: int) -> None:
    """DF: the sender learns a size below the packet's, and the others go."""
    sends = Sends(runs={0: errno.EMSGSIZE}, singles={place: [errno.EMSGSIZE]})
    with refusing(sends, segment=segment) as rig:
        due = give(rig, BULK4, PAYLOAD)
        assert received(rig, COUNT - 1) == due[:place] + due[place + 1:]
        assert settled(rig, COUNT) == {"sent": COUNT - 1, "too_big": 1}
        # The path carries it, says the kernel when asked: then any smaller size lets the sender try again.
        assert rig.take() == bytes(10) + icmp_error(due[place], packed("10.5.1.0"), 3, 4, len(due[place]) - 1)
        assert sends.fragmented == 0


FREE4, FREE6 = replace(UDP4, dont_fragment=False), UDP6


@AT
@pytest.mark.parametrize("flow", [FREE4, FREE6], ids=["udp4", "udp6"])
def test_one_that_may_be_fragmented_is(flow: Flow, place: int) -> None:
    """IPv4 without DF, or IPv6 that every link must carry, leaves in fragments of the underlay's."""
    sends = Sends(singles={place: [errno.EMSGSIZE]})
    with refusing(sends, flow.version, segment=False) as rig:
        due = give(rig, flow, PAYLOAD)
        # The one of sendmsg comes before the rest of sendmmsg, as ever in its place.
        assert received(rig, COUNT) == due
        assert settled(rig, COUNT) == {"sent": COUNT}
        assert rig.events("out")["outer_fragmented"] == 1
        assert sends.fragmented == 1


@pytest.mark.parametrize(("error", "outcome"), [(errno.EMSGSIZE, "too_big"), *OUTCOMES.items()],
                         ids=named([errno.EMSGSIZE, *OUTCOMES]))
def test_fragments_that_are_refused_are_counted(error: int, outcome: str) -> None:
    sends = Sends(singles={3: [errno.EMSGSIZE]}, others={0: error})
    with refusing(sends, segment=False) as rig:
        due = give(rig, FREE4, PAYLOAD)
        assert received(rig, COUNT - 1) == due[:3] + due[4:]
        assert settled(rig, COUNT) == {"sent": COUNT - 1, outcome: 1}
        assert rig.events("out")["outer_fragmented"] == 0
        give(rig, FREE4, PAYLOAD)
        assert len(received(rig, COUNT)) == COUNT, "and the socket forbids fragments again"


def test_ipv6_above_its_minimum_is_not_fragmented() -> None:
    sends = Sends(singles={0: [errno.EMSGSIZE]})
    with refusing(sends, 6, segment=False) as rig:
        due = give(rig, BULK6, text(2800), 1400)
        assert received(rig, 1) == due[1:]
        assert settled(rig, 2) == {"sent": 1, "too_big": 1}
        assert sends.fragmented == 0


@pytest.mark.parametrize("seed", range(6))
def test_refusals_at_random(seed: int) -> None:
    """Whatever is said wherever: what arrives is in order and once, and all that is missing is counted."""
    dice = random.Random(seed)
    errors = [*OUTCOMES, errno.EMSGSIZE]
    sends = Sends(runs={dice.randrange(30): dice.choice(errors) for _ in range(10)},
                  singles={dice.randrange(300): [dice.choice(errors) for _ in range(dice.randrange(1, 3))]
                           for _ in range(40)},
                  others={dice.randrange(4): dice.choice(errors) for _ in range(2)})
    with refusing(sends, segment=seed % 3 > 0) as rig:
        due: list[bytes] = []
        for _ in range(30):
            flow = replace(dice.choice((BULK4, UDP4, FREE4)), ident=len(due))
            due += give(rig, flow, text(dice.randrange(1, 12_000)), dice.choice((100, 1000)))
            settled(rig, len(due))
        outcomes = settled(rig, len(due))
        arrived = iter(received(rig, outcomes["sent"]))
        missing = list(due)
        for one in arrived:
            assert one in missing, "twice, or overtaken"
            del missing[:missing.index(one) + 1]
        assert rig.events("out")["messages"] <= outcomes["sent"]


# -- frames that the TUN refuses -----------------------------------------------------------------------------------

INTO = {"tcp": Flow(source="10.5.2.2", destination="10.5.1.2"),
        "udp": Flow(protocol="udp", source="10.5.2.2", destination="10.5.1.2")}


class Writes:
    """The kernel's answers to frames for the TUN: an errno by the number of the frame."""

    def __init__(self, errors: dict[int, int]) -> None:
        self.errors, self.frames = errors, 0

    def answers(self) -> Answers:
        return Answers(writev=self.writev)

    def writev(self, *_: int) -> int | None:
        self.frames += 1
        return -self.errors[self.frames - 1] if self.frames - 1 in self.errors else None


TUN = {errno.EIO: "tun_down", errno.EAGAIN: "tun_full", errno.ENOBUFS: "tun_full", errno.ENOMEM: "tun_full",
       errno.EINVAL: "tun_refused", errno.EBADFD: "tun_refused"}


@pytest.mark.parametrize("error", TUN, ids=named(TUN))
def test_a_packet_that_the_tun_refuses(error: int) -> None:
    made = [one for number in range(3) for one in replace(INTO["udp"], sport=number).segments(text(10), 10)]
    with queued(made, gro=True, vnet=True, answers=Writes({1: error}).answers()) as rig:
        assert [rig.take() for _ in range(2)] == [bytes(10) + hop(one) for one in (made[0], made[2])]
        rig.comes_to("in", {"delivered": 2, TUN[error]: 1})
        assert rig.events("in")["frames"] == 3


@pytest.mark.parametrize("protocol", INTO)
@pytest.mark.parametrize("error", TUN, ids=named(TUN))
def test_a_merged_frame_that_the_tun_refuses(error: int, protocol: str) -> None:
    """Refused for what it is, it goes packet by packet; for want of room or of a device, each of its packets counts."""
    made = INTO[protocol].segments(text(10_000), 1000)
    refused = TUN[error] == "tun_refused"
    with queued(made, gro=True, vnet=True, answers=Writes({0: error}).answers()) as rig:
        if refused:
            assert [rig.take() for _ in made] == [bytes(10) + hop(one) for one in made]
        rig.comes_to("in", {"delivered" if refused else TUN[error]: 10})
        assert rig.worker.given_up() == ([("uso", errno.EINVAL)] if refused and protocol == "udp" else [])


@pytest.mark.parametrize("protocol", INTO)
def test_udp_super_packets_that_are_refused_are_given_up_and_tcps_are_not(protocol: str) -> None:
    made = INTO[protocol].segments(text(3000), 1000)
    writes = Writes({0: errno.EINVAL})
    with queued([], gro=True, vnet=True, answers=writes.answers()) as rig:
        for turn in range(2):
            rig.peer.setsockopt(17, 103, len(made[0]))
            rig.send(b"".join(made))
            rig.wait_for("in", "delivered", 3 * (turn + 1))
        (vnet, frame, _), = coalesce([hop(one) for one in made], True)
        taken = [rig.take() for _ in range(3)]
        assert taken == [bytes(10) + hop(one) for one in made]
        if protocol == "tcp":
            assert rig.take() == vnet + frame
        else:
            assert [rig.take() for _ in range(3)] == taken
        assert rig.events("in")["frames"] == (5 if protocol == "tcp" else 7)


def test_a_write_that_is_interrupted_is_made_again() -> None:
    made = INTO["udp"].segments(text(10), 10)
    with queued(made, gro=True, vnet=True, answers=Writes({0: errno.EINTR}).answers()) as rig:
        assert rig.take() == bytes(10) + hop(made[0])
        rig.comes_to("in", {"delivered": 1})


def test_a_read_that_is_interrupted_is_made_again() -> None:
    left = [errno.EINTR, errno.EINTR]

    def read(fd: int, *_: int) -> int | None:
        return -left.pop() if fd == rig.tun.fileno() and left else None

    rig = Rig(answers={"out": Answers(read=read)})
    with rig:
        data = packets.packet(4, 1, 2)
        rig.give(data)
        assert rig.receive() == hop(data)
    assert not left


def test_the_answers_are_the_kernels_where_none_are_given() -> None:
    """This file's own tool: a call that it makes itself, in part, does what the loop would have done."""
    seen: list[tuple[int, int]] = []

    def watch(fd: int, vector: int, count: int, flags: int, *_: int) -> int:
        seen.append((count, Message(vector).pieces))
        return kernel("sendmmsg", fd, vector, min(count, 2), flags)

    rig = Rig(answers={"out": Answers(sendmmsg=watch)})
    rig.worker.use(vnet=True, uso=True, segment=False, busy_poll=0)
    with rig:
        due = give(rig, BULK4, text(5000))
        assert received(rig, 5) == due
    assert seen == [(5, 2), (3, 2), (1, 2)]
