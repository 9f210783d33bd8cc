"""Offloads of a link, read and set through the ethtool ioctl (the program ethtool is not everywhere)."""

import fcntl
import socket
import struct
from array import array
from collections.abc import Mapping

# Specification: linux/sockios.h, linux/ethtool.h.
SIOCETHTOOL = 0x8946
GSTRINGS, GSSET_INFO, GFEATURES, SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
FEATURE_STRINGS = 4
STRING = 32

TUNNEL = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")


def _ioctl(name: str, command: bytes) -> bytes:
    """Pass one command; return what the kernel made of it."""
    buffer = array("B", command)
    address, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), address))
    return buffer.tobytes()


def names(link: str) -> list[str]:
    """Return the kernel's names of all offloads, by bit."""
    told = _ioctl(link, struct.pack("IIQI", GSSET_INFO, 0, 1 << FEATURE_STRINGS, 0))
    (count,) = struct.unpack_from("I", told, 16)
    strings = _ioctl(link, struct.pack("III", GSTRINGS, FEATURE_STRINGS, count) + bytes(count * STRING))[12:]
    return [strings[i * STRING : (i + 1) * STRING].split(b"\0")[0].decode() for i in range(count)]


def active(link: str) -> list[str]:
    """Return the names of the offloads that are on, of this thread's namespace."""
    known = names(link)
    blocks = (len(known) + 31) // 32
    told = _ioctl(link, struct.pack("II", GFEATURES, blocks) + bytes(16 * blocks))
    words = [struct.unpack_from("I", told, 8 + 16 * block + 8)[0] for block in range(blocks)]
    return [name for bit, name in enumerate(known) if words[bit // 32] >> bit % 32 & 1]


def change(link: str, wanted: Mapping[str, bool]) -> None:
    """Switch offloads on and off, by name; those that the kernel does not know are an error."""
    known = names(link)
    blocks = [[0, 0] for _ in range((len(known) + 31) // 32)]
    for name, on in wanted.items():
        bit = known.index(name)
        blocks[bit // 32][0] |= 1 << bit % 32
        blocks[bit // 32][1] |= on << bit % 32
    _ioctl(link, struct.pack("II", SFEATURES, len(blocks)) + b"".join(struct.pack("II", *block) for block in blocks))
