"""The TUN device on a real kernel: what `ip` says of it, what comes out of it, and what stands in its way."""

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytun

from flannel_udp import tun as tun_module
from flannel_udp.errors import TunError
from flannel_udp.netlink import Links
from flannel_udp.offload import TUN_OFFLOADS, Granted, Refusal
from flannel_udp.tun import Tun, host_warnings, open_tun

from ..conftest import require_tun
from .topology import Node, Topology

VNET_HDR, VNET_GSO_UDP_L4 = 10, 5  # linux/virtio_net.h
UDP_SEGMENT = 103  # linux/udp.h
V4 = (ip_interface("10.5.3.0/32"), ip_network("10.5.0.0/16"))
V6 = (ip_interface("fd05:0:0:3::/128"), ip_network("fd05::/32"))


@pytest.fixture
def node(topology: Callable[..., Topology]) -> Iterator[Node]:
    """Be inside a node that forwards."""
    require_tun()
    one = topology(1).nodes[0]
    with one.entered():
        yield one


@pytest.fixture
def links(node: Node) -> Iterator[Links]:
    del node
    with Links() as opened:
        yield opened


@contextlib.contextmanager
def opened(links: Links, family: int = 4, pattern: str = "flannel%d") -> Iterator[Tun]:
    tun = open_tun(pattern, 1472, *(V4 if family == 4 else V6), links)
    try:
        yield tun
    finally:
        tun.close()


def shown(node: Node, *words: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(node.run("ip", "-json", *words).stdout or "[]")
    return told


def read(tun: Tun) -> bytes:
    """The next packet, without what stands before it."""
    return os.read(tun.fds[0], VNET_HDR + 65535)[VNET_HDR if tun.vnet else 0:]


def test_device_is_as_flannel_makes_it(node: Node, links: Links) -> None:
    with opened(links) as tun:
        assert (tun.name, tun.warnings) == ("flannel0", [])
        told, = shown(node, "address", "show", "dev", "flannel0")
        assert told["mtu"] == 1472
        assert told["ifindex"] == tun.index
        assert "UP" in told["flags"]
        assert [(one["local"], one["prefixlen"], one["scope"]) for one in told["addr_info"]] == [
            ("10.5.3.0", 32, "global")]
        route, = shown(node, "route", "show", "10.5.0.0/16")
        assert (route["dev"], "gateway" in route) == ("flannel0", False)
        assert shown(node, "route", "get", "10.5.77.1")[0]["prefsrc"] == "10.5.3.0"
    assert links.link("flannel0") is None
    assert shown(node, "route", "show", "10.5.0.0/16") == []


def test_descriptor_suits_the_data_plane(links: Links) -> None:
    with opened(links) as tun:
        assert not os.get_blocking(tun.fds[0])
        assert not os.get_inheritable(tun.fds[0])
        with pytest.raises(BlockingIOError):
            os.read(tun.fds[0], 2048)
    assert tun.fds == [-1]
    tun.close()


def test_packets_for_the_network_come_out(node: Node, links: Links) -> None:
    with opened(links) as tun:
        node.run("ping", "-c", "1", "-W", "0.1", "10.5.9.9", check=False)
        packet = read(tun)
        assert packet[0] >> 4 == 4
        assert packet[16:20] == bytes([10, 5, 9, 9])


def test_own_source_is_accepted(links: Links) -> None:
    """An ICMP error from our own address, written into the device, reaches the socket that is concerned."""
    with opened(links) as tun:
        ping = subprocess.Popen(["ping", "-n", "-c", "1", "-W", "5", "10.5.9.9"], stdout=subprocess.PIPE, text=True)
        assert select.select([tun.fds[0]], [], [], 5)[0]
        os.write(tun.fds[0], bytes(VNET_HDR) + unreachable(read(tun)))
        assert "Net Unreachable" in ping.communicate(timeout=10)[0]


def unreachable(offender: bytes) -> bytes:
    """Destination net unreachable, from 10.5.3.0 to the source of `offender`."""
    icmp = bytes([3, 0, 0, 0, 0, 0, 0, 0]) + offender[:28]
    icmp = icmp[:2] + checksum(icmp) + icmp[4:]
    header = bytes([0x45, 0]) + (20 + len(icmp)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 1, 0, 0, 10, 5, 3, 0])
    header += offender[12:16]
    return header[:10] + checksum(header) + header[12:] + icmp


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[at:at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2, "big")


