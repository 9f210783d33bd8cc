"""Bytes of a packet -> layers of named fields, for whoever explains packets: the lab, its demo, the tutorial.

The tables of the headers are in headers.py; here is what follows what. Nothing here raises for what the bytes are: what
cannot be read is a layer of data with a remark, and of what is cut off the fields that are there are shown. Checksums
are computed and said to be right or wrong.
"""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from flannel_udp import headers
from flannel_udp._dataplane import UDP_PORT, VXLAN_PORT
from flannel_udp.headers import Field, Header

VXLAN_PORTS = (VXLAN_PORT, 4789)
"""Linux's and flannel's port, and the one that RFC 7348 registers."""

Step = tuple[str, int, int]
"""What comes next in a packet: the reader's name, its first byte, the byte behind its last."""


@dataclass(frozen=True)
class Layer:
    """One header or piece of data; `depth` counts what it is wrapped in: tunnels, and quotation by an ICMP error."""

    name: str
    offset: int
    size: int
    fields: tuple[Field, ...] = ()
    remark: str = ""
    depth: int = 0

    def __getitem__(self, name: str) -> str:
        """The value of the named field."""
        return next(field.value for field in self.fields if field.name == name)


def dissect(
    packet: bytes,
    first: Literal["ethernet", "ip"] = "ip",
    *,
    udp_port: int = UDP_PORT,
    vxlan_ports: Collection[int] = VXLAN_PORTS,
) -> list[Layer]:
    """Take a packet apart; `first` is "ethernet" or, as on a TUN, "ip"."""
    return _Dissection(packet, udp_port, vxlan_ports).run(first)


def format_layers(layers: list[Layer], indent: str = "") -> str:
    """Lay a dissected packet out for a terminal: offset, name and value of each field."""
    lines = []
    for layer in layers:
        margin = f"{indent}{'    ' * layer.depth}"
        extent = f"  [{layer.size} bytes from {layer.offset}]" if layer.size else ""
        remark = f"  {layer.remark}" if layer.remark else ""
        lines.append(f"{margin}{layer.name}{extent}{remark}")
        lines += [f"{margin}  {field.offset:5}  {field.name:<20} {field.value}" for field in layer.fields]
    return "\n".join(lines)


