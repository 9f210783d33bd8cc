"""A device's old switches (ethtool -K) by ioctl, so that no program is needed for them."""

import array
import fcntl
import socket
import struct

from ..conftest import require

SIOCETHTOOL = 0x8946  # linux/sockios.h
STXCSUM, SSG, STSO, SGSO, SGRO = 0x17, 0x19, 0x1F, 0x24, 0x2C  # linux/ethtool.h, ETHTOOL_*


def ethtool(interface: str, command: int, value: int) -> None:
    """Set one switch of a device in the namespace that this thread is in."""
    wanted = array.array("I", [command, value])
    request = struct.pack("16sQ", interface.encode(), wanted.buffer_info()[0]) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        fcntl.ioctl(asker.fileno(), SIOCETHTOOL, request)


def offloads_off(interface: str) -> None:
    """Have the kernel divide and sum before this device, and merge nothing behind it."""
    for command in (SGRO, SGSO, STSO, SSG, STXCSUM):
        try:
            ethtool(interface, command, 0)
        except OSError as error:
            require(False, f"needs a veth whose offloads can be switched off: {error.strerror}")
