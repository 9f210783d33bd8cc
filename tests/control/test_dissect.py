"""dissect against scapy, an independent reader and writer of packets; and against packets that are none."""

import random
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from flannel_udp.dissect import Layer, checksum, dissect, format_layers

PAYLOAD = bytes(range(32, 88))
PING = IP(src="10.5.1.2", dst="10.5.2.2", ttl=63, id=0x1234, flags="DF") / ICMP(id=77, seq=1) / PAYLOAD
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
UNDERLAY = ETHER / IP(src="192.0.2.1", dst="192.0.2.2")
UNDERLAY6 = ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2")
PING6 = IPv6(src="fd00:5:1::2", dst="fd00:5:2::2", hlim=63) / ICMPv6EchoRequest(id=7, seq=2, data=PAYLOAD)
OURS, THEIRS = "02:11:22:33:44:55", "0a:66:77:88:99:aa"
INNER = Ether(src=OURS, dst=THEIRS)


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def layer(layers: list[Layer], name: str, nth: int = 0) -> Layer:
    return [one for one in layers if one.name == name][nth]


def test_flannels_udp_packet_is_undressed_to_the_inner_ping() -> None:
    layers = dissect(bytes(UNDERLAY / UDP(sport=8285, dport=8285) / PING), "ethernet")
    assert names(layers) == ["Ethernet", "IPv4", "UDP", "flannel udp", "IPv4", "ICMP", "data"]
    assert [one.depth for one in layers] == [0, 0, 0, 0, 1, 1, 1]
    inner = layer(layers, "IPv4", 1)
    assert (inner["source"], inner["destination"], inner["TTL"]) == ("10.5.1.2", "10.5.2.2", "63")
    assert (inner["flags"], inner["protocol"], inner["identification"]) == ("DF", "1 (ICMP)", "0x1234")
    assert layer(layers, "ICMP")["type"] == "8 (echo request)"
    assert layer(layers, "ICMP")["sequence number"] == "1"
    assert [field.offset for field in inner.fields if field.name in ("version", "header length", "TTL")] == [42, 42, 50]
    assert layer(layers, "data").size == len(PAYLOAD)


def test_the_same_on_another_port_is_data() -> None:
    packet = bytes(UNDERLAY / UDP(sport=8285, dport=9999) / PING)
    assert names(dissect(packet, "ethernet")) == ["Ethernet", "IPv4", "UDP", "data"]
    assert names(dissect(packet, "ethernet", udp_port=9999))[-3:] == ["IPv4", "ICMP", "data"]


@pytest.mark.parametrize("port", [8472, 4789])
@pytest.mark.parametrize(
    ("underlay", "outer", "ping", "inner", "icmp", "ethertype"),
    [
        (UNDERLAY, "IPv4", PING, "IPv4", "ICMP", "0x0800 (IPv4)"),
        (UNDERLAY6, "IPv6", PING6, "IPv6", "ICMPv6", "0x86dd (IPv6)"),
    ],
)
def test_vxlan_packet_is_undressed_field_by_field(
    underlay: Packet, outer: str, ping: Packet, inner: str, icmp: str, ethertype: str, port: int
) -> None:
    octets = bytes(underlay / UDP(sport=50000, dport=port) / VXLAN(flags=8, vni=0x12345) / INNER / ping)
    layers = dissect(octets, "ethernet")
    assert names(layers) == ["Ethernet", outer, "UDP", "VXLAN", "Ethernet", inner, icmp, "data"]
    assert [one.depth for one in layers] == [0, 0, 0, 0, 1, 1, 1, 1]
    vxlan, start = layer(layers, "VXLAN"), len(underlay) + 8
    assert [(field.name, field.value, field.offset - start, field.size) for field in vxlan.fields] == [
        ("flags", "0x08 (I: the VNI is valid)", 0, 1), ("reserved", "0", 1, 3), ("VNI", "74565", 4, 3),
        ("reserved too", "0", 7, 1),
    ]  # fmt: skip
    ethernet = layer(layers, "Ethernet", 1)
    assert [(field.name, field.value, field.offset - start - 8) for field in ethernet.fields] == [
        ("destination", THEIRS, 0), ("source", OURS, 6), ("type", ethertype, 12),
    ]  # fmt: skip
    assert layer(layers, "UDP")["checksum"].endswith("(right)")
    assert layer(layers, icmp)["checksum"].endswith("(right)")
    assert not any(one.remark for one in layers)


