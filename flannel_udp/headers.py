"""The headers that can be met on the overlay and the underlay, as tables: names, widths in bits, how a value reads.

The data plane has its own drawings of the same headers in src/wire. These are for reading aloud, and share nothing with
those, so that what explains a packet does not repeat the mistakes of what made it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Show = Callable[[int], str]


@dataclass(frozen=True)
class Field:
    """One field of a header: `value` as a human reads it; `offset` and `size` in bytes, from the packet's start."""

    name: str
    value: str
    offset: int
    size: int


class Header:
    """A header's table: (name, bits, how the value reads) in the order of the wire."""

    def __init__(self, name: str, *fields: tuple[str, int, Show]) -> None:
        self.name = name
        self.fields = fields
        self.size = sum(bits for _, bits, _ in fields) // 8

    def offset(self, name: str) -> int:
        """Where the named field begins, in bytes."""
        names = [field for field, _, _ in self.fields]
        return sum(bits for _, bits, _ in self.fields[: names.index(name)]) // 8

    def read(self, octets: bytes) -> dict[str, int]:
        """The values of the fields that lie wholly within `octets`."""
        number, available = int.from_bytes(octets, "big"), 8 * len(octets)
        values, end = {}, 0
        for name, bits, _ in self.fields:
            end += bits
            if end > available:
                break
            values[name] = number >> (available - end) & ((1 << bits) - 1)
        return values

    def show(self, values: Mapping[str, int], start: int) -> tuple[Field, ...]:
        """The fields as a human reads them."""
        shown, bit = [], 0
        for name, bits, show in self.fields:
            if name in values:
                offset = bit // 8
                shown.append(Field(name, show(values[name]), start + offset, (bit + bits + 7) // 8 - offset))
            bit += bits
        return tuple(shown)


def named(names: Mapping[int, str], form: str = "d") -> Show:
    """Show a number with its name, where it has one."""
    return lambda value: f"{value:{form}} ({names[value]})" if value in names else f"{value:{form}}"


def _flags(*names: str) -> Show:
    """Names of bits, given from the highest down, read from the lowest up."""
    return lambda value: " ".join(name for bit, name in enumerate(reversed(names)) if value >> bit & 1) or "none"


def _hex(value: int) -> str:
    return f"{value:#06x}"


def _octets(value: int) -> str:
    return f"{value} bytes"


def _words(value: int) -> str:
    return f"{value} (x 4 = {4 * value} bytes)"


def _mac(value: int) -> str:
    """A MAC; the lowest bit of its first octet says that it names a group (IEEE 802, 8.2)."""
    written = value.to_bytes(6, "big").hex(":")
    if value == (1 << 48) - 1:
        return f"{written} (broadcast)"
    return f"{written} (multicast)" if value >> 40 & 1 else written


def _ipv4(value: int) -> str:
    return str(IPv4Address(value))


def _ipv6(value: int) -> str:
    return str(IPv6Address(value))


ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "VLAN tag"}
PROTOCOLS = {
    0: "hop-by-hop options", 1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 43: "routing", 44: "fragment", 50: "ESP",
    51: "AH", 58: "ICMPv6", 59: "nothing", 60: "destination options",
}  # fmt: skip
ECN = {0: "not ECN-capable", 1: "ECT(1)", 2: "ECT(0)", 3: "congestion experienced"}
ICMP_TYPES = {
    0: "echo reply", 3: "destination unreachable", 4: "source quench", 5: "redirect", 8: "echo request",
    9: "router advertisement", 10: "router solicitation", 11: "time exceeded", 12: "parameter problem",
    13: "timestamp", 14: "timestamp reply",
}  # fmt: skip
ICMP_CODES = {
    3: {
        0: "net unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
        4: "fragmentation needed", 5: "source route failed", 9: "net administratively prohibited",
        10: "host administratively prohibited", 13: "administratively prohibited",
    },
    5: {0: "for the net", 1: "for the host"},
    11: {0: "TTL ended in transit", 1: "fragment reassembly"},
}  # fmt: skip
ICMPV6_TYPES = {
    1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem",
    128: "echo request", 129: "echo reply", 130: "multicast listener query", 131: "multicast listener report",
    132: "multicast listener done", 133: "router solicitation", 134: "router advertisement",
    135: "neighbour solicitation", 136: "neighbour advertisement", 137: "redirect",
    143: "multicast listener report v2",
}  # fmt: skip
ICMPV6_CODES = {
    1: {
        0: "no route", 1: "administratively prohibited", 2: "beyond the scope of the source",
        3: "address unreachable", 4: "port unreachable", 5: "source address failed policy", 6: "route rejected",
    },
    3: {0: "hop limit ended in transit", 1: "fragment reassembly"},
}  # fmt: skip
TCP_OPTIONS = {0: "end", 1: "no-op", 2: "MSS", 3: "window scale", 4: "SACK permitted", 5: "SACK", 8: "timestamps"}

ETHERNET = Header("Ethernet", ("destination", 48, _mac), ("source", 48, _mac), ("type", 16, named(ETHERTYPES, "#06x")))
ARP = Header(
    "ARP", ("hardware type", 16, named({1: "Ethernet"})), ("protocol type", 16, named(ETHERTYPES, "#06x")),
    ("hardware size", 8, _octets), ("protocol size", 8, _octets),
    ("operation", 16, named({1: "request: who has the target address?", 2: "reply"})),
    ("sender MAC", 48, _mac), ("sender address", 32, _ipv4), ("target MAC", 48, _mac), ("target address", 32, _ipv4),
)  # fmt: skip
IPV4 = Header(
    "IPv4", ("version", 4, str), ("header length", 4, _words), ("DSCP", 6, str), ("ECN", 2, named(ECN)),
    ("total length", 16, _octets), ("identification", 16, _hex), ("flags", 3, _flags("reserved", "DF", "MF")),
    ("fragment offset", 13, lambda value: _octets(8 * value)), ("TTL", 8, str), ("protocol", 8, named(PROTOCOLS)),
    ("checksum", 16, _hex), ("source", 32, _ipv4), ("destination", 32, _ipv4),
)  # fmt: skip
IPV6 = Header(
    "IPv6", ("version", 4, str), ("DSCP", 6, str), ("ECN", 2, named(ECN)), ("flow label", 20, "{:#07x}".format),
    ("payload length", 16, _octets), ("next header", 8, named(PROTOCOLS)), ("hop limit", 8, str),
    ("source", 128, _ipv6), ("destination", 128, _ipv6),
)  # fmt: skip
EXTENSION = Header(
    "IPv6 extension", ("next header", 8, named(PROTOCOLS)), ("length", 8, lambda value: _octets(8 * value + 8))
)
FRAGMENT = Header(
    "IPv6 fragment", ("next header", 8, named(PROTOCOLS)), ("reserved", 8, str),
    ("fragment offset", 13, lambda value: _octets(8 * value)), ("flags", 3, _flags("reserved", "reserved", "MF")),
    ("identification", 32, "{:#010x}".format),
)  # fmt: skip
UDP = Header(
    "UDP", ("source port", 16, str), ("destination port", 16, str), ("length", 16, _octets), ("checksum", 16, _hex)
)
TCP = Header(
    "TCP", ("source port", 16, str), ("destination port", 16, str), ("sequence number", 32, str),
    ("acknowledgment", 32, str), ("header length", 4, _words), ("reserved", 4, str),
    ("flags", 8, _flags("CWR", "ECE", "URG", "ACK", "PSH", "RST", "SYN", "FIN")), ("window", 16, str),
    ("checksum", 16, _hex), ("urgent pointer", 16, str),
)  # fmt: skip
_CODE = (("code", 8, str), ("checksum", 16, _hex))
ICMP = Header("ICMP", ("type", 8, named(ICMP_TYPES)), *_CODE)
ICMPV6 = Header("ICMPv6", ("type", 8, named(ICMPV6_TYPES)), *_CODE)
ECHO = Header("echo", ("identifier", 16, str), ("sequence number", 16, str))
NEXT_HOP_MTU = Header("fragmentation needed", ("unused", 16, str), ("next-hop MTU", 16, _octets))
GATEWAY = Header("redirect", ("gateway", 32, _ipv4))
MTU = Header("packet too big", ("MTU", 32, _octets))
UNUSED = Header("error", ("unused", 32, str))
NEIGHBOUR = Header(
    "neighbour", ("flags", 3, _flags("router", "solicited", "override")), ("reserved", 29, str), ("target", 128, _ipv6)
)
NEIGHBOUR_MAC = Header(  # RFC 4861, 4.6.1
    "option", ("type", 8, named({1: "source link-layer address", 2: "target link-layer address"})),
    ("length", 8, lambda value: _octets(8 * value)), ("MAC", 48, _mac),
)  # fmt: skip
ICMP_OWN = {0: ECHO, 3: UNUSED, 4: UNUSED, 5: GATEWAY, 8: ECHO, 11: UNUSED, 12: UNUSED}
"""What follows the checksum, by ICMP type."""
ICMPV6_OWN = {
    1: UNUSED, 2: MTU, 3: UNUSED, 4: UNUSED, 128: ECHO, 129: ECHO, 135: NEIGHBOUR, 136: NEIGHBOUR,
}  # fmt: skip
VXLAN_I, VXLAN_G = 0x08, 0x80
"""Of the flags: the VNI is valid (RFC 7348, 5); a group policy's id lies in the reserved field (a draft's, Linux's)."""
VXLAN = Header(  # RFC 7348, 5
    "VXLAN",
    ("flags", 8, named({VXLAN_I: "I: the VNI is valid", VXLAN_I | VXLAN_G: "I and G: VNI and group policy"}, "#04x")),
    ("reserved", 24, str), ("VNI", 24, str), ("reserved too", 8, str),
)  # fmt: skip


def arp_fault(values: Mapping[str, int]) -> str:
    """What keeps an ARP message from being one of IPv4 over Ethernet (RFC 826); nothing if it is."""
    wanted = {"hardware type": 1, "protocol type": 0x0800, "hardware size": 6, "protocol size": 4}
    wrong = [name for name, value in wanted.items() if values[name] != value]
    if wrong:
        return f"not of IPv4 over Ethernet, by {' and '.join(wrong)}"
    return "" if values["operation"] in (1, 2) else "neither request nor reply"


def vxlan_fault(values: Mapping[str, int]) -> str:
    """What is wrong with a VXLAN header, and what becomes of its packet (RFC 7348, 5; Linux's drivers/net/vxlan)."""
    if not values["flags"] & VXLAN_I:
        return "without the I flag there is no VNI: every receiver drops this"
    if values["flags"] == VXLAN_I | VXLAN_G and not values["reserved too"]:
        return "of group policy: a Linux device without gbp drops this"
    if values["flags"] != VXLAN_I or values["reserved"] or values["reserved too"]:
        return "reserved bits are set: to be ignored by RFC 7348, but Linux drops this"
    return ""
