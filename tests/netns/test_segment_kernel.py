"""segment.pxd against the kernel: one super-packet through both, the segments compared byte by byte.

    write ──> tun0 (vnet_hdr) ──forwarded──> veth "out", offloads off ──> veth "in" ──> AF_PACKET

The kernel divides where it hands the packet to a device that cannot: tcp_gso_segment() and __udp_gso_segment(). It is
also a hop, so ours is given the packet one hop older.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
import pytun

from flannel_udp._probe import segment

from ..conftest import require_commands, require_tun, wait_until
from ..dataplane.packets import hop
from ..dataplane.super_packets import BULK4, BULK6, TIMESTAMPS, UDP4, UDP6, Flow, text
from .ethtool import offloads_off
from .topology import Place

TUNSETOFFLOAD, TUN_OFFLOADS = 0x400454D0, 0x6F  # linux/if_tun.h: CSUM, TSO4, TSO6, ECN, USO4, USO6
ETH_P_ALL = 3


class Divider:
    """The kernel as a segmenter."""

    def __init__(self) -> None:
        self.place = Place("divider")
        self.place.ip("link add out mtu 65535 type veth peer name in mtu 65535")
        with self.place.entered():
            self.tun = pytun.TunTapDevice(name="tun0", flags=pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR)
            fcntl.ioctl(self.tun.fileno(), TUNSETOFFLOAD, TUN_OFFLOADS)
            offloads_off("out")
        self.place.ip(
            "link set tun0 up mtu 65535", "link set out up", "link set in up", "addr add 192.0.2.1/30 dev out",
            "addr add 2001:db8::1/64 dev out nodad", "addr add 10.5.1.1/24 dev tun0",
            "addr add fd05:0:0:1::1/64 dev tun0 nodad", "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out",
            "neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev out", "route add 10.5.2.0/24 via 192.0.2.2",
            "route add fd05:0:0:2::/64 via 2001:db8::2")
        with self.place.entered():
            self.capture = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            self.capture.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self.capture.bind(("in", ETH_P_ALL))
            self.capture.setblocking(False)

    def divide(self, frame: bytes, count: int) -> list[bytes]:
        """What the kernel sends of a frame (vnet_hdr and packet): `count` packets."""
        os.write(self.tun.fileno(), frame)
        caught: list[bytes] = []

        def complete() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = self.capture.recv(1 << 17)
                    # Neighbours and multicast have their own traffic.
                    if packet[9 if packet[0] >> 4 == 4 else 6] in (6, 17, 60) and b"\x0f\xa0" in packet[:52]:
                        caught.append(packet)
            return len(caught) >= count

        wait_until(complete, f"{count} segments of the kernel", 5)
        return caught

    def close(self) -> None:
        self.capture.close()
        self.tun.close()
        self.place.close()


@pytest.fixture(scope="module")
def divider() -> Iterator[Divider]:
    require_commands("ip", "setpriv")
    require_tun()
    made = Divider()
    yield made
    made.close()


FLOWS = [
    BULK4, BULK6, UDP4, UDP6,
    *(replace(flow, flags=flags)
      for flow in (BULK4, BULK6) for flags in ("FPA", "PA", "FA", "CA", "CEA", "CEFPA", "EA", "NA", "NCEFPA", "UPA")),
    replace(BULK4, ident=0xFFFE), replace(UDP4, ident=0xFFFE), replace(BULK4, ident=0, dont_fragment=False),
    replace(UDP4, ident=77, dont_fragment=False), replace(BULK4, sequence=0xFFFFFF00),
    replace(BULK6, sequence=0xFFFFFF00), replace(BULK4, tos=0x9A), replace(BULK6, tos=0x9A, label=0x12345),
    replace(BULK4, options=TIMESTAMPS), replace(BULK6, options=TIMESTAMPS),
    replace(BULK4, options=(*TIMESTAMPS, ("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4)))),
    replace(BULK4, ttl=2), replace(BULK6, ttl=2), replace(UDP4, tos=0x03), replace(BULK6, extension=True),
    replace(UDP6, tos=0x9A, label=0x12345), replace(UDP6, ttl=2), replace(BULK4, urgent=7, flags="UA"),
    replace(BULK4, ip_options=b"\x01\x01\x01\x00"), replace(UDP4, ip_options=b"\x01\x01\x01\x00"),
]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: str(flow)[5:])
@pytest.mark.parametrize(("length", "size"), [(4000, 1000), (4001, 1000), (3999, 1000), (1001, 1000), (60000, 1398),
                                              (90, 30)])
def test_the_kernel_divides_alike(divider: Divider, flow: Flow, length: int, size: int) -> None:
    data, vnet = flow.super_packet(text(length), size)
    ours = segment(hop(data), vnet.packed())
    assert isinstance(ours, list)
    assert len(ours) == -(-length // size)
    assert divider.divide(vnet.packed() + data, len(ours)) == ours


@pytest.mark.parametrize("flow", [BULK4, BULK6, UDP4, UDP6], ids=["tcp4", "tcp6", "udp4", "udp6"])
@pytest.mark.parametrize("length", [1, 2, 1000, 1399])
def test_the_kernel_finishes_a_checksum_alike(divider: Divider, flow: Flow, length: int) -> None:
    data, vnet = flow.super_packet(text(length), 0)
    frame = vnet.but(gso_type=0, gso_size=0)
    assert divider.divide(frame + data, 1) == segment(hop(data), frame)


@pytest.mark.parametrize("flow", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_the_kernel_says_ffff_for_zero_alike(divider: Divider, flow: Flow) -> None:
    bare = flow.packet(b"\0\0abcd")
    start = flow.transport() + 6
    data, vnet = flow.super_packet((bare[start:start + 2] + b"abcd") * 5, 6)
    ours = segment(hop(data), vnet.packed())
    assert isinstance(ours, list)
    assert all(one[start:start + 2] == b"\xff\xff" for one in ours)
    assert divider.divide(vnet.packed() + data, 5) == ours
