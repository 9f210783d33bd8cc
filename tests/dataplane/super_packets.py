"""Super-packets for tests, and the oracle for them: scapy makes each segment that one becomes."""

import struct
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Raw

from .packets import naive_sum

NONE, TCPV4, TCPV6, UDP_L4, ECN = 0, 1, 4, 5, 0x80
NEEDS_CSUM = 1
TCP_OFFSET, UDP_OFFSET = 16, 6
"""Where the checksum stands in a transport header."""


@dataclass(frozen=True)
class VnetHdr:
    """The fields of a vnet_hdr, host order."""

    flags: int = NEEDS_CSUM
    gso_type: int = NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def packed(self) -> bytes:
        return struct.pack("=BBHHHH", self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start,
                           self.csum_offset)

    @staticmethod
    def parsed(data: bytes) -> "VnetHdr":
        return VnetHdr(*struct.unpack("=BBHHHH", data))

    def but(self, **changes: int) -> bytes:
        """Packed, with fields changed."""
        return replace(self, **changes).packed()


def text(size: int, first: int = 0) -> bytes:
    """Payload in which every place can be told from its neighbours."""
    return bytes((first + i * 7 + i // 256) & 0xFF for i in range(size))


@dataclass(frozen=True)
class Flow:
    """Where packets go and what their headers say; the plain values are those of a bulk transfer."""

    version: int = 4
    protocol: str = "tcp"
    ident: int = 0x1234
    dont_fragment: bool = True
    tos: int = 0
    ttl: int = 64
    flags: str = "A"
    sequence: int = 1000
    acknowledgment: int = 77
    window: int = 8192
    urgent: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    ip_options: bytes = b""
    extension: bool = False
    label: int = 0
    sport: int = 4000
    dport: int = 5201
    source: str = ""
    destination: str = ""

    def layers(self, payload: bytes) -> Any:  # noqa: ANN401 - scapy has no types
        """The packet with all of the payload as scapy sees it."""
        ends = {4: ("10.5.1.2", "10.5.2.2"), 6: ("fd05:0:0:1::2", "fd05:0:0:2::2")}[self.version]
        source, destination = self.source or ends[0], self.destination or ends[1]
        ip: Any
        if self.version == 4:
            ip = IP(src=source, dst=destination, id=self.ident, flags="DF" if self.dont_fragment else 0, tos=self.tos,
                    ttl=self.ttl, options=self.ip_options or [])
        else:
            ip = IPv6(src=source, dst=destination, tc=self.tos, hlim=self.ttl, fl=self.label)
            if self.extension:
                ip /= IPv6ExtHdrDestOpt()
        if self.protocol == "tcp":
            return ip / TCP(sport=self.sport, dport=self.dport, flags=self.flags, seq=self.sequence,
                            ack=self.acknowledgment, window=self.window, urgptr=self.urgent,
                            options=list(self.options)) / Raw(payload)
        return ip / UDP(sport=self.sport, dport=self.dport) / Raw(payload)

    def packet(self, payload: bytes) -> bytes:
        """One finished packet."""
        return bytes(self.layers(payload))

    def transport(self) -> int:
        """The offset of the transport header."""
        return 20 + len(self.ip_options) if self.version == 4 else 48 if self.extension else 40

    def header(self, data: bytes) -> int:
        """The offset of the payload in a packet of this flow."""
        return self.transport() + (8 if self.protocol == "udp" else (data[self.transport() + 12] >> 4) * 4)

    def super_packet(self, payload: bytes, size: int) -> tuple[bytes, VnetHdr]:
        """A super-packet as the kernel gives it: its checksum is the folded sum of the pseudo header."""
        data = bytearray(self.packet(payload))
        start, udp = self.transport(), self.protocol == "udp"
        offset = UDP_OFFSET if udp else TCP_OFFSET
        data[start + offset:start + offset + 2] = self.pseudo(bytes(data)).to_bytes(2, "big")
        kind = UDP_L4 if udp else TCPV4 if self.version == 4 else TCPV6
        kind |= ECN if "C" in self.flags and not udp else 0
        return bytes(data), VnetHdr(NEEDS_CSUM, kind, self.header(bytes(data)), size, start, offset)

    def pseudo(self, data: bytes) -> int:
        """The folded sum of the pseudo header, of RFC 768 or RFC 8200."""
        length, number = len(data) - self.transport(), 17 if self.protocol == "udp" else 6
        ends = data[12:20] if self.version == 4 else data[8:40]
        return naive_sum(ends + struct.pack("!II", length, number))

    def segments(self, payload: bytes, size: int) -> list[bytes]:
        """What a super-packet becomes, each segment made by scapy on its own."""
        chunks = [payload[at:at + size] for at in range(0, len(payload), size)]
        made = []
        for i, chunk in enumerate(chunks):
            flags = self.flags if i == len(chunks) - 1 else self.flags.replace("F", "").replace("P", "")
            flags = flags if i == 0 else flags.replace("C", "")
            one = replace(self, ident=(self.ident + i) & 0xFFFF, flags=flags,
                          sequence=(self.sequence + i * size) & 0xFFFFFFFF)
            made.append(one.packet(chunk))
        return made


TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (0x01020304, 0x05060708)))
BULK4 = Flow()
BULK6 = Flow(version=6)
UDP4 = Flow(protocol="udp")
UDP6 = Flow(version=6, protocol="udp")
ALL = (BULK4, BULK6, UDP4, UDP6)
NAMES = [f"{flow.protocol}{flow.version}" for flow in ALL]
