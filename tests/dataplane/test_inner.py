"""inner.pxd: what an inner packet must be, rule by rule, one field changed at a time."""

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp._probe import inner

from .packets import NAMES, ipv4, ipv6

V4 = ipv4(payload=b"12345678")  # 28 bytes
V6 = ipv6(payload=b"12345678")  # 48 bytes
WITH_OPTIONS = ipv4(payload=b"12345678", options=b"\x01" * 40)  # 68 bytes


def put(data: bytes, at: int, value: int, width: int = 1) -> bytes:
    """The packet with one field changed."""
    return data[:at] + value.to_bytes(width, "big") + data[at + width:]


RULES = [
    # family, packet, outcome, length afterwards
    ("golden", 4, V4, "forward", 28),
    ("golden", 6, V6, "forward", 48),
    ("options", 4, WITH_OPTIONS, "forward", 68),
    ("header alone", 4, ipv4(payload=b""), "forward", 20),
    ("header alone", 6, ipv6(payload=b""), "forward", 40),
    ("padding", 4, V4 + bytes(18), "forward", 28),
    ("padding", 6, V6 + bytes(18), "forward", 48),
    ("nothing", 4, b"", "truncated", 0),
    ("nothing", 6, b"", "truncated", 0),
    ("one byte", 4, V4[:1], "truncated", 1),
    ("one byte", 6, V6[:1], "truncated", 1),
    ("a byte of header less", 4, V4[:19], "truncated", 19),
    ("a byte of header less", 6, V6[:39], "truncated", 39),
    ("a byte of payload less", 4, V4[:-1], "truncated", 27),
    ("a byte of payload less", 6, V6[:-1], "truncated", 47),
    ("a byte of options less", 4, put(WITH_OPTIONS, 2, 60, 2)[:59], "truncated", 59),
    ("the other family", 4, V6, "other_family", 48),
    ("the other family", 6, V4, "other_family", 28),
    ("the other family, one byte", 4, b"\x60", "other_family", 1),
    *[(f"version {version}", family, bytes([version << 4 | 5]) + V4[1:], "not_ip", 28)
      for version in (0, 1, 3, 5, 7, 15) for family in (4, 6)],
    *[(f"IHL {ihl}", 4, put(V4, 0, 0x40 | ihl), "bad_header", 28) for ihl in range(5)],
    *[(f"IHL {ihl}", 4, put(V4, 0, 0x40 | ihl), "forward", 28) for ihl in (6, 7)],
    *[(f"IHL {ihl}", 4, put(V4, 0, 0x40 | ihl), "bad_header", 28) for ihl in range(8, 16)],
    *[(f"total length {length}", 4, put(V4, 2, length, 2), "bad_header", 28) for length in (0, 1, 19)],
    *[(f"total length {length}", 4, put(V4, 2, length, 2), "forward", length) for length in (20, 21, 28)],
    *[(f"total length {length}", 4, put(V4, 2, length, 2), "truncated", 28) for length in (29, 256, 65535)],
    *[(f"payload length {length}", 6, put(V6, 4, length, 2), "forward", 40 + length) for length in (0, 1, 8)],
    *[(f"payload length {length}", 6, put(V6, 4, length, 2), "truncated", 48) for length in (9, 256, 65535)],
    ("largest", 4, ipv4(payload=bytes(65515)), "forward", 65535),
    ("largest", 6, ipv6(payload=bytes(65495)), "forward", 65535),
    ("the checksum is not looked at", 4, put(V4, 10, 0, 2), "forward", 28),
]


@pytest.mark.parametrize(("family", "data", "outcome", "length"), [rule[1:] for rule in RULES],
                         ids=[f"{rule[0]} {rule[1]}" for rule in RULES])
def test_rule(family: int, data: bytes, outcome: str, length: int) -> None:
    found, left = inner(data, family)
    assert (NAMES[found], left) == (outcome, length)


def test_every_shorter_beginning_is_truncated() -> None:
    for family, data in ((4, WITH_OPTIONS), (6, V6)):
        for length in range(len(data)):
            assert NAMES[inner(data[:length], family)[0]] == "truncated", length


def test_scapys_packets_are_packets() -> None:
    for length in (0, 1, 100, 1400):
        four = bytes(IP(src="10.5.1.2", dst="10.5.2.2") / UDP() / bytes(length))
        six = bytes(IPv6(src="fd05::1", dst="fd05::2") / UDP() / bytes(length))
        assert (NAMES[inner(four, 4)[0]], NAMES[inner(six, 6)[0]]) == ("forward", "forward")