def checksum(octets: bytes | bytearray) -> int:
    """Compute the Internet checksum (RFC 1071): 0 over data that contains its own, right, checksum."""
    padded = octets + bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class _Dissection:
    """One packet on its way through the readers; each reads a layer and says what comes next."""

    def __init__(self, packet: bytes, udp_port: int, vxlan_ports: Collection[int]) -> None:
        self.packet = packet
        self.udp_port = udp_port
        self.vxlan_ports = vxlan_ports
        self.layers: list[Layer] = []
        self.trailers: list[Layer] = []
        self.depth = 0
        self.whole = True  # the transport's checksum covers just what is here
        self.pseudo = b""  # addresses and protocol for the transport's checksum (RFC 9293 3.1, RFC 8200 8.1)

    def run(self, first: str) -> list[Layer]:
        readers: dict[str, Callable[[int, int], Step | None]] = {
            "ethernet": self._ethernet, "ip": self._ip, "arp": self._arp, "ipv4": self._ipv4, "ipv6": self._ipv6,
            "extension": self._extension, "fragment": self._fragment, "icmp": self._icmp, "icmpv6": self._icmpv6,
            "option": self._option, "tcp": self._tcp, "udp": self._udp, "vxlan": self._vxlan, "flannel": self._flannel,
            "data": self._rest,
        }  # fmt: skip
        step: Step | None = (first, 0, len(self.packet))
        while step:  # no recursion: a hostile packet may nest deeper than Python's stack
            reader, start, end = step
            step = readers[reader](start, end)
        return self.layers + self.trailers[::-1]

    # What the readers share.

    def _read(self, header: Header, start: int, end: int) -> dict[str, int] | None:
        """A header's values, or None where it is cut off: then what is left of it is already shown."""
        values = header.read(self.packet[start : min(end, start + header.size)])
        if end - start >= header.size:
            return values
        self._add(header.name, start, end, header.show(values, start), f"cut off: {end - start} of {header.size} bytes")
        return None

    def _add(self, name: str, start: int, end: int, fields: tuple[Field, ...] = (), remark: str = "") -> None:
        self.layers.append(Layer(name, start, end - start, fields, remark, self.depth))

    def _data(self, start: int, end: int, remark: str = "", name: str = "data") -> Layer:
        octets = self.packet[start:end]
        shown = octets[:16].hex(" ") + (" ..." if len(octets) > 16 else "")
        return Layer(name, start, end - start, (Field("bytes", shown, start, end - start),), remark, self.depth)

    def _stop(self, start: int, end: int, remark: str = "") -> Step | None:
        """The rest is data; nothing comes next."""
        if start < end or remark:
            self.layers.append(self._data(start, end, remark))
        return None

    def _trim(self, end: int, outer_end: int) -> int:
        """Keep what lies behind the layer's own end for later."""
        if end < outer_end:
            self.trailers.append(self._data(end, outer_end, "belongs to no layer above", "padding"))
        return min(end, outer_end)

    def _judge(self, given: int, place: int, start: int, end: int, pseudo: bytes = b"") -> str:
        """What to say of a checksum found at `place`, over start..end and the pseudo header."""
        octets = bytearray(pseudo + self.packet[start:end])
        if checksum(octets) == 0:
            return f"{given:#06x} (right)"
        if pseudo and given == checksum(pseudo) ^ 0xFFFF:
            return f"{given:#06x} (the pseudo header's sum only: the device is to complete it)"
        at = len(pseudo) + place - start
        octets[at : at + 2] = b"\0\0"
        return f"{given:#06x} (wrong: {checksum(octets):#06x} would be right)"

    def _judge_transport(self, given: int, place: int, start: int, end: int) -> str:
        if not self.whole:
            return f"{given:#06x} (covers more than is here)"
        addresses, protocol = self.pseudo[:-1], self.pseudo[-1]
        form = "!HH" if len(addresses) == 8 else "!II"
        size = end - start
        tail = struct.pack(form, protocol, size) if len(addresses) == 8 else struct.pack(form, size, protocol)
        return self._judge(given, place, start, end, addresses + tail)

    # One reader a layer.

    def _rest(self, start: int, end: int) -> Step | None:
        return self._stop(start, end)

    def _ethernet(self, start: int, end: int) -> Step | None:
        values = self._read(headers.ETHERNET, start, end)
        if values is None:
            return None
        inside = start + headers.ETHERNET.size
        tagged = self.depth > 0 and values["type"] == 0x8100
        remark = "a tag does not belong into a tunnel: RFC 7348, 6.1, has this dropped" if tagged else ""
        self._add(headers.ETHERNET.name, start, inside, headers.ETHERNET.show(values, start), remark)
        return {0x0800: "ipv4", 0x0806: "arp", 0x86DD: "ipv6"}.get(values["type"], "data"), inside, end

    def _arp(self, start: int, end: int) -> Step | None:
        values = self._read(headers.ARP, start, end)
        if values is None:
            return None
        inside = start + headers.ARP.size
        self._add(headers.ARP.name, start, inside, headers.ARP.show(values, start), headers.arp_fault(values))
        self._trim(inside, end)
        return None

    def _ip(self, start: int, end: int) -> Step | None:
        version = self.packet[start] >> 4 if start < end else 0
        if version in (4, 6):
            return f"ipv{version}", start, end
        return self._stop(start, end, "neither IPv4 nor IPv6" if start < end else "nothing")

    def _ipv4(self, start: int, end: int) -> Step | None:
        values = self._read(headers.IPV4, start, end)
        if values is None:
            return None
        inside, behind = start + 4 * values["header length"], start + values["total length"]
        if values["version"] != 4 or not start + headers.IPV4.size <= inside <= min(end, behind):
            return self._stop(start, end, "no IPv4 header: version or lengths are impossible")
        verdict = self._judge(values["checksum"], start + headers.IPV4.offset("checksum"), start, inside)
        fields = _say(headers.IPV4.show(values, start), checksum=verdict)
        if start + headers.IPV4.size < inside:
            options = self.packet[start + headers.IPV4.size : inside]
            fields += (Field("options", options.hex(" "), start + headers.IPV4.size, len(options)),)
        remark = f"cut off: {end - start} of {behind - start} bytes" if end < behind else ""
        self._add(headers.IPV4.name, start, inside, fields, remark)
        fragmented = bool(values["flags"] & 1) or values["fragment offset"] > 0
        self.whole = not fragmented and behind <= end
        addresses = self.packet[start + headers.IPV4.offset("source") : start + headers.IPV4.size]
        self.pseudo = addresses + bytes([values["protocol"]])
        end = self._trim(behind, end)
        if values["fragment offset"]:
            return self._stop(inside, end, "a fragment other than the first")
        return {1: "icmp", 6: "tcp", 17: "udp"}.get(values["protocol"], "data"), inside, end

    def _ipv6(self, start: int, end: int) -> Step | None:
        values = self._read(headers.IPV6, start, end)
        if values is None:
            return None
        if values["version"] != 6:
            return self._stop(start, end, "no IPv6 header: the version is not 6")
        inside = start + headers.IPV6.size
        behind = inside + values["payload length"]
        remark = f"cut off: {end - start} of {behind - start} bytes" if end < behind else ""
        self._add(headers.IPV6.name, start, inside, headers.IPV6.show(values, start), remark)
        self.whole = behind <= end
        self.pseudo = self.packet[start + headers.IPV6.offset("source") : inside]
        return self._after_ipv6(values["next header"], inside, self._trim(behind, end))

    def _after_ipv6(self, protocol: int, start: int, end: int) -> Step:
        self.pseudo = self.pseudo[:32] + bytes([protocol])
        extensions = dict.fromkeys((0, 43, 60), "extension")
        return {6: "tcp", 17: "udp", 44: "fragment", 58: "icmpv6", **extensions}.get(protocol, "data"), start, end

    def _extension(self, start: int, end: int) -> Step | None:
        values = self._read(headers.EXTENSION, start, end)
        if values is None:
            return None
        inside = start + 8 * values["length"] + 8
        if inside > end:
            return self._stop(start, end, "an IPv6 extension header that is cut off")
        self._add(headers.EXTENSION.name, start, inside, headers.EXTENSION.show(values, start))
        return self._after_ipv6(values["next header"], inside, end)

    def _fragment(self, start: int, end: int) -> Step | None:
        values = self._read(headers.FRAGMENT, start, end)
        if values is None:
            return None
        inside = start + headers.FRAGMENT.size
        self._add(headers.FRAGMENT.name, start, inside, headers.FRAGMENT.show(values, start))
        self.whole = self.whole and not values["fragment offset"] and not values["flags"] & 1
        if values["fragment offset"]:
            return self._stop(inside, end, "a fragment other than the first")
        return self._after_ipv6(values["next header"], inside, end)

    def _icmp(self, start: int, end: int) -> Step | None:
        values = self._read(headers.ICMP, start, end)
        if values is None:
            return None
        verdict = f"{values['checksum']:#06x} (covers more than is here)"
        if self.whole:
            verdict = self._judge(values["checksum"], start + headers.ICMP.offset("checksum"), start, end)
        kind, code = values["type"], values["code"]
        own = headers.NEXT_HOP_MTU if (kind, code) == (3, 4) else headers.ICMP_OWN.get(kind)
        meaning = headers.named(headers.ICMP_CODES.get(kind, {}))(code)
        fields = _say(headers.ICMP.show(values, start), checksum=verdict, code=meaning)
        return self._icmp_rest(headers.ICMP, fields, own, start, end, error=kind in (3, 4, 5, 11, 12))

    def _icmpv6(self, start: int, end: int) -> Step | None:
        values = self._read(headers.ICMPV6, start, end)
        if values is None:
            return None
        verdict = self._judge_transport(values["checksum"], start + headers.ICMPV6.offset("checksum"), start, end)
        kind, code = values["type"], values["code"]
        meaning = headers.named(headers.ICMPV6_CODES.get(kind, {}))(code)
        fields = _say(headers.ICMPV6.show(values, start), checksum=verdict, code=meaning)
        return self._icmp_rest(headers.ICMPV6, fields, headers.ICMPV6_OWN.get(kind), start, end, error=kind < 128)

    def _icmp_rest(
        self, icmp: Header, fields: tuple[Field, ...], own: Header | None, start: int, end: int, *, error: bool
    ) -> Step | None:
        """What follows type, code and checksum: the type's own fields; then, in an error, the packet it is about."""
        inside, remark = start + icmp.size, ""
        if own:
            octets = self.packet[inside : min(end, inside + own.size)]
            fields += own.show(own.read(octets), inside)
            remark = "" if len(octets) == own.size else "cut off"
            inside += len(octets)
        self._add(icmp.name, start, inside, fields, remark)
        if not error or inside >= end:
            return "option" if own is headers.NEIGHBOUR else "data", inside, end
        self.depth += 1
        self._add("quoted, the packet that this is about", inside, inside)
        return "ip", inside, end

    def _option(self, start: int, end: int) -> Step | None:
        """The link-layer address that follows a neighbour's; other options are data."""
        if self.packet[start : min(end, start + 2)] not in (b"\1\1", b"\2\1"):
            return "data", start, end
        values = self._read(headers.NEIGHBOUR_MAC, start, end)
        if values is None:
            return None
        inside = start + headers.NEIGHBOUR_MAC.size
        self._add(headers.NEIGHBOUR_MAC.name, start, inside, headers.NEIGHBOUR_MAC.show(values, start))
        return "option", inside, end

    def _tcp(self, start: int, end: int) -> Step | None:
        values = self._read(headers.TCP, start, end)
        if values is None:
            return None
        inside = start + 4 * values["header length"]
        if not start + headers.TCP.size <= inside <= end:
            return self._stop(start, end, "no TCP header: its length is impossible")
        verdict = self._judge_transport(values["checksum"], start + headers.TCP.offset("checksum"), start, end)
        fields = _say(headers.TCP.show(values, start), checksum=verdict)
        if start + headers.TCP.size < inside:
            options = self.packet[start + headers.TCP.size : inside]
            fields += (Field("options", _tcp_options(options), start + headers.TCP.size, len(options)),)
        self._add(headers.TCP.name, start, inside, fields)
        return "data", inside, end

    def _udp(self, start: int, end: int) -> Step | None:
        values = self._read(headers.UDP, start, end)
        if values is None:
            return None
        inside, behind = start + headers.UDP.size, start + values["length"]
        if behind < inside or (self.whole and behind > end):
            return self._stop(start, end, "no UDP header: its length is impossible")
        verdict = f"{0:#06x} (none)"
        if not values["checksum"] and len(self.pseudo) > 9:
            verdict = f"{0:#06x} (none: receivers of IPv6 drop this unless told otherwise, RFC 6935)"
        if values["checksum"]:
            place = start + headers.UDP.offset("checksum")
            verdict = self._judge_transport(values["checksum"], place, start, min(behind, end))
        self._add(headers.UDP.name, start, inside, _say(headers.UDP.show(values, start), checksum=verdict))
        end = self._trim(behind, end)
        port = values["destination port"]
        tunnel = "vxlan" if port in self.vxlan_ports else "flannel" if port == self.udp_port else "data"
        return (tunnel if inside < end else "data"), inside, end

    def _vxlan(self, start: int, end: int) -> Step | None:
        values = self._read(headers.VXLAN, start, end)
        if values is None:
            return None
        inside = start + headers.VXLAN.size
        self._add(headers.VXLAN.name, start, inside, headers.VXLAN.show(values, start), headers.vxlan_fault(values))
        self.depth += 1
        return "ethernet", inside, end

    def _flannel(self, start: int, end: int) -> Step:
        self._add("flannel udp", start, start, remark="no header of its own: the payload is one raw IP packet")
        self.depth += 1
        return "ip", start, end


def _say(fields: tuple[Field, ...], **texts: str) -> tuple[Field, ...]:
    """Put better words to some fields."""
    return tuple(replace(field, value=texts.get(field.name, field.value)) for field in fields)


def _tcp_options(options: bytes) -> str:
    """The list of TCP options (RFC 9293 3.1), with the numbers where they have any."""
    words: list[str] = []
    at = 0
    while at < len(options):
        kind = options[at]
        size = 1 if kind < 2 else options[at + 1] if at + 1 < len(options) else 0
        if (size < 2 and kind > 1) or at + size > len(options):
            return ", ".join([*words, f"unreadable {options[at:].hex(' ')}"])
        name, body = headers.TCP_OPTIONS.get(kind, f"option {kind}"), options[at + 2 : at + size]
        whole = size in (3, 4) and kind in (2, 3)
        words.append(f"{name} {int.from_bytes(body, 'big')}" if whole else f"{name} {body.hex()}".rstrip())
        at += size
        if kind == 0:
            break
    return ", ".join(words)