def test_vxlan_on_the_port_of_the_configuration() -> None:
    octets = bytes(UNDERLAY / UDP(sport=5, dport=8285) / VXLAN(flags=8, vni=1) / INNER / PING)
    assert names(dissect(octets, "ethernet", udp_port=0, vxlan_ports={8285}))[3:5] == ["VXLAN", "Ethernet"]
    assert names(dissect(octets, "ethernet"))[3] == "flannel udp"


FAULTS = [
    (VXLAN(flags=0, vni=1), "without the I flag there is no VNI: every receiver drops this"),
    (VXLAN(flags=8, vni=1, reserved2=1), "reserved bits are set: to be ignored by RFC 7348, but Linux drops this"),
    (VXLAN(flags=8, vni=1, reserved1=1), "reserved bits are set: to be ignored by RFC 7348, but Linux drops this"),
    (VXLAN(flags=0x0C, vni=1), "reserved bits are set: to be ignored by RFC 7348, but Linux drops this"),
    (VXLAN(flags=0x88, vni=1, gpid=7), "of group policy: a Linux device without gbp drops this"),
]


@pytest.mark.parametrize(("header", "remark"), FAULTS)
def test_vxlan_header_that_receivers_drop_is_told_why(header: Packet, remark: str) -> None:
    layers = dissect(bytes(UNDERLAY / UDP(dport=8472) / header / INNER / PING), "ethernet")
    assert layer(layers, "VXLAN").remark == remark
    assert names(layers)[-2:] == ["ICMP", "data"]


def test_what_is_wrong_inside_vxlan_is_told() -> None:
    vxlan = UNDERLAY / UDP(dport=8472) / VXLAN(flags=8, vni=1)
    tagged = dissect(bytes(vxlan / INNER / Dot1Q(vlan=5) / PING), "ethernet")
    assert "RFC 7348, 6.1" in layer(tagged, "Ethernet", 1).remark
    short = dissect(bytes(UNDERLAY / UDP(dport=8472) / bytes(VXLAN(flags=8, vni=1))[:5]), "ethernet")
    assert (short[-1].name, short[-1].remark) == ("VXLAN", "cut off: 5 of 8 bytes")
    half = dissect(bytes(vxlan / bytes(INNER)[:9]), "ethernet")
    assert (half[-1].name, half[-1].remark, half[-1]["destination"]) == ("Ethernet", "cut off: 9 of 14 bytes", THEIRS)
    empty = dissect(bytes(vxlan / Ether(src=OURS, dst=THEIRS, type=0x0800)), "ethernet")
    assert empty[-1].remark == "cut off: 0 of 20 bytes"
    other = dissect(bytes(vxlan / Ether(src=OURS, dst=THEIRS, type=0x88CC) / PAYLOAD), "ethernet")
    assert (other[-2]["type"], other[-1].name) == ("0x88cc", "data")


def test_first_fragment_of_a_vxlan_packet_is_read_as_far_as_it_goes() -> None:
    whole = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=8472) / VXLAN(flags=8, vni=1) / INNER / PING
    layers = dissect(bytes(whole.fragment(fragsize=64)[0]))  # type: ignore[no-untyped-call]
    assert names(layers) == ["IPv4", "UDP", "VXLAN", "Ethernet", "IPv4", "ICMP", "data"]
    assert layer(layers, "IPv4", 1).remark.startswith("cut off")


def test_datagram_without_checksum_is_a_fault_of_ipv6_only() -> None:
    vxlan = UDP(sport=5, dport=8472, chksum=0) / VXLAN(flags=8, vni=1) / INNER
    assert layer(dissect(bytes(UNDERLAY / vxlan / PING), "ethernet"), "UDP")["checksum"] == "0x0000 (none)"
    assert "RFC 6935" in layer(dissect(bytes(UNDERLAY6 / vxlan / PING6), "ethernet"), "UDP")["checksum"]


def test_macs_of_groups_are_named() -> None:
    assert dissect(bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / PING), "ethernet")[0]["destination"].endswith("(broadcast)")
    assert dissect(bytes(Ether(dst="33:33:00:00:00:01") / PING6), "ethernet")[0]["destination"].endswith("(multicast)")


