"""What passes an interface, caught frame by frame, and what two foreign programs make of it: tshark and scapy."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from scapy.utils import PcapWriter

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path

    from ..netns.topology import Place

ETH_P_ALL = 3  # linux/if_ether.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/socket.h, linux/if_packet.h


class Wiretap:
    """All frames of an interface, both ways, from now on."""

    def __init__(self, place: Place, interface: str) -> None:
        with place.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self) -> list[bytes]:
        """Those that have passed; a kernel puts them here as it sends or receives them, so none is on its way."""
        caught: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                caught.append(self._socket.recv(1 << 17))
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert not dropped, f"{dropped} frames were missed"
        self._socket.close()
        return caught


class Packet(NamedTuple):
    """What tells one inner packet from another, and does not change on its way."""

    source: str
    destination: str
    length: str
    """In bytes, of IPv6 without its header."""
    checksum: str
    """Of TCP, UDP or ICMP."""

    def between(self, addresses: Container[bytes]) -> bool:
        """Whether both ends are among these addresses."""
        return all(ip_address(end).packed in addresses for end in (self.source, self.destination))


_IP = ("ip.src", "ip.dst", "ip.len")
_IPV6 = ("ipv6.src", "ipv6.dst", "ipv6.plen")
_CHECKSUMS = {"tcp": "tcp.checksum", "udp": "udp.checksum", "icmp": "icmp.checksum", "icmpv6": "icmpv6.checksum"}
_STRICT = tuple(word for layer in ("ip", "udp", "tcp") for word in ("-o", f"{layer}.check_checksum:TRUE"))
# Between ports that kernels give out anything may pass, and tshark must not guess at it: random bytes look like RTCP.
_UNNAMED = tuple(word for layer in ("udp", "tcp") for word in ("-d", f"{layer}.port==32768-60999,data"))


def save(frames: Sequence[bytes], file: Path) -> Path:
    """Write them where other programs can read them."""
    with PcapWriter(f"{file}", linktype=1) as writer:  # Ethernet
        for frame in frames:
            writer.write(frame)
    return file


class Shark:
    """tshark on a file of frames; `ports`: which protocol it is to expect on a UDP port ("vxlan", "ip")."""

    def __init__(self, file: Path, ports: dict[int, str]) -> None:
        expected = [word for port, layer in ports.items() for word in ("-d", f"udp.port=={port},{layer}")]
        self._argv = ["tshark", "-n", "-r", f"{file}", *_STRICT, *_UNNAMED, *expected]

    def read(self, *more: str) -> list[str]:
        done = subprocess.run([*self._argv, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def faults(self) -> list[str]:
        """What it calls malformed or an error, or has a wrong checksum."""
        bad = " || ".join(f"{layer}.checksum.status == Bad" for layer in _CHECKSUMS)
        return self.read("-Y", f"_ws.malformed || _ws.expert.severity == error || {bad}", "-V")

    def inner(self, family: int, wanted: str = "") -> list[Packet]:
        """The innermost packets of TCP, UDP and ICMP of one family, of those frames that a filter wants."""
        fields = [*(_IP if family == 4 else _IPV6), "frame.protocols", *_CHECKSUMS.values()]
        rows = self.read("-T", "fields", "-E", "occurrence=l", *(word for name in fields for word in ("-e", name)),
                         *(("-Y", wanted) if wanted else ()))
        return [packet for row in rows if (packet := _packet(row.split("\t"), family))]


def _packet(row: list[str], family: int) -> Packet | None:
    source, destination, length, protocols, *checksums = row
    layers = protocols.split(":")
    own, other = ("ip", "ipv6") if family == 4 else ("ipv6", "ip")
    innermost = next((layer for layer in reversed(layers) if layer in (own, other)), "")
    after = layers[len(layers) - layers[::-1].index(innermost)] if innermost == own and layers[-1] != own else ""
    if after not in _CHECKSUMS:
        return None
    return Packet(source, destination, length, checksums[list(_CHECKSUMS).index(after)])


def at_rest(packet: bytes) -> bytes:
    """An IP packet without what every hop changes: TTL and header checksum, or hop limit."""
    if packet[0] >> 4 == 4:
        return packet[:8] + packet[9:10] + packet[12:]
    return packet[:7] + packet[8:]
