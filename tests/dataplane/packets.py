"""Packets for the data plane's tests, and oracles for what becomes of them: plain Python, none of the code tested."""

import struct
from ipaddress import ip_address

from flannel_udp._dataplane import OUTCOMES
from flannel_udp._probe import FORWARD

NAMES = {place: name for place, (name, _, _) in enumerate(OUTCOMES)} | {FORWARD: "forward"}
"""What the data plane's numbers mean."""

UDP, ICMP, ICMPV6 = 17, 1, 58


def packed(address: str) -> bytes:
    """An address of either family as its bytes."""
    return ip_address(address).packed


def naive_sum(data: bytes | bytearray) -> int:
    """The one's complement sum of RFC 1071, word by word."""
    total = 0
    for word, in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def naive_checksum(data: bytes | bytearray) -> bytes:
    """The Internet checksum as the two bytes of a header."""
    return (naive_sum(data) ^ 0xFFFF).to_bytes(2, "big")


def ipv4(
    source: str = "10.5.1.2",
    destination: str = "10.5.2.2",
    payload: bytes = b"payload!",
    *,
    ttl: int = 64,
    protocol: int = UDP,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet with a right header checksum; `fragment` is the word of flags and offset."""
    head = struct.pack("!BBHHHBB", 0x40 | (5 + len(options) // 4), 0, 20 + len(options) + len(payload), 0x1234,
                       fragment, ttl, protocol)
    tail = packed(source) + packed(destination) + options
    return head + naive_checksum(head + b"\0\0" + tail) + tail + payload


def ipv6(
    source: str = "fd05:0:0:1::2",
    destination: str = "fd05:0:0:2::2",
    payload: bytes = b"payload!",
    *,
    hop_limit: int = 64,
    next_header: int = UDP,
) -> bytes:
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28 | 0x12345, len(payload), next_header, hop_limit)
    return head + packed(source) + packed(destination) + payload


def packet(version: int, source: int, destination: int, payload: bytes = b"payload!", ttl: int = 64) -> bytes:
    """A packet between the hosts 2 of two of the overlay's subnets, of either family."""
    if version == 4:
        return ipv4(f"10.5.{source}.2", f"10.5.{destination}.2", payload, ttl=ttl)
    return ipv6(f"fd05:0:0:{source}::2", f"fd05:0:0:{destination}::2", payload, hop_limit=ttl)


def hop(data: bytes, step: int = 1) -> bytes:
    """The same packet `step` hops later, its header checksum made anew."""
    if data[0] >> 4 == 6:
        return data[:7] + bytes([data[7] - step]) + data[8:]
    end = (data[0] & 15) * 4
    head = data[:8] + bytes([data[8] - step]) + data[9:10] + b"\0\0" + data[12:end]
    return head[:10] + naive_checksum(head) + head[12:] + data[end:]
