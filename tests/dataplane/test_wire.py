"""wire/: the structs lie over headers as the RFCs draw them; scapy, which knows nothing of them, makes the headers."""

import struct
import sys
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from flannel_udp._dataplane import UDP_OVERHEAD_V4, UDP_OVERHEAD_V6, UDP_PORT, VXLAN_COAT, VXLAN_PORT
from flannel_udp._probe import SIZES, fields

from .packets import packed

RFC_SIZES = {"ethernet": 14, "arp": 28, "ipv4": 20, "ipv6": 40, "ipv6_extension": 2, "ipv6_fragment": 8, "tcp": 20,
             "udp": 8, "icmp": 8, "vxlan": 8, "vnet_hdr": 10}
WIDTHS = {1: "B", 2: "H", 4: "I"}

# What scapy is asked to write, and the fields (width in bytes, value in network order) that must be read there.
HEADERS: dict[str, tuple[Any, dict[str, tuple[int, int] | bytes]]] = {
    "ethernet": (
        Ether(dst="02:03:04:05:06:07", src="12:13:14:15:16:17", type=0x86DD),
        {"destination": bytes.fromhex("020304050607"), "source": bytes.fromhex("121314151617"),
         "ethertype": (2, 0x86DD)},
    ),
    "arp": (
        ARP(op=2, hwsrc="02:03:04:05:06:07", psrc="192.0.2.1", hwdst="12:13:14:15:16:17", pdst="192.0.2.2"),
        {"hardware_type": (2, 1), "protocol_type": (2, 0x0800), "hardware_length": (1, 6), "protocol_length": (1, 4),
         "operation": (2, 2), "sender_hardware": bytes.fromhex("020304050607"), "sender_protocol": (4, 0xC0000201),
         "target_hardware": bytes.fromhex("121314151617"), "target_protocol": (4, 0xC0000202)},
    ),
    "ipv4": (
        IP(tos=0xB9, len=0x1234, id=0x5678, flags="DF+MF", frag=0x0ABC, ttl=77, proto=99, chksum=0xBEEF,
           src="192.0.2.1", dst="198.51.100.2"),
        {"version_ihl": (1, 0x45), "tos": (1, 0xB9), "total_length": (2, 0x1234), "identification": (2, 0x5678),
         "fragment": (2, 0x6ABC), "ttl": (1, 77), "protocol": (1, 99), "checksum": (2, 0xBEEF),
         "source": (4, 0xC0000201), "destination": (4, 0xC6336402)},
    ),
    "ipv6": (
        IPv6(tc=0xAB, fl=0xCDEF1, plen=0x1234, nh=58, hlim=99, src="2001:db8::1", dst="2001:db8::2"),
        {"version_class_flow": (4, 0x6ABCDEF1), "payload_length": (2, 0x1234), "next_header": (1, 58),
         "hop_limit": (1, 99), "source": packed("2001:db8::1"), "destination": packed("2001:db8::2")},
    ),
    "ipv6_fragment": (
        IPv6ExtHdrFragment(nh=6, res1=0x5A, offset=0x1ABC, res2=1, m=1, id=0x12345678),
        {"next_header": (1, 6), "reserved": (1, 0x5A), "offset": (2, 0x1ABC << 3 | 3),
         "identification": (4, 0x12345678)},
    ),
    "tcp": (
        TCP(sport=1234, dport=5678, seq=0x11223344, ack=0x55667788, dataofs=5, flags="SAC", window=0x9ABC,
            chksum=0xBEEF, urgptr=0xDEF0),
        {"source_port": (2, 1234), "destination_port": (2, 5678), "sequence": (4, 0x11223344),
         "acknowledgment": (4, 0x55667788), "data_offset": (1, 0x50), "flags": (1, 0x92), "window": (2, 0x9ABC),
         "checksum": (2, 0xBEEF), "urgent_pointer": (2, 0xDEF0)},
    ),
    "udp": (
        UDP(sport=8285, dport=8472, len=0x1234, chksum=0xBEEF),
        {"source_port": (2, 8285), "destination_port": (2, 8472), "length": (2, 0x1234), "checksum": (2, 0xBEEF)},
    ),
    "icmp": (
        ICMP(type=3, code=4, chksum=0xBEEF, unused=0x1234, nexthopmtu=1400),
        {"type": (1, 3), "code": (1, 4), "checksum": (2, 0xBEEF), "rest": (4, 1400)},
    ),
    "vxlan": (
        VXLAN(vni=0x123456),
        {"flags": (4, 0x08000000), "vni": (4, 0x12345600)},
    ),
}


def network_order(value: int | bytes, width: int) -> int:
    assert isinstance(value, int)
    return int.from_bytes(value.to_bytes(width, sys.byteorder), "big")


def test_sizes_are_those_of_the_rfcs() -> None:
    assert {name: SIZES[name] for name in RFC_SIZES} == RFC_SIZES


def test_what_wants_a_cache_line_has_one() -> None:
    assert (SIZES["peer"], SIZES["reader"]) == (64, 64)


@pytest.mark.parametrize("name", HEADERS)
def test_fields_lie_where_scapy_writes_them(name: str) -> None:
    header, expected = HEADERS[name]
    read = fields(name, bytes(header)[: SIZES[name]])
    assert list(read) == list(expected)
    for field, wanted in expected.items():
        value = read[field]
        assert (value == wanted) if isinstance(wanted, bytes) else network_order(value, wanted[0]) == wanted[1], field


def test_extension_headers_share_their_beginning() -> None:
    assert fields("ipv6_extension", bytes(IPv6ExtHdrDestOpt(nh=58, len=7))[:2]) == {"next_header": 58, "length": 7}


def test_vnet_hdr_is_the_kernels() -> None:
    """Without an oracle of its own: struct virtio_net_hdr of linux/virtio_net.h, in the machine's order."""
    read = fields("vnet_hdr", struct.pack("=BBHHHH", 1, 4, 66, 1448, 34, 16))
    assert read == {"flags": 1, "gso_type": 4, "hdr_len": 66, "gso_size": 1448, "csum_start": 34, "csum_offset": 16}


@pytest.mark.parametrize("name", HEADERS)
def test_every_bit_belongs_to_one_field(name: str) -> None:
    before = fields(name, bytes(SIZES[name]))
    for bit in range(8 * SIZES[name]):
        flipped = (1 << bit).to_bytes(SIZES[name], "little")
        after = fields(name, flipped)
        assert sum(before[field] != after[field] for field in before) == 1, bit


def test_ports_and_overheads() -> None:
    assert (UDP_PORT, VXLAN_PORT) == (8285, 8472)
    assert (UDP_OVERHEAD_V4, UDP_OVERHEAD_V6, VXLAN_COAT) == (20 + 8, 40 + 8, 8 + 14)
