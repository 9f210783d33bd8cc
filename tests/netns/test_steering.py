"""The steering program on a real kernel: which of the TUN's queues a packet comes out of, read from the queues."""

import contextlib
import errno
import os
import platform
import select
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytun
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.packet import Packet, Raw

from flannel_udp import steering
from flannel_udp import tun as tun_module
from flannel_udp.errors import TunError
from flannel_udp.netlink import Links
from flannel_udp.steering import steer
from flannel_udp.tun import Tun, open_tun

from ..conftest import DEADLINE, require_bpf_asks_for_rights, require_steering
from .topology import Node, Topology

QUEUES = 4
VNET_HDR = 10  # linux/virtio_net.h
IPV6_HDRINCL, UDP_SEGMENT = 36, 103  # linux/in6.h, linux/udp.h
ETH_P_IP = 0x0800
SOURCES = {4: "10.5.3.0", 6: "fd05:0:0:3::"}
FARS = {4: "10.5.9.9", 6: "fd05:0:0:9::9"}
marks = count(1)


@pytest.fixture
def node(topology: Callable[..., Topology]) -> Iterator[Node]:
    """Be inside a node."""
    require_steering()
    one = topology(1).nodes[0]
    with one.entered():
        yield one


@contextlib.contextmanager
def opened(family: int = 4, steering: Callable[[int], None] = steer, offload: bool = True) -> Iterator[Tun]:
    network = ip_network("10.5.0.0/16" if family == 4 else "fd05::/32")
    address = ip_interface(f"{SOURCES[family]}/{32 if family == 4 else 128}")
    with Links() as links:
        tun = open_tun("flannel%d", 1472, address, network, links, queues=QUEUES, steer=steering, offload=offload)
    try:
        yield tun
    finally:
        tun.close()


def frames(tun: Tun) -> Iterator[tuple[int, bytes]]:
    """What waits in the queues, with the queue's number; bare packets."""
    for number, fd in enumerate(tun.fds):
        with contextlib.suppress(BlockingIOError):
            while True:
                yield number, os.read(fd, VNET_HDR + 65535)[VNET_HDR if tun.vnet else 0:]


def queue_of(tun: Tun, packet: Packet) -> int:
    """Route a packet into the device as a router's kernel does; the one queue that it comes out of."""
    mark = b"mark%06d" % next(marks)
    if IPv6ExtHdrFragment not in packet and not (IP in packet and (packet[IP].flags.MF or packet[IP].frag)):
        packet = packet / Raw(mark)
    else:
        packet[Raw].load = mark + bytes(packet[Raw].load)[len(mark):]
    family = 4 if IP in packet else 6
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW,
                       socket.IPPROTO_RAW) as raw:
        if family == 6:
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        raw.sendto(bytes(packet), (packet.dst, 0))
    assert select.select(tun.fds, [], [], DEADLINE)[0]
    (number, _), = [(number, frame) for number, frame in frames(tun) if mark in frame]
    return number


def header(family: int, far: str = "", **fields: Any) -> Packet:  # noqa: ANN401 - fields of scapy's
    kind = IP if family == 4 else IPv6
    return kind(src=SOURCES[family], dst=far or FARS[family], **fields)


@pytest.mark.parametrize("family", [4, 6])
def test_flows_are_spread_over_all_queues(node: Node, family: int) -> None:
    del node
    with opened(family) as tun:
        by_port = Counter(queue_of(tun, header(family) / TCP(sport=port, dport=80)) for port in range(40000, 40200))
        by_address = Counter(queue_of(tun, header(family, f"{FARS[family][:-1]}{i}") / UDP(sport=53, dport=53))
                             for i in range(1, 100))
    assert min(by_port[number] for number in range(QUEUES)) > 200 / QUEUES / 2
    assert min(by_address[number] for number in range(QUEUES)) > 100 / QUEUES / 3


IPV4_TWINS = [
    header(4, ttl=3, tos=0x2E, id=77, flags="DF") / TCP(sport=40001, dport=80, flags="S", seq=1),
    header(4, options=b"\x94\x04\0\0") / TCP(sport=40001, dport=80, flags="FA"),  # router alert
    header(4, options=b"\x01" * 40) / TCP(sport=40001, dport=80, options=[("NOP", None)] * 4),
    header(4) / TCP(sport=40001, dport=80) / Raw(bytes(1300)),
]
IPV6_TWINS = [
    header(6, hlim=3, tc=0x2E, fl=12345) / TCP(sport=40001, dport=80, flags="S", seq=1),
    header(6) / TCP(sport=40001, dport=80, options=[("NOP", None)] * 4) / Raw(bytes(1300)),
]


