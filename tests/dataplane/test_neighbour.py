"""neighbour.pxd and the loops on a TAP: questions are answered from the table, frames keep their headers, none floods.

The kernel's side of the TAP is a socket; scapy writes and reads what a kernel would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from flannel_udp._dataplane import Builder, Worker
from flannel_udp._probe import segment

from .packets import packed
from .rig import Rig
from .super_packets import BULK4, BULK6, UDP4, UDP6, Flow, VnetHdr, text
from .test_coat import OTHER, OURS, THEIRS, expected

NO_VNET = bytes(10)
LINK = 14
FLOWS = {4: (BULK4, UDP4), 6: (BULK6, UDP6)}
INTO = {4: {"source": "10.5.2.2", "destination": "10.5.1.2"},
        6: {"source": "fd05:0:0:2::2", "destination": "fd05:0:0:1::2"}}
ALLNODES = "33:33:00:00:00:01"
HEAD = {4: bytes(Ether(dst=OURS, src=THEIRS, type=0x0800)), 6: bytes(Ether(dst=OURS, src=THEIRS, type=0x86DD))}


@contextmanager
def tap(family: int, *, vnet: bool = True) -> Iterator[Rig]:
    """A running Rig on a TAP. The peer's coat is to it from us."""
    mine = expected(family)
    to_peer = mine[:8] + bytes.fromhex(THEIRS.replace(":", "")) + mine[8:14] + mine[20:]
    rig = Rig(family, coat=to_peer, expected=mine, ttl_step=0)
    rig.worker.use(vnet=vnet, uso=vnet, segment=True, busy_poll=0, mtu=1450, tap=True)
    with rig:
        yield rig


def coat_in(family: int) -> bytes:
    return expected(family)[:8] + HEAD[family]


def ask(rig: Rig, frame: Any) -> None:  # noqa: ANN401 - scapy has no types
    rig.give(NO_VNET + bytes(frame))


def arp(target: str, **fields: Any) -> Any:  # noqa: ANN401
    wanted = {"hwsrc": OURS, "psrc": "10.5.1.0", "pdst": target} | fields
    return Ether(dst="ff:ff:ff:ff:ff:ff", src=OURS) / ARP(op=fields.get("op", 1), **{
        key: value for key, value in wanted.items() if key != "op"})


def solicitation(target: str, source: str = "fd05:0:0:1::") -> Any:  # noqa: ANN401
    return (Ether(dst="33:33:ff:00:00:09", src=OURS) / IPv6(src=source, dst="ff02::1:ff00:9", hlim=255)
            / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=OURS))


def test_arp_is_answered_from_the_leases() -> None:
    with tap(4) as rig:
        ask(rig, arp("10.5.2.9"))
        frame = Ether(rig.take()[10:])
        assert (frame.dst, frame.src) == (OURS, THEIRS)
        said = frame[ARP]
        assert (said.op, said.hwsrc, said.psrc, said.hwdst, said.pdst) == (2, THEIRS, "10.5.2.9", OURS, "10.5.1.0")
        rig.comes_to("out", {"neighbour_told": 1})


def test_neighbour_discovery_is_answered_from_the_leases() -> None:
    with tap(6) as rig:
        ask(rig, solicitation("fd05:0:0:2::9"))
        raw = rig.take()[10:]
        frame = Ether(raw)
        said = frame[ICMPv6ND_NA]
        assert (frame.dst, frame.src) == (OURS, THEIRS)
        assert (frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == ("fd05:0:0:2::9", "fd05:0:0:1::", 255)
        assert (said.tgt, said.R, said.S, said.O) == ("fd05:0:0:2::9", 0, 1, 1)
        assert frame[ICMPv6NDOptDstLLAddr].lladdr == THEIRS
        again = frame.copy()
        del again[ICMPv6ND_NA].cksum
        assert bytes(again) == raw
        rig.comes_to("out", {"neighbour_told": 1})


@pytest.mark.parametrize("question", [
    arp("10.5.1.9"), arp("10.5.9.9"), arp("192.0.2.1"), arp("10.5.2.9", op=2), arp("10.5.2.9", psrc="0.0.0.0"),
    arp("10.5.2.9", hwtype=6), arp("10.5.2.9", ptype=0x86DD), arp("10.5.2.9", hwlen=8),
    Ether(type=0x0806) / Raw(b"short")], ids=str)
def test_other_questions_are_not_answered(question: Any) -> None:  # noqa: ANN401
    """Of ours, of nobody's, of what is no request, of whether an address is free."""
    with tap(4) as rig:
        ask(rig, question)
        rig.comes_to("out", {"neighbour_unknown": 1})
        ask(rig, arp("10.5.2.9"))
        assert Ether(rig.take()[10:])[ARP].psrc == "10.5.2.9"


@pytest.mark.parametrize(("question", "outcome"), [
    (solicitation("fd05:0:0:9::1"), "neighbour_unknown"), (solicitation("fd05:0:0:1::1"), "neighbour_unknown"),
    (solicitation("fd05:0:0:2::1", "::"), "out_of_network"), (arp("10.5.2.9"), "neighbour_unknown")], ids=str)
def test_other_discoveries_are_not_answered(question: Any, outcome: str) -> None:  # noqa: ANN401
    with tap(6) as rig:
        ask(rig, question)
        rig.comes_to("out", {outcome: 1})


def test_a_discovery_that_was_routed_is_a_packet() -> None:
    """A pod's to a pod of a peer: the kernel took a hop from it, and so it is not asked of this link."""
    asked = solicitation("fd05:0:0:2::9", "fd05:0:0:1::5")
    asked[IPv6].dst, asked[IPv6].hlim = "fd05:0:0:2::9", 254
    with tap(6) as rig:
        ask(rig, asked)
        assert rig.receive()[22:] == bytes(asked[IPv6])
        rig.comes_to("out", {"sent": 1})


@pytest.mark.parametrize("family", [4, 6])
def test_no_frame_of_another_kind_leaves(family: int) -> None:
    other = (UDP6 if family == 4 else UDP4).packet(b"")
    with tap(family) as rig:
        for frame in (Ether(dst=THEIRS, src=OURS, type=0x88CC) / Raw(bytes(60)),
                      Ether(dst=THEIRS, src=OURS, type=0x86DD if family == 4 else 0x0800) / Raw(other)):
            ask(rig, frame)
        rig.comes_to("out", {"other_ethertype": 2})


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mac", [THEIRS, OTHER])
def test_out_the_coat_is_the_peers_whatever_the_kernel_believes(family: int, mac: str) -> None:
    """A neighbour entry may be older than the lease."""
    data = FLOWS[family][1].packet(b"payload")
    with tap(family) as rig:
        ask(rig, Ether(dst=mac, src=OURS) / (Ether(HEAD[family] + data).payload))
        datagram = rig.receive()
        assert datagram[22:] == data
        assert (datagram[8:14].hex(":"), datagram[14:20].hex(":")) == (THEIRS, OURS)
        rig.wait_for("out", "sent")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", [0, 1], ids=["tcp", "udp"])
def test_out_super_packets(family: int, place: int) -> None:
    """Offsets count from the Ethernet header on."""
    flow = FLOWS[family][place]
    data, vnet = flow.super_packet(text(40_500), 1000)
    vnet = replace(vnet, csum_start=vnet.csum_start + LINK, hdr_len=vnet.hdr_len + LINK)
    with tap(family) as rig:
        rig.give(vnet.packed() + HEAD[family] + data)
        assert [rig.receive()[22:] for _ in range(41)] == flow.segments(text(40_500), 1000)
        plain, one = flow.super_packet(text(100), 1000)
        rig.give(replace(one, gso_type=0, gso_size=0, csum_start=one.csum_start + LINK).packed() + HEAD[family] + plain)
        assert rig.receive()[22:] == flow.packet(text(100))


def into(flow: Flow) -> Flow:
    return replace(flow, **INTO[flow.version])  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "bare"])
