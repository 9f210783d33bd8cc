"""hop.pxd: every TTL and step, checksums against a new computation."""

import pytest
from scapy.layers.inet import IP

from flannel_udp._probe import hop

from . import packets
from .packets import ipv4, ipv6


def test_golden_both_families() -> None:
    before = bytes.fromhex("4500001c00010000 4011 63c3 0a050102 0a050202".replace(" ", ""))
    after = bytes.fromhex("4500001c00010000 3f11 64c3 0a050102 0a050202".replace(" ", ""))
    assert hop(before, 1) == after
    assert hop(ipv6(hop_limit=64), 1) == ipv6(hop_limit=63)


@pytest.mark.parametrize("step", [1, 2, 7, 255])
@pytest.mark.parametrize("version", [4, 6])
def test_every_ttl(version: int, step: int) -> None:
    for ttl in range(256):
        data = packets.packet(version, 1, 2, ttl=ttl)
        expected = packets.hop(data, step) if ttl > step else None
        assert hop(data, step) == expected, ttl


@pytest.mark.parametrize("version", [4, 6])
def test_a_link_counts_no_hop(version: int) -> None:
    for ttl in (0, 1, 255):
        data = packets.packet(version, 1, 2, ttl=ttl)
        assert hop(data, 0) == data


@pytest.mark.parametrize("protocol", [0, 1, 6, 17, 255])
def test_checksums_that_pass_both_zeros(protocol: int) -> None:
    """Identifications that make the header checksum run through all values near 0x0000 and 0xFFFF."""
    for wanted in (0x0000, 0x0001, 0x00FF, 0x0100, 0x0101, 0xFEFF, 0xFF00, 0xFFFE):
        data = bytearray(ipv4(ttl=64, protocol=protocol))
        data[4:6] = b"\0\0"
        data[10:12] = b"\0\0"
        # the identification that makes the sum what it must be
        missing = ((wanted ^ 0xFFFF) - packets.naive_sum(bytes(data[:20]))) % 0xFFFF
        data[4:6] = missing.to_bytes(2, "big")
        data[10:12] = packets.naive_checksum(bytes(data[:20]))
        after = hop(bytes(data), 1)
        assert after == packets.hop(bytes(data))


def test_scapy_agrees() -> None:
    for ttl in range(2, 256):
        sent = IP(src="10.5.1.2", dst="10.5.2.2", ttl=ttl, id=ttl * 257, proto=6)
        later = sent.copy()
        later.ttl -= 1
        assert hop(bytes(sent), 1) == bytes(later)


def test_a_wrong_checksum_stays_wrong() -> None:
    data = bytearray(ipv4())
    data[10] ^= 0x40
    after = hop(bytes(data), 1)
    assert after is not None
    assert packets.naive_checksum(after[:20]) != b"\0\0"
