"""segment.pxd: what a super-packet becomes: golden bytes, scapy's, and nothing where headers lie."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._probe import segment

from .packets import NAMES as OUTCOMES
from .packets import ipv4, ipv6, naive_checksum, naive_sum
from .super_packets import ALL, BULK4, BULK6, NAMES, TCPV4, TCPV6, TIMESTAMPS, UDP4, UDP6, UDP_L4, Flow, VnetHdr, text


def divided(flow: Flow, payload: bytes, size: int, **vnet: int) -> list[bytes]:
    data, header = flow.super_packet(payload, size)
    made = segment(data, header.but(**vnet))
    assert not isinstance(made, int), OUTCOMES[made]
    return made


def refusal(data: bytes, vnet: bytes) -> str:
    made = segment(data, vnet)
    assert isinstance(made, int), "it was not refused"
    return OUTCOMES[made]


def test_golden_bytes() -> None:
    """By hand: 10.5.1.2:4000 to 10.5.2.2:5201, 5 bytes in segments of 4, PSH and FIN, IDs from 65535 on."""
    ends = "0a0501020a050202" "0fa01451"  # noqa: ISC001
    whole = bytes.fromhex(f"4500002dffff400040060000{ends}000003e80000004d50192000" + "00000000" + "6162636465")
    vnet = VnetHdr(gso_type=TCPV4, gso_size=4, csum_start=20, csum_offset=16).packed()
    assert segment(whole, vnet) == [
        bytes.fromhex(f"4500002cffff4000400623bf{ends}000003e80000004d501020008bd6000061626364"),
        bytes.fromhex(f"450000290000400040 0623c2{ends}000003ec0000004d50192000eb920000 65"),
    ]


FLOWS = [
    *ALL,
    replace(BULK4, flags="FPA"), replace(BULK6, flags="FPA"), replace(BULK4, flags="PA"),
    replace(BULK4, flags="CA"), replace(BULK4, flags="CEPA"), replace(BULK6, flags="CEFPA"), replace(BULK4, flags="UA"),
    replace(BULK4, ident=0xFFFE), replace(UDP4, ident=0xFFFE), replace(BULK4, dont_fragment=False),
    replace(BULK4, sequence=0xFFFFFFF0), replace(BULK4, tos=0xB9, ttl=3),
    replace(BULK6, tos=0xB9, ttl=3, label=0xABCDE),
    replace(BULK4, options=TIMESTAMPS), replace(BULK6, options=TIMESTAMPS),
    replace(BULK4, options=(("Timestamp", (1, 2)), ("SAck", (1, 2, 3, 4, 5, 6)))),
    replace(BULK4, ip_options=b"\x94\x04\0\0"), replace(UDP4, ip_options=b"\x94\x04\0\0" + b"\x01" * 36),
    replace(BULK6, extension=True), replace(UDP6, extension=True),
]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: str(flow)[5:])
@pytest.mark.parametrize(("length", "size"), [(3000, 1000), (3001, 1000), (2999, 1000), (1400, 1399), (7, 1), (900, 1),
                                              (1000, 1000), (999, 1000)])
def test_segments_are_scapys(flow: Flow, length: int, size: int) -> None:
    payload = text(length)
    assert divided(flow, payload, size) == flow.segments(payload, size)


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_the_largest_super_packet(flow: Flow) -> None:
    payload = text(65535 - len(flow.packet(b"")))
    assert divided(flow, payload, 1398) == flow.segments(payload, 1398)


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_hdr_len_is_not_believed(flow: Flow) -> None:
    """On forwarded packets it is how much lies in the first buffer (trap 3)."""
    payload = text(2500)
    for hdr_len in (0, 1, 20, 39, 54, 1400, 65535):
        assert divided(flow, payload, 1000, hdr_len=hdr_len) == flow.segments(payload, 1000)


def test_flags_stand_where_the_kernel_puts_them() -> None:
    made = divided(replace(BULK4, flags="CEUFPA"), text(4000), 1000)
    assert [one[33] for one in made] == [0xF0, 0x70, 0x70, 0x79]


def test_identifications_wrap() -> None:
    made = divided(replace(BULK4, ident=0xFFFE), text(4000), 1000)
    assert [int.from_bytes(one[4:6], "big") for one in made] == [0xFFFE, 0xFFFF, 0, 1]


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_a_udp_checksum_of_zero_is_sent_as_ffff(flow: Flow) -> None:
    """Each segment begins with the two bytes that make its sum zero."""
    last = len(flow.packet(b"\0\0abcd"))
    bare = flow.packet(b"\0\0abcd")
    field = int.from_bytes(bare[last - 8:last - 6], "big")
    payload = field.to_bytes(2, "big") + b"abcd"
    for one in divided(flow, payload * 3, 6):
        assert one[-8:-6] == b"\xff\xff"


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_an_unfinished_checksum_is_finished(flow: Flow) -> None:
    for length in (1, 2, 999, 1400):
        data, vnet = flow.super_packet(text(length), 0)
        assert segment(data, vnet.but(gso_type=0)) == [flow.packet(text(length))]


def test_every_sum_of_a_single_datagram() -> None:
    """All 65536 values that a payload word can take; never a zero, which would say that there is no checksum."""
    data, vnet = UDP4.super_packet(b"\0\0", 0)
    plain, zeros = vnet.but(gso_type=0), 0
    for word in range(65536):
        made = segment(data[:28] + word.to_bytes(2, "big"), plain)
        assert isinstance(made, list)
        check = made[0][26:28]
        assert check != b"\0\0"
        zeros += check == b"\xff\xff"
    assert zeros == 1


def test_what_needs_nothing_is_left_alone() -> None:
    """A UDP datagram without a checksum stays one, a wrong checksum stays wrong."""
    data = ipv4(payload=b"\x0f\xa0\x14\x51\0\x0a\0\0hi")
    assert segment(data, bytes(10)) == [data]
    data = ipv4(payload=b"\x0f\xa0\x14\x51\0\x0a\xde\xadhi")
    assert segment(data, bytes(10)) == [data]


DATA4, VNET4 = BULK4.super_packet(text(3000), 1000)
DATA6, VNET6 = BULK6.super_packet(text(3000), 1000)
DATAGRAM, VNET_UDP = UDP4.super_packet(text(3000), 1000)
OFFSET = 20 + 12  # of TCP's data offset
# Extension headers that leave less room than the longest headers may have: 40, 136, TCP's 20, of 192 and of 196.
LONG6 = ipv6(payload=b"\x06\x10" + bytes(134) + DATA6[40:], next_header=0)
VNET_LONG6 = replace(VNET6, csum_start=40 + 136)


@pytest.mark.parametrize(("data", "vnet", "reason"), [
    (DATA4, VNET4.but(gso_size=0), "bad_offload"),
    (DATA4, VNET4.but(gso_type=TCPV6), "bad_offload"),
    (DATA4, VNET4.but(gso_type=UDP_L4), "bad_offload"),
    (DATA4, VNET4.but(gso_type=3), "bad_offload"),
    (DATA4, VNET4.but(gso_type=TCPV4 | 0x20), "bad_offload"),
    (DATA4, VNET4.but(csum_start=0), "bad_offload"),
    (DATA4, VNET4.but(csum_start=24), "bad_offload"),
    (DATA4, VNET4.but(csum_start=65535), "bad_offload"),
    (DATA6, VNET6.but(gso_type=TCPV4), "bad_offload"),
    (DATA6, VNET6.but(csum_start=39), "bad_offload"),
    (DATA6, VNET6.but(csum_start=3050), "bad_offload"),
    (DATA6, VNET6.but(csum_start=65535), "bad_offload"),
    (DATAGRAM, VNET_UDP.but(gso_type=TCPV4), "bad_offload"),
    *((DATA4[:OFFSET] + bytes([words << 4]) + DATA4[OFFSET + 1:], VNET4.packed(), "bad_header") for words in range(5)),
    (LONG6, VNET_LONG6.packed(), "bad_header"),
    (BULK4.packet(b""), VNET4.packed(), "bad_header"),
    (UDP4.packet(b""), VNET_UDP.packed(), "bad_header"),
    (DATA4, VNET4.but(gso_type=0, csum_start=65535), "bad_offload"),
    (DATA4, VNET4.but(gso_type=0, csum_start=len(DATA4) - 17), "bad_offload"),
    (DATA4, VNET4.but(gso_type=0, csum_offset=65535), "bad_offload"),
])
def test_headers_that_lie_are_refused(data: bytes, vnet: bytes, reason: str) -> None:
    assert refusal(data, vnet) == reason


sizes = st.integers(1, 9000)
flows = st.builds(
    Flow, version=st.sampled_from((4, 6)), protocol=st.sampled_from(("tcp", "udp")), ident=st.integers(0, 65535),
    dont_fragment=st.booleans(), tos=st.integers(0, 255), ttl=st.integers(1, 255),
    flags=st.sampled_from(("A", "PA", "FA", "FPA", "CEA", "CPA", "EA")), sequence=st.integers(0, 2**32 - 1),
    window=st.integers(0, 65535), options=st.sampled_from(((), TIMESTAMPS)), label=st.integers(0, 2**20 - 1),
)


@settings(max_examples=60, deadline=None)
@given(flows, st.binary(min_size=1, max_size=4000), st.integers(40, 2000))
def test_any_super_packet(flow: Flow, payload: bytes, size: int) -> None:
    made = divided(flow, payload, size)
    assert made == flow.segments(payload, size)
    for one in made:
        if flow.version == 4:
            assert naive_checksum(one[:20]) == b"\0\0"
        assert naive_sum(one[flow.transport():] + flow.pseudo(one).to_bytes(2, "big") if len(one) % 2 == 0
                         else one[flow.transport():] + b"\0" + flow.pseudo(one).to_bytes(2, "big")) == 0xFFFF