def test_in_a_frame_has_the_header_that_it_came_with(family: int, vnet: bool) -> None:
    data = into(FLOWS[family][1]).packet(b"payload")
    with tap(family, vnet=vnet) as rig:
        rig.send(coat_in(family) + data)
        assert rig.take() == (NO_VNET if vnet else b"") + HEAD[family] + data
        rig.comes_to("in", {"delivered": 1})
        assert rig.worker.peer_count("in", 3, 1)[1] == len(data)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", [0, 1], ids=["tcp", "udp"])
def test_in_merged_and_whole_super_packets(family: int, place: int) -> None:
    """The merged frame's offsets count from its Ethernet header on; its segments are what came."""
    flow = into(FLOWS[family][place])
    due = flow.segments(text(5000), 1000)
    super_packet, _ = flow.super_packet(text(5000), 1000)
    with tap(family) as rig:
        for one in due:
            rig.send(coat_in(family) + one)
        taken: list[bytes] = []
        while len(taken) < len(due):
            taken += divided(rig.take(), family)
        assert [one[flow.header(one):] for one in taken] == [one[flow.header(one):] for one in due]
        if place == 0:
            rig.send(coat_in(family) + super_packet)
            assert b"".join(one[flow.header(one):] for one in divided(rig.take(), family)) == text(5000)


def divided(frame: bytes, family: int) -> list[bytes]:
    vnet = VnetHdr.parsed(frame[:10])
    assert frame[10:10 + LINK] == HEAD[family]
    if not vnet.flags:
        return [frame[10 + LINK:]]
    parts = segment(frame[10 + LINK:], vnet.but(csum_start=vnet.csum_start - LINK))
    assert isinstance(parts, list)
    return parts


@pytest.mark.parametrize("family", [4, 6])
def test_errors_are_frames_to_us(family: int) -> None:
    flow = replace(FLOWS[family][1], destination="10.5.9.9" if family == 4 else "fd05:0:0:9::9")
    with tap(family) as rig:
        rig.give(NO_VNET + HEAD[family] + flow.packet(b"lost"))
        frame = rig.take()[10:]
        assert frame[:6].hex(":") == OURS
        assert frame[12:14] == HEAD[family][12:14]
        assert frame.endswith(b"lost")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "bare"])
def test_what_is_shorter_than_a_header(family: int, vnet: bool) -> None:
    with tap(family, vnet=vnet) as rig:
        head = NO_VNET if vnet else b""
        for size in (1, 13, 14, 15, 33):
            rig.give(head + HEAD[family][:size].ljust(size, b"\x45" if family == 4 else b"\x60"))
        rig.wait_for("out", "truncated", 2)
        rig.give(head + HEAD[family] + FLOWS[family][1].packet(b"x"))
        assert rig.receive()[22:] == FLOWS[family][1].packet(b"x")


def test_a_tap_needs_macs() -> None:
    worker = Worker(Builder(packed("10.5.0.0"), 16, 24), coat_length=0, ttl_step=1, overhead=28, source_check=0)
    with pytest.raises(ValueError, match="MAC addresses"):
        worker.use(vnet=False, uso=False, segment=False, busy_poll=0, tap=True)