def test_arp() -> None:
    request = ARP(op=1, hwsrc="02:00:00:00:00:01", psrc="192.0.2.1", pdst="192.0.2.2")
    read = layer(dissect(bytes(ETHER / request) + bytes(18), "ethernet"), "ARP")
    assert read["operation"].startswith("1 (request")
    assert (read["sender MAC"], read["sender address"]) == ("02:00:00:00:00:01", "192.0.2.1")
    assert read["target address"] == "192.0.2.2"
    reply = dissect(bytes(UNDERLAY / UDP(dport=8472) / VXLAN(flags=8, vni=1) / INNER / ARP(op=2)), "ethernet")
    assert (reply[-1].name, reply[-1]["operation"], reply[-1].depth) == ("ARP", "2 (reply)", 1)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, ""),
        ({"op": 3}, "neither request nor reply"),
        ({"hwtype": 6, "hwlen": 6}, "not of IPv4 over Ethernet, by hardware type"),
        ({"ptype": 0x86DD, "plen": 16}, "not of IPv4 over Ethernet, by protocol type and protocol size"),
        ({"hwlen": 8}, "not of IPv4 over Ethernet, by hardware size"),
    ],
)
def test_arp_that_is_none_of_ipv4_is_told_why(fields: dict[str, Any], fault: str) -> None:
    octets = bytes(ETHER / ARP(**fields)).ljust(14 + 28, b"\0")
    assert layer(dissect(octets, "ethernet"), "ARP").remark == fault


def test_neighbours_of_ipv6_tell_their_macs() -> None:
    asked = IPv6(src="fe80::1", dst="ff02::1:ff00:2") / ICMPv6ND_NS(tgt="fd00::2") / ICMPv6NDOptSrcLLAddr(lladdr=OURS)
    layers = dissect(bytes(asked))
    assert (layers[-1]["type"], layers[-1]["MAC"]) == ("1 (source link-layer address)", OURS)
    answer = IPv6(src="fd00::2", dst="fd00::1") / ICMPv6ND_NA(R=0, S=1, O=1, tgt="fd00::2")
    layers = dissect(bytes(answer / ICMPv6NDOptDstLLAddr(lladdr=THEIRS)))
    assert layer(layers, "ICMPv6")["flags"] == "override solicited"
    assert (layers[-1]["type"], layers[-1]["MAC"]) == ("2 (target link-layer address)", THEIRS)
    assert names(dissect(bytes(answer / ICMPv6NDOptMTU())))[-2:] == ["ICMPv6", "data"]


def test_tcp_with_options() -> None:
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 7)]
    segment = TCP(sport=1, dport=2, seq=3, ack=4, flags="SA", window=5, options=options)
    read = layer(dissect(bytes(IP(src="10.5.1.2", dst="10.5.2.2") / segment / b"odd")), "TCP")
    assert (read["flags"], read["window"], read["sequence number"]) == ("SYN ACK", "5", "3")
    assert read["options"] == "MSS 1460, SACK permitted, timestamps 0000000100000002, no-op, window scale 7"
    assert read["checksum"].endswith("(right)")


ERRORS = [
    (ICMP(type=3, code=0), "0 (net unreachable)", {}),
    (ICMP(type=3, code=4, nexthopmtu=1472), "4 (fragmentation needed)", {"next-hop MTU": "1472 bytes"}),
    (ICMP(type=11, code=0), "0 (TTL ended in transit)", {}),
    (ICMP(type=5, code=1, gw="192.0.2.9"), "1 (for the host)", {"gateway": "192.0.2.9"}),
]


@pytest.mark.parametrize(("error", "code", "own"), ERRORS)
def test_icmp_error_quotes_the_packet_that_it_is_about(error: Packet, code: str, own: dict[str, str]) -> None:
    quoted = bytes(IP(src="10.5.1.2", dst="10.9.9.9") / TCP(sport=1000, dport=80, seq=99))[:28]
    layers = dissect(bytes(IP(src="10.5.1.0", dst="10.5.1.2") / error / quoted))
    assert names(layers) == ["IPv4", "ICMP", "quoted, the packet that this is about", "IPv4", "TCP"]
    assert layer(layers, "ICMP")["code"] == code
    assert {name: layer(layers, "ICMP")[name] for name in own} == own
    assert layer(layers, "IPv4", 1)["destination"] == "10.9.9.9"
    assert layer(layers, "TCP")["sequence number"] == "99"
    assert layer(layers, "TCP").remark == "cut off: 8 of 20 bytes"


