"""coalesce.pxd: what the kernel's GRO would merge is merged, nothing else; order and bytes survive, wrong sums too."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._probe import coalesce, segment

from .packets import ICMP, hop, ipv4, ipv6, naive_checksum
from .super_packets import (
    ALL,
    BULK4,
    BULK6,
    NAMES,
    NEEDS_CSUM,
    TCP_OFFSET,
    TCPV4,
    TCPV6,
    TIMESTAMPS,
    UDP4,
    UDP6,
    UDP_L4,
    UDP_OFFSET,
    Flow,
    VnetHdr,
    text,
)

SIZE = 1000
EVERY = pytest.mark.parametrize("flow", ALL, ids=NAMES)


def train(flow: Flow, count: int = 3, size: int = SIZE) -> list[bytes]:
    """Packets that follow one another in a flow."""
    return flow.segments(text(count * size), size)


def counts(packets: list[bytes], uso: bool = True) -> list[int]:
    """How many packets each frame holds; what is alone must be verbatim, and all must come back by merge_undo()."""
    frames = coalesce(packets, uso)
    at = 0
    for vnet, frame, count in frames:
        if count == 1:
            assert (vnet, frame) == (bytes(10), packets[at])
        at += count
    undone = coalesce(packets, uso, undo=True)
    assert [one for frame in undone for one in frame] == packets
    assert [len(frame) for frame in undone] == [count for _, _, count in frames]
    return [count for _, _, count in frames]


def changed(packet: bytes, at: int, value: int) -> bytes:
    data = bytearray(packet)
    data[at] = value
    return bytes(data)


def summed(flow: Flow, packet: bytes) -> bytes:
    """The packet with the checksum that it ought to have, whatever else its transport header says."""
    at = flow.transport() + (UDP_OFFSET if flow.protocol == "udp" else TCP_OFFSET)
    bare = packet[:at] + b"\0\0" + packet[at + 2:]
    total = naive_checksum(flow.pseudo(bare).to_bytes(2, "big") + bare[flow.transport():])
    return packet[:at] + total + packet[at + 2:]


@EVERY
@pytest.mark.parametrize("length", [2000, 2001, 2999, 3000, 64000])
def test_a_merged_frame_is_what_was_divided(flow: Flow, length: int) -> None:
    payload = text(length)
    (vnet, frame, count), = coalesce(flow.segments(payload, SIZE), True)
    assert (frame, VnetHdr.parsed(vnet)) == flow.super_packet(payload, SIZE)
    assert count == -(-length // SIZE)


@pytest.mark.parametrize(("flow", "kind", "offset"), [
    (BULK4, TCPV4, TCP_OFFSET), (BULK6, TCPV6, TCP_OFFSET), (UDP4, UDP_L4, UDP_OFFSET), (UDP6, UDP_L4, UDP_OFFSET)])
def test_the_vnet_hdr(flow: Flow, kind: int, offset: int) -> None:
    (vnet, frame, _), = coalesce(train(flow), True)
    header = len(frame) - 3 * SIZE
    assert VnetHdr.parsed(vnet) == VnetHdr(NEEDS_CSUM, kind, header, SIZE, flow.transport(), offset)


@EVERY
def test_a_shorter_one_is_the_last(flow: Flow) -> None:
    packets = flow.segments(text(2500), SIZE)
    after = replace(flow, ident=flow.ident + 3, sequence=flow.sequence + 2500).segments(text(2000), SIZE)
    assert counts(packets + after) == [3, 2]


@EVERY
def test_a_longer_one_begins_anew(flow: Flow) -> None:
    first = flow.packet(text(500))
    after = replace(flow, ident=flow.ident + 1, sequence=flow.sequence + 500).segments(text(2000), SIZE)
    assert counts([first, *after]) == [1, 2]


@EVERY
def test_at_most_64_packets_and_65535_bytes(flow: Flow) -> None:
    assert counts(train(flow, 130, 100)) == [64, 64, 2]
    header = len(flow.packet(b""))
    many = counts(train(flow, 50, 1460))
    assert many == [(65535 - header) // 1460, 50 - (65535 - header) // 1460]


def test_datagrams_stay_apart_without_uso() -> None:
    assert counts(train(UDP4), uso=False) == [1, 1, 1]
    assert counts(train(BULK4), uso=False) == [3]


def test_psh_ends_a_frame_and_is_the_frames() -> None:
    one, two, three = train(BULK4)
    pushed = replace(BULK4, ident=BULK4.ident + 1, sequence=2000, flags="PA").packet(text(3 * SIZE)[SIZE:2 * SIZE])
    (_, frame, count), (_, _, alone) = coalesce([one, pushed, three], True)
    assert (count, alone, frame[33]) == (2, 1, 0x18)
    assert counts([one, pushed, three]) == [2, 1]
    assert counts([replace(BULK4, flags="PA").packet(text(SIZE)), two, three]) == [1, 2]


# One field of the second packet of three changed; the third continues the first, and so nothing but itself.
OTHER4 = [
    {"tos": 1}, {"tos": 0x10}, {"tos": 3}, {"ttl": 63}, {"dont_fragment": False}, {"sport": 1}, {"dport": 1},
    {"source": "10.5.1.3"}, {"destination": "10.5.2.3"}, {"ip_options": b"\x94\x04\0\0"},
]
OTHER6 = [{"tos": 1}, {"tos": 0x10}, {"ttl": 63}, {"label": 1}, {"sport": 1}, {"dport": 1}, {"source": "fd05::3"},
          {"destination": "fd05:0:0:2::3"}, {"extension": True}]
OTHER_TCP = [{"acknowledgment": 78}, {"window": 8193}, {"urgent": 3}, {"options": TIMESTAMPS}, {"sequence": 1999},
             {"sequence": 2001}, *({"flags": flags} for flags in ("SA", "FA", "RA", "UA", "CA", "EA", "", "FPA", "NA"))]


def second_changed(flow: Flow, change: dict[str, object]) -> list[bytes]:
    one, _, three = train(flow)
    ordinary = {"ident": flow.ident + 1, "sequence": flow.sequence + SIZE}
    return [one, replace(flow, **(ordinary | change)).packet(text(3 * SIZE)[SIZE:2 * SIZE]), three]  # type: ignore[arg-type]


@pytest.mark.parametrize(("flow", "change"), [
    *((flow, change) for flow in (BULK4, UDP4) for change in OTHER4),
    *((flow, change) for flow in (BULK6, UDP6) for change in OTHER6),
    *((flow, change) for flow in (BULK4, BULK6) for change in OTHER_TCP),
    *((flow, {"protocol": other}) for flow, other in ((BULK4, "udp"), (UDP4, "tcp"))),
], ids=str)
def test_one_field_changed_is_not_merged(flow: Flow, change: dict[str, object]) -> None:
    assert counts(second_changed(flow, {})) == [3]
    assert counts(second_changed(flow, change)) == [1, 1, 1]


@pytest.mark.parametrize("change", [{"options": (("NOP", None), ("NOP", None), ("Timestamp", (1, 2)))}])
def test_options_must_be_the_same(change: dict[str, object]) -> None:
    flow = replace(BULK4, options=TIMESTAMPS)
    assert counts(train(flow)) == [3]
    assert counts(second_changed(flow, change)) == [1, 1, 1]


def test_ece_alike_is_merged() -> None:
    assert counts(train(replace(BULK4, flags="EA"))) == [3]


@pytest.mark.parametrize("flags", ["SA", "FA", "RA", "UA", "CA", "S", "F", "", "P"])
def test_flags_that_never_merge(flags: str) -> None:
    assert counts([replace(BULK4, flags=flags, ident=i, sequence=1000 + i * SIZE).packet(text(SIZE)) for i in range(3)]
                  ) == [1, 1, 1]


@pytest.mark.parametrize("flow", [BULK4, UDP4], ids=["tcp4", "udp4"])
def test_identifications_count_on_unless_df_makes_them_meaningless(flow: Flow) -> None:
    """Trap 5: without DF the identification tells fragments apart, and a merge would renumber them."""
    def numbered(df: bool, *idents: int) -> list[bytes]:
        return [replace(flow, dont_fragment=df, ident=ident, sequence=1000 + i * SIZE).packet(text(SIZE))
                for i, ident in enumerate(idents)]

    assert counts(numbered(True, 7, 7, 0, 9)) == [4]
    assert counts(numbered(False, 65534, 65535, 0, 1)) == [4]
    assert counts(numbered(False, 7, 8, 8, 9, 11)) == [2, 2, 1]
    assert counts(numbered(False, 4711, 12, 60000)) == [1, 1, 1]


@EVERY
def test_sequences_and_identifications_wrap(flow: Flow) -> None:
    assert counts(train(replace(flow, sequence=0xFFFFFFFF - SIZE, ident=0xFFFF))) == [3]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("at", [-1, -500, 36])
@EVERY
def test_a_wrong_checksum_is_not_laundered(flow: Flow, place: int, at: int) -> None:
    """Trap 7: a merged frame claims that its sum is right; the flipped byte must go to the kernel as it came."""
    packets = train(flow)
    if flow.version == 6:
        at = at if at < 0 else at + 20
    packets[place] = changed(packets[place], at, packets[place][at] ^ 0x40)
    for (vnet, frame, count) in coalesce(packets, True):
        if packets[place][-SIZE:] in frame:
            assert (count, vnet, frame) == (1, bytes(10), packets[place])
    assert max(counts(packets)) <= 2


def test_a_wrong_ipv4_header_checksum_is_not_laundered() -> None:
    for place in range(3):
        packets = train(BULK4)
        packets[place] = changed(packets[place], 10, packets[place][10] ^ 1)
        assert counts(packets) in ([1, 2], [1, 1, 1], [2, 1])
        assert (bytes(10), packets[place], 1) in coalesce(packets, True)


def test_datagrams_without_a_checksum_stay_apart() -> None:
    bare = [changed(changed(packet, 26, 0), 27, 0) for packet in train(UDP4)]
    assert counts(bare) == [1, 1, 1]
    # Also where a sum that is 0 would make the field look right.
    field = UDP4.packet(b"\0\0abcd")[26:28]
    bare = [one[:26] + b"\0\0" + one[28:] for one in UDP4.segments((field + b"abcd") * 3, 6)]
    assert counts(bare) == [1, 1, 1]


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_a_sum_of_zero_is_ffff_undone_and_divided(flow: Flow) -> None:
    """Trap 6: each datagram begins with the two bytes that make its sum zero."""
    field = flow.packet(b"\0\0abcd")[flow.transport() + 6:][:2]
    made = flow.segments((field + b"abcd") * 3, 6)
    assert all(one[flow.transport() + 6:][:2] == b"\xff\xff" for one in made)
    assert counts(made) == [3]
    (vnet, frame, _), = coalesce(made, True)
    assert segment(frame, vnet) == made


def test_a_datagram_whose_length_is_not_the_packets_stays_alone() -> None:
    padded = [ipv4(payload=one[20:] + b"\0") for one in train(UDP4)]
    assert counts(padded) == [1, 1, 1]
    # Also where the checksum is right for the packet's length.
    assert counts([summed(UDP4, changed(one, 25, one[25] - 2)) for one in train(UDP4)]) == [1, 1, 1]


def test_a_tcp_header_that_is_none_stays_alone() -> None:
    """A data offset below five words, under a checksum that is right; what it calls payload follows on, too."""
    for words in range(5):
        step = SIZE + 4 * (5 - words)
        made = [replace(BULK4, sequence=1000 + i * step, ident=i).packet(bytes(SIZE)) for i in range(3)]
        assert counts([summed(BULK4, changed(one, 32, words << 4)) for one in made]) == [1, 1, 1]


ALONE = [
    *(ipv4(payload=train(BULK4)[0][20:], protocol=6, fragment=fragment) for fragment in (0x2000, 0x0001, 0x8000)),
    ipv4(payload=bytes(SIZE), protocol=ICMP), ipv6(payload=bytes(SIZE), next_header=58),
    ipv6(payload=b"\x06\0" + bytes(6 + SIZE), next_header=0), ipv6(payload=b"\x11\0" + bytes(6 + SIZE), next_header=44),
    ipv6(payload=b"", next_header=59), ipv4(payload=b"", protocol=6), ipv4(payload=b"\0" * 7, protocol=17),
    ipv4(payload=b"\0" * 19, protocol=6), ipv6(payload=b"\0" * 19, next_header=6), BULK4.packet(b""), BULK6.packet(b""),
    replace(BULK4, options=TIMESTAMPS).packet(b""), UDP4.packet(b""), UDP6.packet(b""),
    changed(BULK4.packet(b"x"), 32, 0x40), changed(BULK4.packet(b"x"), 32, 0xF0),
]


@pytest.mark.parametrize("packet", ALONE, ids=lambda packet: packet[:44].hex())
def test_what_stays_alone(packet: bytes) -> None:
    """Trap 9: fragments, options, extension headers, other protocols, no payload, cut headers."""
    assert counts([packet, packet, packet]) == [1, 1, 1]
    before, after = train(BULK4, 2), train(replace(BULK4, sequence=9000), 2)
    assert counts([*before, packet, *after]) == [2, 1, 2]


@pytest.mark.parametrize("bits", [0x20, 0x80])
def test_fragments_that_continue_one_another_stay_apart(bits: int) -> None:
    made = [changed(one, 6, one[6] | bits)[:10] + bytes(2) + one[12:] for one in train(BULK4)]
    assert counts([one[:10] + naive_checksum(one[:20]) + one[12:] for one in made]) == [1, 1, 1]


def test_flows_that_alternate_keep_their_order() -> None:
    """A frame ends where another flow's packet comes: nothing overtakes anything."""
    other = replace(BULK4, sport=5)
    mixed = [one for pair in zip(train(BULK4), train(other), strict=True) for one in pair]
    assert counts(mixed) == [1] * 6
    ack = replace(BULK4, acknowledgment=999, sequence=1000 + 2 * SIZE).packet(b"")
    data = train(BULK4)
    assert counts([*data[:2], ack, data[2]]) == [2, 1, 1]


