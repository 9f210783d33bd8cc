"""unfinished.pxd: what a peer's kernel left undone is seen, and done or handed on with the word that it is not.

A super-packet here is what a kernel VXLAN peer sends over a veth (tests/netns/test_vxlan.py holds that up to a real
kernel). The oracle is scapy: finished packets and segments made by it.
"""

import errno
import socket
from dataclasses import replace

import pytest

from flannel_udp._probe import finish, segment

from ..conftest import wait_until
from .answers import Answers
from .packets import ipv4, ipv6
from .rig import PEER, Rig
from .super_packets import ALL, BULK4, BULK6, ECN, NAMES, TIMESTAMPS, UDP4, UDP6, UDP_OFFSET, Flow, VnetHdr, text

UDP_SEGMENT = 103  # linux/udp.h
MTU = 1450
VARIED = [*ALL, replace(BULK4, options=TIMESTAMPS), replace(BULK6, options=TIMESTAMPS), replace(UDP6, extension=True),
          replace(BULK6, extension=True), replace(BULK4, ip_options=b"\x01" * 8), replace(UDP4, dont_fragment=False)]
COAT = b"a coat of twenty-two b"


def partial(flow: Flow, size: int) -> bytes:
    """A packet whose checksum is unfinished."""
    return flow.super_packet(text(size), size or 1)[0]


@pytest.mark.parametrize("flow", VARIED, ids=lambda flow: str(flow)[5:40])
@pytest.mark.parametrize("size", [0, 1, 2, 99, 1200])
def test_a_plain_packet_is_finished(flow: Flow, size: int) -> None:
    assert finish(partial(flow, size), 0, MTU) == (flow.packet(text(size)), 1, bytes(10))


@pytest.mark.parametrize("flow", VARIED, ids=lambda flow: str(flow)[5:40])
@pytest.mark.parametrize("size", [0, 99, 1200, 9000, 60_000])
def test_what_is_finished_stays(flow: Flow, size: int) -> None:
    data = flow.packet(text(size))
    assert finish(data, 0, MTU) == (data, 1, bytes(10))
    assert finish(data, 100, MTU) == (data, 1, bytes(10))


@pytest.mark.parametrize("flow", [flow for flow in VARIED if flow.protocol == "udp"], ids=lambda flow: str(flow)[5:40])
@pytest.mark.parametrize(("total", "size"), [(1000, 500), (1001, 500), (501, 500), (2, 1), (60_000, 1400), (128, 1)])
def test_a_udp_super_packet_keeps_its_size(flow: Flow, total: int, size: int) -> None:
    """From two datagrams upwards, however small: the TUN is told what the sender's kernel was told."""
    data, vnet = flow.super_packet(text(total), size)
    found, count, header = finish(data, size, MTU)
    assert (found, VnetHdr.parsed(header)) == (data, vnet)
    parts = segment(found, header)
    assert parts == flow.segments(text(total), size)
    assert count == len(parts)


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
@pytest.mark.parametrize("size", [0, 3000, 3001])
def test_a_large_datagram_is_no_super_packet(flow: Flow, size: int) -> None:
    """Of a peer whose MTU is larger; nothing, or not less than all, is its size."""
    assert finish(partial(flow, 3000), size, MTU) == (flow.packet(text(3000)), 1, bytes(10))


@pytest.mark.parametrize("flow", [flow for flow in VARIED if flow.protocol == "tcp"], ids=lambda flow: str(flow)[5:40])
@pytest.mark.parametrize("total", [1451, 2800, 60_000])
@pytest.mark.parametrize("mtu", [0, 1280, MTU])
def test_a_tcp_super_packet_is_cut_for_any_link(flow: Flow, total: int, mtu: int) -> None:
    """IPv6's smallest MTU: whatever the kernel routes the segments to, they fit; the stream is the same."""
    data, _ = flow.super_packet(text(total), 1000)
    found, count, header = finish(data, 0, mtu)
    assert found == data
    parts = segment(found, header)
    assert parts == flow.segments(text(total), 1280 - flow.header(data))
    assert count == len(parts)
    assert max(map(len, parts)) == 1280