def test_ipv6_and_its_icmp() -> None:
    ping = IPv6(src="fd00::1", dst="fd00::2", hlim=9) / ICMPv6EchoRequest(id=1, seq=2, data=b"abc")
    layers = dissect(bytes(ETHER / ping), "ethernet")
    assert names(layers) == ["Ethernet", "IPv6", "ICMPv6", "data"]
    assert (layer(layers, "IPv6")["hop limit"], layer(layers, "IPv6")["source"]) == ("9", "fd00::1")
    assert layer(layers, "ICMPv6")["checksum"].endswith("(right)")
    too_big = dissect(bytes(IPv6(src="fd00::9", dst="fd00::1") / ICMPv6PacketTooBig(mtu=1400) / ping))
    assert layer(too_big, "ICMPv6")["MTU"] == "1400 bytes"
    assert layer(too_big, "IPv6", 1)["destination"] == "fd00::2"
    no_route = dissect(bytes(IPv6(src="fd00::9", dst="fd00::1") / ICMPv6DestUnreach(code=0) / ping))
    assert layer(no_route, "ICMPv6")["code"] == "0 (no route)"
    asked = dissect(bytes(IPv6(src="fe80::1", dst="ff02::1:ff00:2") / ICMPv6ND_NS(tgt="fd00::2")))
    assert layer(asked, "ICMPv6")["target"] == "fd00::2"


def test_ipv6_extension_headers_are_passed_through() -> None:
    head = IPv6(src="fd00::1", dst="fd00::2")
    layers = dissect(bytes(head / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2) / b"x"))
    assert names(layers) == ["IPv6", "IPv6 extension", "UDP", "data"]
    assert layer(layers, "UDP")["checksum"].endswith("(right)")
    later = dissect(bytes(head / IPv6ExtHdrFragment(offset=100, m=1, nh=17) / PAYLOAD))
    assert names(later) == ["IPv6", "IPv6 fragment", "data"]
    assert layer(later, "IPv6 fragment")["fragment offset"] == "800 bytes"


CHECKSUMMED = [
    (PING, "ICMP"), (IP() / UDP(dport=53) / PAYLOAD, "UDP"), (IP() / TCP() / PAYLOAD[:-1], "TCP"),
    (IPv6() / UDP(dport=53) / PAYLOAD, "UDP"), (IPv6() / TCP() / b"", "TCP"), (IPv6() / ICMPv6EchoRequest(), "ICMPv6"),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "name"), CHECKSUMMED)
def test_checksums_are_judged(packet: Packet, name: str) -> None:
    octets = bytes(packet)
    right = layer(dissect(octets), name)["checksum"]
    assert right.endswith("(right)")
    place = next(field.offset for field in layer(dissect(octets), name).fields if field.name == "checksum")
    damaged = bytearray(octets)
    damaged[place] ^= 0x40
    assert layer(dissect(bytes(damaged)), name)["checksum"].endswith(f"(wrong: {right.split()[0]} would be right)")


def test_ip_header_checksum_is_judged() -> None:
    octets = bytearray(bytes(PING))
    octets[8] -= 1  # a TTL step without its patch
    assert "wrong" in layer(dissect(bytes(octets)), "IPv4")["checksum"]


