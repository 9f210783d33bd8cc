"""checksum.pxd against a loop over 16-bit words, for every length and alignment; pseudo headers against scapy."""

import random
import struct

import pytest
from scapy.layers.inet import IP, in4_pseudoheader
from scapy.layers.inet6 import IPv6, in6_pseudoheader

from flannel_udp._probe import checksum, pseudo_header_sum, update16

from .packets import naive_checksum, naive_sum, packed

LONGEST = 4096
DATA = {
    "random": random.Random(1).randbytes(LONGEST),
    "ones": b"\xFF" * LONGEST,
    "zeros": bytes(LONGEST),
    "carries": b"\xFF\xFE\x00\x01" * (LONGEST // 4),
}


def naive_of_every_length(data: bytes) -> list[bytes]:
    """The checksum of each beginning of `data`: one pass, word by word."""
    found, total = [], 0
    for length in range(len(data) + 1):
        odd = data[length - 1] << 8 if length % 2 else 0
        if length and length % 2 == 0:
            total += struct.unpack_from("!H", data, length - 2)[0]
            total = (total & 0xFFFF) + (total >> 16)
        whole = total + odd
        found.append((((whole & 0xFFFF) + (whole >> 16)) ^ 0xFFFF).to_bytes(2, "big"))
    return found


def test_golden() -> None:
    """The example of RFC 1071, 3; a real header; nothing at all."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == bytes.fromhex("220d")
    assert checksum(bytes.fromhex("450000730000400040110000c0a80001c0a800c7")) == bytes.fromhex("b861")
    assert checksum(b"") == b"\xFF\xFF"
    assert checksum(b"\x01") == b"\xFE\xFF"


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("offset", range(8))
def test_every_length_at_every_alignment(kind: str, offset: int) -> None:
    data = DATA[kind]
    expected = naive_of_every_length(data)
    found = [checksum(data[:length], offset) for length in range(LONGEST + 1)]
    assert found == expected


def test_the_oracle_itself() -> None:
    assert naive_of_every_length(DATA["random"][:99])[1:] == [
        naive_checksum(DATA["random"][:length]) for length in range(1, 100)]


def test_largest_packet() -> None:
    for data in (b"\xFF" * 65535, random.Random(2).randbytes(65535)):
        assert checksum(data) == naive_checksum(data)


def test_data_with_its_checksum_sums_to_nothing() -> None:
    for length in range(2, 200, 2):
        data = random.Random(length).randbytes(length)
        assert checksum(data + naive_checksum(data)) == b"\0\0"


@pytest.mark.parametrize("length", [0, 1, 8, 255, 256, 1500, 65515])
@pytest.mark.parametrize(("source", "destination"), [
    ("10.5.1.2", "10.5.2.2"), ("255.255.255.255", "255.255.255.255"), ("0.0.0.0", "0.0.0.0"),
    ("fd05::1", "fd05:0:0:2::9"), ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"),
])
@pytest.mark.parametrize("protocol", [6, 17, 58])
def test_pseudo_headers_against_scapy(source: str, destination: str, protocol: int, length: int) -> None:
    if ":" in source:
        oracle = bytes(in6_pseudoheader(protocol, IPv6(src=source, dst=destination), length))  # type: ignore[arg-type]
    else:
        oracle = in4_pseudoheader(protocol, IP(src=source, dst=destination), length)
    found = pseudo_header_sum(packed(source), packed(destination), protocol, length)
    assert int.from_bytes(found, "big") == naive_sum(oracle)


def same(field: bytes, other: bytes) -> bool:
    """Equal as sums: 0x0000 and 0xFFFF are the two zeros of one's complement."""
    return field == other or {field, other} == {b"\0\0", b"\xFF\xFF"}


CORNERS = (0x0000, 0x0001, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


@pytest.mark.parametrize("rest", [0x0000, 0x0001, 0x4500, 0xFFFE, 0xFFFF])
def test_update_at_the_corners(rest: int) -> None:
    """The field after an update is that of a new computation, all-zero data (no header is) aside."""
    for old in CORNERS:
        for new in CORNERS:
            before = naive_checksum(struct.pack("!HH", rest, old))
            after = naive_checksum(struct.pack("!HH", rest, new))
            found = update16(before, old.to_bytes(2, "big"), new.to_bytes(2, "big"))
            if rest or (old and new):
                assert found == after, (rest, old, new)
            else:
                assert same(found, after), (rest, old, new)


def test_update_against_the_naive_sum() -> None:
    """RFC 1624's own example (4), and random headers whose words change one by one."""
    assert update16(b"\xDD\x2F", b"\x55\x55", b"\x32\x85") == b"\0\0"
    dice = random.Random(3)
    header = bytearray(dice.randbytes(20))
    field = naive_checksum(header)
    for _ in range(20_000):
        at = dice.randrange(10) * 2
        old, new = bytes(header[at:at + 2]), dice.randbytes(2)
        header[at:at + 2] = new
        field = update16(field, old, new)
        assert field == naive_checksum(header)