@pytest.mark.parametrize("flow", [BULK4, BULK6], ids=["tcp4", "tcp6"])
def test_a_tcp_packet_that_fits_is_none(flow: Flow) -> None:
    """Two short segments, or one of a peer with our MTU: a stream has no borders, so it may stay one packet."""
    for size in (1000, MTU - flow.header(partial(flow, 1))):
        assert finish(partial(flow, size), 0, MTU) == (flow.packet(text(size)), 1, bytes(10))
    assert finish(partial(flow, MTU), 0, 9000)[1] == 1


def test_cwr_is_told() -> None:
    data, _ = replace(BULK4, flags="CA").super_packet(text(5000), 1000)
    assert VnetHdr.parsed(finish(data, 0, MTU)[2]).gso_type == 1 | ECN


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_no_checksum_is_none(flow: Flow) -> None:
    data = bytearray(flow.packet(text(100)))
    data[flow.transport() + UDP_OFFSET:flow.transport() + UDP_OFFSET + 2] = b"\0\0"
    assert finish(bytes(data), 50, MTU) == (bytes(data), 1, bytes(10))


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_a_wrong_checksum_stays_wrong(flow: Flow) -> None:
    """Only the unfinished sum itself is finished; what a flipped bit makes of it is not laundered."""
    data = partial(flow, 100)
    field = flow.transport() + (UDP_OFFSET if flow.protocol == "udp" else 16)
    for bit in range(16):
        changed = bytearray(data)
        changed[field + bit // 8] ^= 1 << bit % 8
        assert finish(bytes(changed), 0, MTU) == (bytes(changed), 1, bytes(10))


def test_other_protocols_and_fragments_stay() -> None:
    """Even if the bytes where a checksum would be say what an unfinished one says."""
    for fragment in (0x2000, 0x0001):
        part = bytearray(partial(UDP4, 100))
        part[6:8] = fragment.to_bytes(2, "big")
        assert finish(bytes(part), 50, MTU) == (bytes(part), 1, bytes(10))
    for data in (ipv4(protocol=1), ipv4(protocol=132), ipv4(payload=b""), ipv4(payload=bytes(7)), ipv6(payload=b""),
                 ipv6(next_header=44, payload=bytes(64)), ipv6(next_header=0, payload=bytes([17, 9]).ljust(20))):
        assert finish(data, 3, MTU) == (data, 1, bytes(10))


def test_a_tcp_header_that_is_none() -> None:
    """Longer than the packet, or too short: the checksum is finished, and nothing divided."""
    for words in (0, 4, 15):
        data = bytearray(partial(BULK4, 5000))
        data[32] = words << 4
        if words == 15:
            del data[70:]
            data[2:4] = len(data).to_bytes(2, "big")
            data[36:38] = BULK4.pseudo(bytes(data)).to_bytes(2, "big")
        assert finish(bytes(data), 0, MTU)[1] == 1


INTO = {4: {"source": "10.5.2.2", "destination": "10.5.1.2"},
        6: {"source": "fd05:0:0:2::2", "destination": "fd05:0:0:1::2"}}


def into(flow: Flow) -> Flow:
    return replace(flow, **INTO[flow.version])  # type: ignore[arg-type]


def receiving(family: int, *, vnet: bool, uso: bool) -> Rig:
    rig = Rig(family, coat=COAT, ttl_step=0)
    rig.worker.use(vnet=vnet, uso=uso, segment=True, busy_poll=0, mtu=MTU)
    return rig


@pytest.mark.parametrize("flow", [BULK4, BULK6], ids=["tcp4", "tcp6"])
@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "bare"])
def test_a_tcp_super_packet_into_the_tun(flow: Flow, vnet: bool) -> None:
    """As it is, or divided where the TUN takes plain packets only; the law counts its segments either way."""
    flow = into(flow)
    data, _ = flow.super_packet(text(30_000), 1000)
    due = flow.segments(text(30_000), 1280 - flow.header(data))
    with receiving(flow.version, vnet=vnet, uso=vnet) as rig:
        rig.send(COAT + data)
        if vnet:
            frame = rig.take()
            assert segment(frame[10:], frame[:10]) == due
            assert frame[10:] == data
        else:
            assert [rig.take() for _ in due] == due
        rig.comes_to("in", {"delivered": len(due)})
        wait_until(lambda: rig.events("in")["bytes"] == sum(map(len, due)), "they are counted")
        assert rig.worker.counters("in")[0] == len(due)
        assert rig.worker.peer_count("in", PEER, 1)[:2] == (len(due), sum(map(len, due)))


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
@pytest.mark.parametrize(("vnet", "uso"), [(True, True), (True, False), (False, False)], ids=["uso", "tso", "bare"])
@pytest.mark.parametrize(("total", "size"), [(1000, 500), (1001, 500), (2, 1), (60_000, 1400), (50, 1)])
def test_a_udp_super_packet_into_the_tun(flow: Flow, vnet: bool, uso: bool, total: int, size: int) -> None:
    """The socket names a size for one datagram: the inner one's. Cutting the message so by its sender does the same."""
    flow = into(flow)
    data, _ = flow.super_packet(text(total), size)
    due = flow.segments(text(total), size)
    with receiving(flow.version, vnet=vnet, uso=uso) as rig:
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        rig.send(COAT + data)
        if uso:
            frame = rig.take()
            assert frame[10:] == data
            assert segment(frame[10:], frame[:10]) == due
        else:
            assert [rig.take()[10 if vnet else 0:] for _ in due] == due
        rig.comes_to("in", {"delivered": len(due)})


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_several_datagrams_in_a_message_are_several(flow: Flow) -> None:
    """The first one's length says so, whatever the last one's is."""
    flow = into(flow)
    for total in (5000, 5001, 4500):
        due = flow.segments(text(total), 1000)
        with receiving(flow.version, vnet=False, uso=False) as rig:
            rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(COAT + due[0]))
            rig.send(b"".join(COAT + one for one in due))
            assert [rig.take() for _ in due] == due
            rig.wait_for("in", "delivered", len(due))
            assert rig.events("in")["messages"] == 1


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_a_super_packet_that_the_tun_refuses_is_divided(flow: Flow) -> None:
    """The kernel says EINVAL to the frame of two pieces and takes those of three; nothing is given up for it."""
    flow = into(flow)
    data, _ = flow.super_packet(text(5000), 1000)
    size = 1000 if flow.protocol == "udp" else 1280 - flow.header(data)
    due = flow.segments(text(5000), size)
    answers = Answers(writev=lambda _fd, _pieces, count, *_: -errno.EINVAL if count == 2 else None)
    rig = Rig(flow.version, coat=COAT, ttl_step=0, answers={"in": answers})
    rig.worker.use(vnet=True, uso=True, segment=True, busy_poll=0, mtu=MTU)
    with rig:
        rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000 if flow.protocol == "udp" else 0)
        rig.send(COAT + data)
        assert [rig.take() for _ in due] == [bytes(10) + one for one in due]
        rig.comes_to("in", {"delivered": len(due)})
        assert rig.worker.given_up() == []