def test_kernel_itself_says_nothing_into_an_ipv4_device(links: Links) -> None:
    """Neither router solicitations nor multicast reports, which come within the first second or two."""
    with opened(links) as tun:
        time.sleep(2)  # what must not come can only be waited for
        with pytest.raises(BlockingIOError):
            os.read(tun.fds[0], 2048)


def test_ipv6_device(node: Node, links: Links) -> None:
    with opened(links), opened(links, 6, "flannel-v6.%d") as tun:
        assert tun.name == "flannel-v6.0"
        told, = shown(node, "-6", "address", "show", "dev", tun.name)
        assert [(one["local"], one["prefixlen"]) for one in told["addr_info"]] == [("fd05:0:0:3::", 128)]
        assert shown(node, "-6", "route", "get", "fd05:0:0:9::1")[0]["dev"] == tun.name


def test_taken_route_is_said_and_nothing_is_left(node: Node, links: Links) -> None:
    with opened(links):
        with pytest.raises(TunError, match=r"route 10.5.0.0/16 is taken by flannel0: stop the flannel .*ip route del"):
            open_tun("flannel%d", 1472, *V4, links)
        assert links.link("flannel1") is None
    node.ip("route add 10.5.0.0/16 dev eth0")
    with pytest.raises(TunError, match="taken by eth0"):
        open_tun("flannel%d", 1472, *V4, links)


def test_two_networks_live_side_by_side(links: Links) -> None:
    with opened(links) as one:
        other = open_tun("flannel%d", 1472, ip_interface("10.6.3.0/32"), ip_network("10.6.0.0/16"), links)
        assert (one.name, other.name) == ("flannel0", "flannel1")
        other.close()


@pytest.mark.parametrize(("family", "address", "inside"), [
    (4, "10.5.8.0/32", "10.5.77.1"), (6, "fd05:0:0:8::/128", "fd05:0:0:77::1")])
def test_moving_to_another_lease_keeps_the_route(
        node: Node, links: Links, family: int, address: str, inside: str) -> None:
    with opened(links, family) as tun:
        for _ in range(2):
            tun.move(ip_interface(address), links)
            assert [one.interface for one in links.addresses(tun.index)] == [ip_interface(address)] == [tun.address]
            told, = shown(node, f"-{family}", "route", "get", inside)
            assert (told["dev"], told["prefsrc"]) == (tun.name, address.partition("/")[0])


def test_host_settings_in_the_way_are_one_line_each(node: Node, links: Links) -> None:
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=1")
    with opened(links) as tun:
        forward, strict = tun.warnings
        assert forward.endswith("sysctl -w net.ipv4.ip_forward=1")
        assert strict.endswith("sysctl -w net.ipv4.conf.flannel0.rp_filter=2 (loose)")
        # What the lines say helps.
        for line in (forward, strict):
            node.run(*line.partition(": ")[2].removesuffix(" (loose)").split())
        assert host_warnings("flannel0", 4) == []