@pytest.mark.parametrize(("family", "twins"), [(4, IPV4_TWINS), (6, IPV6_TWINS)])
def test_packets_of_a_tcp_flow_keep_together_whatever_else_they_say(
        node: Node, family: int, twins: list[Packet]) -> None:
    """On another device too, as after a restart; and the flow's neighbours go all ways, so it is no luck."""
    del node
    chosen = set()
    for _ in range(2):
        with opened(family) as tun:
            chosen |= {queue_of(tun, twin.copy()) for twin in twins for _ in range(3)}
    assert len(chosen) == 1
    with opened(family) as tun:
        assert {queue_of(tun, header(family) / TCP(sport=port, dport=80)) for port in range(40002, 40050)} > chosen


def test_options_do_not_hide_the_ports(node: Node) -> None:
    del node
    with opened() as tun:
        for port in range(40000, 40030):
            tcp = TCP(sport=port, dport=80)
            assert queue_of(tun, header(4) / tcp) == queue_of(tun, header(4, options=b"\x01" * 40) / tcp)


def parts_of(whole: Packet) -> list[Packet]:
    """Its fragments, as scapy makes them."""
    if IP in whole:
        return [IP(bytes(part)) for part in fragment(whole, 600)]  # type: ignore[no-untyped-call]
    headed = IPv6(src=whole.src, dst=whole.dst) / IPv6ExtHdrFragment(id=7) / whole.payload
    return [IPv6(bytes(part)) for part in fragment6(headed, 600)]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_keep_together_and_with_the_whole_datagrams_of_their_flow(node: Node, family: int) -> None:
    """The ports are in the first fragment alone, so they count for none; nor for datagrams of UDP that are whole."""
    del node
    with opened(family) as tun:
        for far in range(1, 9):
            top = header(family, f"{FARS[family][:-1]}{far}")
            chosen = {queue_of(tun, top / UDP(sport=port, dport=53)) for port in range(5000, 5010)}
            parts = parts_of(top / UDP(sport=5001, dport=53) / Raw(bytes(2000)))
            assert len(parts) > 3
            chosen |= {queue_of(tun, part) for part in parts}
            chosen |= {queue_of(tun, part) for part in parts_of(top / TCP(sport=5001, dport=53) / Raw(bytes(2000)))}
            assert len(chosen) == 1


@pytest.mark.parametrize("packet", [
    header(4) / ICMP(), header(4, proto=47) / Raw(bytes(20)), header(6) / ICMPv6EchoRequest(),
    header(6) / IPv6ExtHdrHopByHop() / TCP(sport=1, dport=2), header(6) / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2),
], ids=lambda packet: packet.summary())
def test_all_else_goes_by_addresses(node: Node, packet: Packet) -> None:
    del node
    family = packet.version
    with opened(family) as tun:
        assert queue_of(tun, packet) == queue_of(tun, header(family) / UDP(sport=9, dport=9))


def test_what_is_no_packet_goes_somewhere(node: Node) -> None:
    """Too short or of no known version: the first queue, as the kernel has a program end that reads past the end."""
    del node
    with opened() as tun, socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
        for nonsense in (b"\x45", b"\x45" + bytes(18), b"\x60" + bytes(20), b"\x10" + bytes(99), header(4) / b"\x01"):
            link.sendto(bytes(nonsense), (tun.name, ETH_P_IP))
            assert select.select(tun.fds, [], [], DEADLINE)[0]
            assert bytes(nonsense) in [frame for _, frame in frames(tun)]


@pytest.mark.parametrize("offload", [True, False])
def test_super_packets_go_where_their_parts_go(node: Node, offload: bool) -> None:
    """A large message comes out of the one queue, whole or in its datagrams; and so it is with each queue."""
    del node
    chosen = set()
    with opened(offload=offload) as tun, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for far in (f"10.5.9.{number}" for number in range(1, 17)):
            number = queue_of(tun, header(4, far) / UDP(sport=9, dport=9))
            sender.sendto(bytes(1000), (far, 9))
            found = [(one, len(frame)) for one, frame in frames(tun)]
            assert found == ([(number, 1028)] if offload else [(number, 128)] * 10)
            chosen.add(number)
    assert chosen == set(range(QUEUES))