def test_checksum_left_to_the_device_is_not_called_wrong() -> None:
    octets = bytearray(bytes(IP(src="10.5.1.2", dst="10.5.2.2") / UDP(dport=53) / PAYLOAD))
    pseudo = octets[12:20] + bytes([0, 17]) + octets[24:26]
    octets[26:28] = (checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    assert "the device is to complete it" in layer(dissect(bytes(octets)), "UDP")["checksum"]
    octets[26:28] = b"\0\0"
    assert layer(dissect(bytes(octets)), "UDP")["checksum"] == "0x0000 (none)"


def test_fragments() -> None:
    whole = IP() / UDP(dport=53) / bytes(40)
    first, second = (bytes(one) for one in whole.fragment(fragsize=24))  # type: ignore[no-untyped-call]
    assert "covers more" in layer(dissect(first), "UDP")["checksum"]
    assert dissect(second)[-1].remark == "a fragment other than the first"


def test_bytes_behind_the_packet_are_padding() -> None:
    layers = dissect(bytes(ETHER / PING) + bytes(7), "ethernet")
    assert (layers[-1].name, layers[-1].size) == ("padding", 7)
    assert layer(layers, "ICMP")["checksum"].endswith("(right)")


@pytest.mark.parametrize(
    ("octets", "remark"),
    [
        (b"", "nothing"),
        (b"\x00" * 40, "neither IPv4 nor IPv6"),
        (b"\x44" + bytes(PING)[1:], "no IPv4 header: version or lengths are impossible"),
        (bytes(PING)[:40], "cut off: 40 of 84 bytes"),
        (bytes(PING)[:12], "cut off: 12 of 20 bytes"),
        (bytes(IP() / UDP(len=7)), "no UDP header: its length is impossible"),
        (bytes(IP() / TCP(dataofs=4)), "no TCP header: its length is impossible"),
    ],
)
def test_malformed_input_gets_a_remark(octets: bytes, remark: str) -> None:
    assert remark in [one.remark for one in dissect(octets)]


def test_deep_nesting_is_no_recursion() -> None:
    shell = bytes(IPv6(nh=60)) + bytes([60, 0, 1, 4, 0, 0, 0, 0]) * 8000
    octets = shell[:4] + (64000).to_bytes(2, "big") + shell[6:]
    assert len(dissect(octets)) > 8000


def test_addresses_and_numbers_agree_with_scapy_on_random_headers() -> None:
    generator = random.Random(3)
    for _ in range(300):
        source, destination = (str(IPv4Address(generator.getrandbits(32))) for _ in range(2))
        packet = IP(src=source, dst=destination, tos=generator.getrandbits(8), ttl=generator.getrandbits(8),
                    id=generator.getrandbits(16), proto=253) / generator.randbytes(generator.randrange(64))  # fmt: skip
        read, again = dissect(bytes(packet))[0], IP(bytes(packet))
        assert (read["source"], read["destination"]) == (again.src, again.dst)
        assert (read["DSCP"], read["ECN"].split()[0]) == (str(again.tos >> 2), str(again.tos & 3))
        assert (read["TTL"], read["total length"]) == (str(again.ttl), f"{again.len} bytes")
        assert read["checksum"] == f"{again.chksum:#06x} (right)"
        source6 = IPv6Address(generator.getrandbits(128))
        packet6 = IPv6(src=str(source6), dst="::", tc=generator.getrandbits(8), fl=generator.getrandbits(20), nh=59)
        read = dissect(bytes(packet6))[0]
        assert (read["source"], read["flow label"]) == (str(source6), f"{packet6.fl:#07x}")
        assert read["DSCP"] == str(packet6.tc >> 2)


SEEDS = [
    bytes(packet)
    for packet in (
        UNDERLAY / UDP(dport=8285) / PING,
        UNDERLAY / UDP(dport=8472) / VXLAN() / ETHER / IPv6() / TCP(options=[("MSS", 9)]),
        UNDERLAY6 / UDP(dport=8472) / VXLAN() / INNER / ARP(),
        IP() / ETHER / IPv6() / ICMPv6ND_NS() / ICMPv6NDOptSrcLLAddr(),
        ETHER / IP() / ICMP(type=3, code=4) / PING,
        ETHER / IPv6() / IPv6ExtHdrDestOpt() / ICMPv6PacketTooBig() / IPv6() / UDP(dport=8285) / PING,
        ETHER / ARP(),
    )
]


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255))), st.integers(0, 300))
def test_nothing_raises_and_nothing_points_outside(seed: bytes, edits: list[tuple[int, int]], size: int) -> None:
    octets = bytearray(seed)
    for place, value in edits:
        octets[place % len(octets)] = value
    packet = bytes(octets[:size])
    for layers in (dissect(packet, "ethernet"), dissect(packet[14:], "ip"), dissect(packet[42:], "ip")):
        whole = len(packet) - (0 if layers and layers[0].name == "Ethernet" else 14)
        for one in layers:
            assert 0 <= one.offset <= one.offset + one.size <= max(whole, 0) or whole < 0
            assert all(one.offset <= field.offset and field.offset + field.size <= one.offset + one.size
                       for field in one.fields)  # fmt: skip
        assert format_layers(layers).count("\n") >= len(layers) - 1


def test_layout_for_the_terminal() -> None:
    text = format_layers(dissect(bytes(UNDERLAY / UDP(dport=8285) / PING), "ethernet"), "| ").splitlines()
    assert text[0] == "| Ethernet  [14 bytes from 0]"
    assert text[1] == "|       0  destination          02:00:00:00:00:02"
    assert "|     IPv4  [20 bytes from 42]" in text
