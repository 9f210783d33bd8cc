"""Order inside a flow, over the whole way in and the whole way out: mixtures of flows, protocols, sizes and messages.

What is read at the far end, super-packets divided by the probe's own room, must be what was sent: not only does no
packet overtake one of its flow, none overtakes any, and each is what it was.
"""

import socket
from dataclasses import dataclass, replace
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flannel_udp._probe import segment

from .packets import hop
from .rig import Rig
from .super_packets import Flow, text
from .test_receive import SO_RCVBUFFORCE, SO_SNDBUFFORCE, UDP_SEGMENT, queued

FAMILY = {4: ("10.5.2.2", "10.5.1.2"), 6: ("fd05:0:0:2::2", "fd05:0:0:1::2")}
SMALL = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Train:
    """Consecutive packets of one flow."""

    flow: int
    protocol: str
    count: int
    size: int
    tail: int
    whole: bool
    """Given to the TUN as one super-packet."""


trains = st.lists(st.builds(
    Train, flow=st.integers(0, 3), protocol=st.sampled_from(("tcp", "udp")), count=st.integers(1, 12),
    size=st.sampled_from((40, 41, 300, 1400)), tail=st.integers(1, 40),
    whole=st.booleans()), min_size=1, max_size=12)


def packets_of(chosen: list[Train], version: int) -> list[bytes]:
    """The packets of trains: sequence numbers and IDs go on from train to train of a flow."""
    made: list[bytes] = []
    next_up: dict[tuple[int, str], tuple[int, int]] = {}
    source, destination = FAMILY[version]
    for number, train in enumerate(chosen):
        sequence, ident = next_up.get((train.flow, train.protocol), (1000, 1))
        payload = text(train.size * (train.count - 1) + train.tail, number)
        flow = Flow(version, train.protocol, source=source, destination=destination, sport=4000 + train.flow,
                    sequence=sequence, ident=ident, dont_fragment=train.flow % 2 == 0)
        parts = flow.segments(payload, train.size)
        next_up[train.flow, train.protocol] = (sequence + len(payload), ident + len(parts))
        made += parts
    return made


def divided(frame: bytes) -> list[bytes]:
    """The packets in a frame of the TUN."""
    parts = segment(frame[10:], frame[:10])
    assert isinstance(parts, list)
    return parts


@pytest.mark.parametrize("gro", [True, False], ids=["gro", "singles"])
@pytest.mark.parametrize("version", [4, 6])
@SMALL
@given(chosen=trains)
def test_every_flow_comes_in_as_it_was_sent(version: int, gro: bool, chosen: list[Train]) -> None:
    due = packets_of(chosen, version)

    def send(rig: Rig) -> None:
        for size, run in groupby(due, key=len):
            several = list(run)
            for at in range(0, len(several), 40):
                rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
                rig.send(b"".join(several[at:at + 40]))

    with queued([], gro=gro, vnet=True, family=version, prepare=send) as rig:
        taken: list[bytes] = []
        while len(taken) < len(due):
            taken += divided(rig.take())
        rig.wait_for("in", "delivered", len(due))
    assert [identified(one) for one in taken] == [identified(hop(one)) for one in due]


def identified(data: bytes) -> bytes:
    """A packet without what a merge may count anew: identification, where DF takes its meaning, and header checksum."""
    if data[0] >> 4 == 6 or not data[6] & 0x40:
        return data
    return data[:4] + b"id" + data[6:10] + b"ck" + data[12:]


@pytest.mark.parametrize("messages", [True, False], ids=["segment", "singly"])
@pytest.mark.parametrize("version", [4, 6])
@SMALL
@given(chosen=trains)
def test_every_flow_goes_out_as_it_came(version: int, messages: bool, chosen: list[Train]) -> None:
    destination, source = FAMILY[version]
    rig = Rig(version)
    rig.peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    rig.kernel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
    rig.worker.use(vnet=True, uso=True, segment=messages, busy_poll=0)
    due: list[bytes] = []
    for number, train in enumerate(chosen):
        flow = Flow(version, train.protocol, source=source, destination=destination, sport=4000 + train.flow)
        payload = text(train.size * (train.count - 1) + train.tail, number)
        if train.whole and train.count > 1:
            data, vnet = flow.super_packet(payload, train.size)
            rig.give(vnet.packed() + data)
            due += flow.segments(payload, train.size)
        else:
            singles = [replace(flow, sequence=at).packet(text(train.size, at)) for at in range(train.count)]
            for one in singles:
                rig.give(bytes(10) + one)
            due += singles
    with rig:
        assert [rig.receive() for _ in due] == [hop(one) for one in due]
        rig.wait_for("out", "sent", len(due))