def test_read_only_sysctls_are_one_line(links: Links, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc/sys that refuses is stood in for by a file where a folder should be: the same OSError path."""
    (tmp_path / "ipv6").write_text("")
    monkeypatch.setattr(tun_module, "SYSCTL", tmp_path)
    with opened(links) as tun:
        line, = tun.warnings
        assert line.startswith("/proc/sys is not writable (Not a directory)")
        assert "net.ipv6.conf.flannel0.disable_ipv6=1" in line
        assert Path("/proc/sys/net/ipv4/conf/flannel0/accept_local").read_text() == "1\n"


def frames_of_a_large_message(tun: Tun) -> list[bytes]:
    """Send 10 datagrams of 100 bytes as one message into the device; the frames that come out, with all before them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        sender.sendto(bytes(1000), ("10.5.9.9", 9))
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(os.read(tun.fds[0], VNET_HDR + 65535))
    return frames


def test_this_kernel_grants_every_offload(node: Node, links: Links) -> None:
    with opened(links) as tun:
        assert tun.granted == Granted(TUN_OFFLOADS)
        assert (tun.vnet, tun.uso) == (True, True)
        frame, = frames_of_a_large_message(tun)
        assert (frame[1], int.from_bytes(frame[4:6], sys.byteorder)) == (VNET_GSO_UDP_L4, 100)
        assert len(frame) == VNET_HDR + 28 + 1000
        told, = shown(node, "link", "show", "dev", "flannel0")
        assert told["txqlen"] == tun_module.QUEUE_LENGTH


def test_without_offload_frames_are_bare(links: Links) -> None:
    tun = open_tun("flannel%d", 1472, *V4, links, offload=False)
    with contextlib.closing(tun):
        assert (tun.vnet, tun.uso, tun.granted) == (False, False, Granted())
        frames = frames_of_a_large_message(tun)
        assert [(len(frame), frame[0]) for frame in frames] == [(128, 0x45)] * 10


USO, TSO, CSUM = TUN_OFFLOADS[4:], TUN_OFFLOADS[1:4], TUN_OFFLOADS[:1]


@pytest.mark.parametrize(("allowed", "offloads", "refused", "frames"), [
    (0x0F, TUN_OFFLOADS[:4], [USO], 10),
    (0x01, CSUM, [USO, TSO], 10),
    (0x00, (), [USO, TSO, CSUM], 10),
])
def test_a_refusal_is_a_step_down(links: Links, monkeypatch: pytest.MonkeyPatch, allowed: int,
                                  offloads: tuple[str, ...], refused: list[tuple[str, ...]], frames: int) -> None:
    """A kernel that knows fewer bits, as older ones do: it refuses a mask with any other."""
    def older(descriptor: int, request: int, mask: int) -> int:
        if mask & ~allowed:
            raise OSError(errno.EINVAL, "Invalid argument")
        return ioctl(descriptor, request, mask)

    monkeypatch.setattr(tun_module, "ioctl", older)
    with opened(links) as tun:
        assert tun.name == "flannel0"
        assert tun.granted == Granted(offloads, tuple(Refusal(names, "Invalid argument") for names in refused))
        assert (tun.vnet, tun.uso) == (bool(offloads), False)
        found = frames_of_a_large_message(tun)
        assert [len(frame) for frame in found] == [128 + (VNET_HDR if tun.vnet else 0)] * frames
    assert links.link("flannel0") is None


def test_missing_device_is_said_with_what_helps(links: Links, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(tun_module, "DEVICE", tmp_path / "tun")
    monkeypatch.setattr(pytun, "TunTapDevice", refuse)
    with pytest.raises(TunError, match=r"there is no .*/tun: load the module \(modprobe tun\), or give the container"):
        open_tun("flannel%d", 1472, *V4, links)


WITHOUT_CAPABILITY = """
from flannel_udp.errors import TunError
from flannel_udp.tun import open_tun
try:
    open_tun("flannel%d", 1472, None, None, None)
except TunError as error:
    print(error)
"""


def test_missing_capability_is_said_with_what_helps(node: Node) -> None:
    done = node.run("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin",
                    sys.executable, "-c", WITHOUT_CAPABILITY)
    assert "CAP_NET_ADMIN is missing: run as root, or give the container" in done.stdout