@pytest.mark.parametrize("steered", [True, False])
def test_a_flow_stays_where_it_is_whatever_its_answers_do(node: Node, steered: bool) -> None:
    """What is prevented: without the program the kernel moves a flow to the queue that its answers are written into."""
    del node
    flow = header(4) / TCP(sport=40001, dport=80)
    answer = IP(src=FARS[4], dst=SOURCES[4]) / TCP(sport=80, dport=40001)
    with opened(steering=steer if steered else lambda _: None) as tun:
        chosen = set()
        for fd in tun.fds:
            os.write(fd, bytes(VNET_HDR) + bytes(answer))
            chosen.add(queue_of(tun, flow.copy()))
    assert (len(chosen) == 1) == steered


def multi_queue(node: Node, tun: Tun) -> bool:
    return "multi_queue" in node.run("ip", "-details", "link", "show", "dev", tun.name).stdout


def test_the_device_has_its_queues_each_with_all_offloads(node: Node) -> None:
    with opened() as tun:
        assert multi_queue(node, tun)
        assert (len(set(tun.fds)), tun.asked, tun.unsteered) == (QUEUES, QUEUES, "")
        assert tun.uso
        assert not any(os.get_blocking(fd) or os.get_inheritable(fd) for fd in tun.fds)
    assert tun.fds == [-1] * QUEUES
    with Links() as links:
        assert links.link("flannel0") is None


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def one_queue(node: Node, reason: str) -> None:
    """Asked for four queues the device has one, as if one had been asked for, and says why; nothing is left over."""
    before = descriptors()
    with opened() as tun:
        assert tun.name == "flannel0"
        assert not multi_queue(node, tun)
        assert (len(tun.fds), tun.asked, tun.uso) == (1, QUEUES, True)
        assert tun.unsteered.startswith(f"one queue instead of {QUEUES}, or the kernel would reorder flows: {reason}")
        assert queue_of(tun, header(4) / UDP()) == 0
    assert descriptors() == before


def test_a_device_that_takes_no_program_has_one_queue(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels before 4.16 answer: an unknown ioctl."""
    def older(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(steering, "ioctl", older)
    one_queue(node, "the TUN takes no steering program (Invalid argument), which needs Linux 4.16")


def test_a_kernel_without_bpf_gives_one_queue(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that no kernel has stands for one that this kernel does not have."""
    monkeypatch.setattr(steering, "BPF_NUMBERS", {platform.machine(): 99_999})
    said = os.strerror(errno.ENOSYS)
    one_queue(node, f"the kernel does not take the steering program ({said}): it is built without bpf")


def test_an_unknown_architecture_gives_one_queue(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "m68k")
    one_queue(node, "the number of bpf(2) on m68k is not known here")


def test_what_the_kernels_verifier_refuses_gives_one_queue(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "PROGRAM", steering.PROGRAM[:-8])  # falls off its end
    one_queue(node, "the kernel does not take the steering program (Invalid argument)")


def test_a_queue_too_many_gives_one_queue(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tun_module._open_queue

    def but_two(pattern: str, flags: int) -> object:
        if flags & pytun.IFF_MULTI_QUEUE and len(made) == 2:
            raise TunError("no more")
        made.append(pattern)
        return real(pattern, flags)

    made: list[str] = []
    monkeypatch.setattr(tun_module, "_open_queue", but_two)
    one_queue(node, "no more")
    assert made == ["flannel%d", "flannel0", "flannel%d"]


WITHOUT_CAPABILITY = """
from flannel_udp import steering
try:
    steering.load(steering.PROGRAM)
except Exception as error:
    print(error)
"""


def test_missing_capability_is_said_with_what_helps(node: Node) -> None:
    require_bpf_asks_for_rights()
    done = node.run("setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin",
                    sys.executable, "-c", WITHOUT_CAPABILITY)
    assert done.stdout == ("the kernel does not take the steering program (Operation not permitted): run as the host's "
                           "root, or give the container the capability (--cap-add BPF, before Linux 5.8 SYS_ADMIN)\n")