def test_order_is_kept_around_a_super_packet() -> None:
    flow = into(UDP4)
    data, _ = flow.super_packet(text(3000), 1000)
    with receiving(4, vnet=True, uso=True) as rig:
        for _ in range(3):
            rig.send(COAT + flow.packet(b"before"))
            rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            rig.send(COAT + data)
            rig.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
            rig.send(COAT + flow.packet(b"after!"))
        taken = b""
        while taken.count(b"after!") < 3:
            taken += rig.take()[38:]
        assert taken == (b"before" + text(3000) + b"after!") * 3


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "bare"])
def test_unfinished_packets_are_finished_and_merged(flow: Flow, vnet: bool) -> None:
    flow = into(flow)
    with receiving(flow.version, vnet=vnet, uso=vnet) as rig:
        for place in range(3):
            one = replace(flow, sequence=1000 + 100 * place, ident=place)
            rig.send(COAT + partial(one, 100))
        taken: list[bytes] = []
        while len(taken) < 3:
            frame = rig.take()
            parts = segment(frame[10:], frame[:10]) if vnet else [frame]
            assert isinstance(parts, list)
            taken += parts
        assert [one[-100:] for one in taken] == [text(100)] * 3
        assert taken[0] == replace(flow, ident=0).packet(text(100))


def test_without_a_coat_nothing_is_touched() -> None:
    """A peer of the udp backend is a program, which finishes what it sends."""
    flow = into(UDP4)
    with Rig(4, ttl_step=0) as rig:
        rig.send(partial(flow, 100))
        assert rig.take() == partial(flow, 100)
