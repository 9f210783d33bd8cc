"""ecn.pxd: RFC 6040's table on the way in, the inner mark outside on the way out, and packets of one mark in a run."""

import socket
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from flannel_udp._dataplane import SOURCE_CHECKS
from flannel_udp._probe import Node

from .packets import NAMES, packed
from .rig import RECEIVE_TOS, Rig
from .super_packets import BULK4, BULK6, UDP4, UDP6, Flow, text

NOT_ECT, ECT1, ECT0, CE = range(4)
# RFC 6040, 4.2, by (inner, outer); all others stay as they are.
CHANGED = {(ECT0, ECT1): ECT1, (ECT0, CE): CE, (ECT1, CE): CE}
FLOWS = {4: UDP4, 6: UDP6}
SUPER = {4: BULK4, 6: BULK6}


def node_of(family: int, *, ecn: bool = True) -> Node:
    network = ("10.5.0.0", 16, 24) if family == 4 else ("fd05::", 48, 64)
    node = Node(packed(network[0]), *network[1:], source_check=SOURCE_CHECKS["off"], ttl_step=0, ecn=ecn)
    node.set_subnet(packed("10.5.2.0" if family == 4 else "fd05:0:0:2::"), 1)
    return node


def packet(family: int, ecn: int, dscp: int = 0) -> bytes:
    return replace(FLOWS[family], tos=dscp << 2 | ecn).packet(b"payload")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize(("inner", "outer"), list(product(range(4), range(4))))
def test_the_table(family: int, dscp: int, inner: int, outer: int) -> None:
    """Whatever else the octet says stays; checksums are those that scapy would write."""
    outcome, _, after = node_of(family).into(packed("192.0.2.9" if family == 4 else "2001:db8::9"),
                                             packet(family, inner, dscp), outer)
    if (inner, outer) == (NOT_ECT, CE):
        assert (NAMES[outcome], after) == ("ce_lost", packet(family, inner, dscp))
    else:
        expected = packet(family, CHANGED.get((inner, outer), inner), dscp)
        assert (NAMES[outcome], after) == ("forward", expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), list(product(range(4), range(4))))
def test_a_backend_without_marks_does_not_look(family: int, inner: int, outer: int) -> None:
    data = packet(family, inner)
    outcome, _, after = node_of(family, ecn=False).into(packed("192.0.2.9" if family == 4 else "2001:db8::9"), data,
                                                        outer)
    assert (NAMES[outcome], after) == ("forward", data)


def take(rig: Rig, count: int) -> list[tuple[int, bytes]]:
    """So many datagrams as (mark of the outer header, payload)."""
    taken = []
    for _ in range(count):
        data, control, _, _ = rig.peer.recvmsg(1 << 16, 64)
        taken.append((control[0][2][0] & 3, data))
    return taken


def rig_of(family: int, *, segment: bool = True, gro: bool = True, ecn: bool = True) -> Rig:
    rig = Rig(family, ttl_step=0, ecn=ecn, gro=gro)
    rig.worker.use(vnet=True, uso=True, segment=segment, busy_poll=0)
    return rig


def give(rig: Rig, packets: Iterable[bytes]) -> None:
    for one in packets:
        rig.give(bytes(10) + one)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("segment", [True, False], ids=["runs", "singly"])
def test_out_the_outer_header_says_what_the_inner_says(family: int, segment: bool) -> None:
    marks = [0, 0, 2, 2, 2, 1, 3, 3, 0, 2, 0]
    with rig_of(family, segment=segment) as rig:
        give(rig, (packet(family, mark) for mark in marks))
        assert take(rig, len(marks)) == [(mark, packet(family, mark)) for mark in marks]
        rig.wait_for("out", "sent", len(marks))


@pytest.mark.parametrize("family", [4, 6])
def test_all_segments_carry_the_mark_and_those_of_two_marks_go_apart(family: int) -> None:
    with rig_of(family) as rig:
        due = []
        for mark in (2, 0, 3):
            flow: Flow = replace(SUPER[family], tos=mark)
            data, vnet = flow.super_packet(text(5000), 1000)
            rig.give(vnet.packed() + data)
            due += [(mark, one) for one in flow.segments(text(5000), 1000)]
        assert take(rig, 15) == due
        rig.wait_for("out", "sent", 15)
        assert rig.events("out")["messages"] == 3


@pytest.mark.parametrize("family", [4, 6])
def test_a_backend_without_marks_says_nothing(family: int) -> None:
    with rig_of(family, ecn=False) as rig:
        rig.peer.setsockopt(*RECEIVE_TOS[family], 1)
        give(rig, [packet(family, 2)])
        assert take(rig, 1) == [(0, packet(family, 2))]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "singles"])
def test_in_a_mark_of_the_underlay_reaches_the_inner_header(family: int, gro: bool) -> None:
    """And packets of two marks are not one frame: each message has its own."""
    tos = (socket.IPPROTO_IP, socket.IP_TOS) if family == 4 else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    ends = ("10.5.2.2", "10.5.1.2") if family == 4 else ("fd05:0:0:2::2", "fd05:0:0:1::2")
    flow = replace(FLOWS[family], source=ends[0], destination=ends[1], tos=ECT0)
    with rig_of(family, gro=gro) as rig:
        for mark, payload in ((NOT_ECT, b"a"), (CE, b"b"), (ECT0, b"c")):
            rig.peer.setsockopt(*tos, mark)
            rig.send(flow.packet(payload))
        rig.send(replace(flow, tos=NOT_ECT).packet(b"d"))
        rig.peer.setsockopt(*tos, CE)
        rig.send(replace(flow, tos=NOT_ECT).packet(b"lost"))
        for mark, payload in ((ECT0, b"a"), (CE, b"b"), (ECT0, b"c"), (NOT_ECT, b"d")):
            assert rig.take() == bytes(10) + replace(flow, tos=mark).packet(payload)
        rig.comes_to("in", {"delivered": 4, "ce_lost": 1})


def test_scapy_reads_the_same_bits() -> None:
    assert IP(packet(4, CE, 46)).tos == 46 << 2 | CE
    assert IPv6(packet(6, CE, 46)).tc == 46 << 2 | CE