@EVERY
def test_a_hop_before_the_merge_changes_nothing(flow: Flow) -> None:
    """As the loop does it: the TTL's step patches the header checksum, and the merge verifies it."""
    assert counts([hop(one) for one in train(flow)]) == [3]


flows = st.builds(
    Flow, version=st.sampled_from((4, 6)), protocol=st.sampled_from(("tcp", "udp")), ident=st.integers(0, 65535),
    dont_fragment=st.booleans(), tos=st.integers(0, 255), ttl=st.integers(1, 255),
    flags=st.sampled_from(("A", "PA", "EA", "EPA")), sequence=st.integers(0, 2**32 - 1),
    window=st.integers(0, 65535), options=st.sampled_from(((), TIMESTAMPS)), label=st.integers(0, 2**20 - 1),
)


@settings(max_examples=60, deadline=None)
@given(flows, st.integers(1, 2000), st.integers(2, 64), st.data())
def test_divided_and_merged_is_the_same(flow: Flow, size: int, count: int, data: st.DataObject) -> None:
    """coalesce(segment(x)) == x, to the bit, wherever GRO may merge."""
    count = min(count, (65535 - 100) // size)
    payload = text(size * (max(count, 2) - 1) + data.draw(st.integers(1, size)), data.draw(st.integers(0, 255)))
    whole, vnet = flow.super_packet(payload, size)
    parts = segment(whole, vnet.packed())
    assert isinstance(parts, list)
    assert coalesce(parts, True) == [(vnet.packed(), whole, len(parts))]
    assert coalesce(parts, True, undo=True) == [parts]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 60)), max_size=20))
def test_any_mixture_keeps_its_order_and_its_bytes(trains: list[tuple[int, int, int]]) -> None:
    packets: list[bytes] = []
    for kind, count, size in trains:
        flow = replace(ALL[kind], ident=len(packets))
        packets += train(flow, count, size)
    frames = coalesce(packets, True)
    back = []
    for vnet, frame, count in frames:
        parts = segment(frame, vnet)
        assert isinstance(parts, list)
        assert len(parts) == count
        back += parts
    assert back == packets
    assert sum(counts(packets)) == len(packets)
