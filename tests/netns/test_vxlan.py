"""Our data plane with vxlan's coat beside the kernel's own VXLAN device, which cannot tell: every byte both ways.

One node is ours, the other's kernel has a device set up as flannel does (agent.py: KernelVxlan).
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from flannel_udp._dataplane import VXLAN_PORT

from ..conftest import DEADLINE, require_commands, require_tun, wait_until
from ..dataplane.packets import naive_checksum, naive_sum
from .agent import VNI, Agent, KernelVxlan, mac_of
from .ethtool import offloads_off
from .test_transfers import checksum_errors, segments_per_message
from .topology import Topology
from .transfer import BLOCK, UDP_SEGMENT, family_of, transfer

MakePair: TypeAlias = Callable[..., tuple[Agent, KernelVxlan]]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
LINKS = pytest.mark.parametrize("plain_link", [False, True], ids=["offloads", "plain link"])
PART = 32 << 20
ECT0, CE = 2, 3
TOS: dict[int, tuple[int, int]] = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
RECEIVE_TOS = {4: (socket.IPPROTO_IP, 13), 6: (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)}  # linux/in.h


@pytest.fixture
def pair(topology: Callable[..., Topology]) -> Iterator[MakePair]:
    """Make our node and a kernel's. At the end no checksum was wrong, no packet is without its counter."""
    require_tun()
    require_commands("bridge")
    made: list[tuple[Agent, KernelVxlan]] = []

    def make(family: int = 4, *, plain_link: bool = False, off: tuple[str, ...] = (),
             sources: int = 0) -> tuple[Agent, KernelVxlan]:
        near, far = topology(2).nodes
        one, two = Agent(near, family, vxlan=True, off=off, sources=sources), KernelVxlan(far, family)
        made.append((one, two))
        one.knows(two)
        two.knows(one)
        for node in (near, far) if plain_link else ():
            node.call(offloads_off, node.interface)
        # While a neighbour is asked for, packets wait, or are dropped where many do.
        assert near.ping(far.address if family == 4 else far.address6).returncode == 0
        return made[-1]

    yield make
    with contextlib.ExitStack() as closing:
        for one, two in made:
            closing.callback(one.close)
            assert [checksum_errors(one), checksum_errors(two)] == [0, 0]
            assert device_drops(two) == (two.refused, 0)
            assert one.exits == []


def device_drops(kernel: KernelVxlan) -> tuple[int, int]:
    """What a VXLAN device counts of errors and drops on reception."""
    shown = kernel.node.call(Path("/proc/thread-self/net/dev").read_text)
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"{kernel.name}:"))
    fields = line.split(":")[1].split()
    return int(fields[2]), int(fields[3])


def exchange(client: Agent | KernelVxlan, server: Agent | KernelVxlan, total: int, size: int) -> None:
    """Send UDP datagrams of a size, all by one call, and receive every one; then the next ones."""
    with server.node.entered():
        sink = socket.socket(family_of(server.tunnel), socket.SOCK_DGRAM)
    with client.node.entered():
        sender = socket.socket(family_of(server.tunnel), socket.SOCK_DGRAM)
    with sink, sender:
        sink.bind((f"{server.tunnel}", 0))
        sink.settimeout(DEADLINE)
        sender.connect(sink.getsockname()[:2])
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        for turn in range(5):
            data = BLOCK[turn:turn + total]
            sender.send(data)
            for at in range(0, total, size):
                assert sink.recv(1 << 16) == data[at:at + size]


@FAMILIES
@LINKS
def test_ping_and_no_hop_is_counted(pair: MakePair, family: int, plain_link: bool) -> None:
    one, two = pair(family, plain_link=plain_link)
    assert "ttl=64" in one.node.ping(two.tunnel, "-s", "1000", count=3).stdout
    assert "ttl=64" in two.node.ping(one.tunnel, "-s", "1000", count=3).stdout
    one.wait_for("in", "delivered", 6)
    assert one.outcomes("in") == {"delivered": 6}
    one.wait_for("out", "sent", 6)


@FAMILIES
@LINKS
@pytest.mark.parametrize("off", [(), ("tun",), ("udp_segment",), ("udp_gro",), ("tun", "udp_segment", "udp_gro")],
                         ids=lambda off: "-".join(off) or "all")
def test_tcp_both_ways(pair: MakePair, family: int, plain_link: bool, off: tuple[str, ...]) -> None:
    one, two = pair(family, plain_link=plain_link, off=off)
    transfer(one.node, two.node, two.tunnel, PART)
    transfer(two.node, one.node, one.tunnel, PART)
    assert one.outcomes("in").keys() == {"delivered"}
    assert one.forwarder.given_up() == {}
    if not off:
        assert segments_per_message(one) > 2, "super-packets leave as runs"


@FAMILIES
@LINKS
@pytest.mark.parametrize("off", [(), ("tun",), ("udp_gro",)], ids=lambda off: "-".join(off) or "all")
@pytest.mark.parametrize(("total", "size"), [
    (300, 300), (1000, 500), (1001, 500), (2, 1), (60_000, 1300), (40_000, 700)])
def test_datagrams_both_ways(pair: MakePair, family: int, plain_link: bool, off: tuple[str, ...], total: int,
                             size: int) -> None:
    """Plain ones, and super-packets from two segments upwards: every border is where it was."""
    one, two = pair(family, plain_link=plain_link, off=off)
    exchange(one, two, total, size)
    exchange(two, one, total, size)
    wait_until(lambda: one.outcomes("in") == {"delivered": 5 * -(-total // size)}, "each is counted")


@FAMILIES
def test_with_many_source_ports(pair: MakePair, family: int) -> None:
    one, two = pair(family, sources=16)
    transfer(one.node, two.node, two.tunnel, PART)
    transfer(two.node, one.node, one.tunnel, PART)
    exchange(one, two, 60_000, 1300)
    assert segments_per_message(one) > 2


@FAMILIES
def test_pods_behind_both(pair: MakePair, family: int) -> None:
    """A super-packet that the kernel routes on into a pod, whose MTU is less than the tunnel's."""
    one, two = pair(family)
    pods = [end.node.add_pod(end.subnet, 1400) for end in (one, two)]
    assert pods[0].ping(pods[1].address).returncode == 0
    for client, server in (pods, pods[::-1]):
        transfer(client, server, server.address, PART)
    assert one.outcomes("in").keys() == {"delivered"}


@FAMILIES
@LINKS
def test_a_path_that_is_too_narrow(pair: MakePair, family: int, plain_link: bool) -> None:
    """What we send goes in fragments, and TCP learns of it: bulk goes whole again, in runs."""
    one, two = pair(family, plain_link=plain_link)
    for near, far in ((one, two), (two, one)):
        near.node.ip(f"route add {far.address} dev {near.node.interface} mtu 1400")
    exchange(one, two, 1380, 1380)
    transfer(one.node, two.node, two.tunnel, PART)
    assert one.events("out")["outer_fragmented"] > 0
    assert one.events("out")["icmp_sent"] > 0
    assert segments_per_message(one) > 2
    for near, far in ((one, two), (two, one)):
        assert near.node.ping(far.tunnel, "-s", "1200", "-M", "do").returncode == 0
    transfer(two.node, one.node, one.tunnel, PART)
    assert one.forwarder.given_up() == {}
    assert one.outcomes("out").keys() - {"out_of_network"} == {"sent"}


def captured(two: KernelVxlan, send: Callable[[], object], count: int) -> list[Any]:
    """What of UDP to the port arrives at the kernel's node while `send` runs, decoded by scapy."""
    with two.node.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    found: list[Any] = []
    with tap:
        tap.bind((two.node.interface, 0))
        tap.settimeout(DEADLINE)
        send()
        while len(found) < count:
            frame = Ether(tap.recv(1 << 16))
            if UDP in frame and frame[UDP].dport == VXLAN_PORT and frame.src != tap.getsockname()[4].hex(":"):
                found.append(frame)
    return found


@FAMILIES
def test_every_field_on_the_wire(pair: MakePair, family: int) -> None:
    """As flannel's kernels write it: flags, VNI, MACs, reserved bits zero; outer checksum right, DF not set."""
    one, two = pair(family, plain_link=True)
    first, = captured(two, lambda: one.node.ping(two.tunnel, "-s", "100"), 1)
    raw = bytes(first)[14:]
    outer = first[IP] if family == 4 else first[IPv6]
    header = 20 if family == 4 else 40
    assert (outer.src, outer.dst) == (f"{one.address}", f"{two.address}")
    if family == 4:
        assert outer.flags == 0
        assert naive_checksum(raw[:20]) == b"\0\0"
    length = len(raw) - header
    ends = raw[12:20] if family == 4 else raw[8:40]
    assert first[UDP].chksum != 0
    assert naive_sum(ends + struct.pack("!II", length, 17) + raw[header:]) == 0xFFFF
    assert raw[header + 8:header + 16] == struct.pack("!II", 0x08000000, VNI << 8)
    assert first[VXLAN].vni == VNI
    inner = first[VXLAN][Ether]
    assert (inner.dst, inner.src) == (mac_of(2).hex(":"), mac_of(1).hex(":"))
    assert inner.type == (0x0800 if family == 4 else 0x86DD)


@FAMILIES
@pytest.mark.parametrize("sources", [0, 16])
def test_source_ports_on_the_wire(pair: MakePair, family: int, sources: int) -> None:
    """On a link where each datagram is a frame."""
    one, two = pair(family, sources=sources, plain_link=True)

    def send() -> None:
        with one.node.entered():
            for _ in range(64):
                with socket.socket(family_of(two.tunnel), socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", (f"{two.tunnel}", 7))

    ports = {frame[UDP].sport for frame in captured(two, send, 64)}
    if sources:
        assert 8 < len(ports) <= 16
        assert VXLAN_PORT not in ports
    else:
        assert ports == {VXLAN_PORT}


def marked(end: Agent | KernelVxlan, which: str = "") -> None:
    """Have what arrives at a node's port marked as congested, before any socket or device sees it; `which`: of what."""
    require_commands("nft", package="nftables")
    family = "ip" if end.family == 4 else "ip6"
    rules = [f"add table {family} t", f"add chain {family} t c {{ type filter hook prerouting priority -300; }}",
             f"add rule {family} t c udp dport {VXLAN_PORT} {which.format(family)} {family} ecn set ce"]
    end.node.run("nft", "-f", "-", text="\n".join(rules) + "\n")


@FAMILIES
@pytest.mark.parametrize("ours", [True, False], ids=["to ours", "to the kernel"])
def test_congestion_on_the_underlay_is_told_inside(pair: MakePair, family: int, ours: bool) -> None:
    """A datagram that can be marked is; one that cannot is dropped, with its own reason (RFC 6040)."""
    one, two = pair(family)
    near, far = (two, one) if ours else (one, two)
    marked(far)
    with far.node.entered():
        sink = socket.socket(family_of(far.tunnel), socket.SOCK_DGRAM)
    with near.node.entered():
        sender = socket.socket(family_of(far.tunnel), socket.SOCK_DGRAM)
    with sink, sender:
        sink.setsockopt(*RECEIVE_TOS[family], 1)
        sink.bind((f"{far.tunnel}", 0))
        sink.settimeout(DEADLINE)
        sender.connect(sink.getsockname()[:2])
        for _ in range(3):
            sender.send(b"not capable")
        sender.setsockopt(*TOS[family], ECT0)
        sender.send(b"capable")
        data, control, _, _ = sink.recvmsg(2048, 64)
        assert (data, control[0][2][0] & 3) == (b"capable", CE)
    if ours:
        wait_until(lambda: one.outcomes("in") == {"delivered": 1, "ce_lost": 3}, "each is counted")
    else:
        two.refused = 3


@FAMILIES
@LINKS
def test_tcp_hears_of_congestion(pair: MakePair, family: int, plain_link: bool) -> None:
    """In super-packets too, both ways: the sender's kernel is told of CE by the receiver's, and all bytes arrive."""
    one, two = pair(family, plain_link=plain_link)
    for end in (one, two):
        end.node.run("sysctl", "-qw", "net.ipv4.tcp_ecn=1")
    # Before any mark the connection must be agreed upon: SYNs cannot be marked, and would be dropped.
    for near, far in ((one, two), (two, one)):
        marked(far, "{} ecn ect0")
        transfer(near.node, far.node, far.tunnel, 4 << 20)
        assert delivered_ce(near) > 0
        far.node.run("nft", "flush", "ruleset")
    assert one.outcomes("in").keys() == {"delivered"}


def delivered_ce(end: Agent | KernelVxlan) -> int:
    """TcpExtTCPDeliveredCE of a node."""
    names, values = [line.split() for line in end.node.call(Path("/proc/thread-self/net/netstat").read_text)
                     .splitlines() if line.startswith("TcpExt:")]
    return int(values[names.index("TCPDeliveredCE")])


@FAMILIES
def test_what_is_not_for_us_is_told(pair: MakePair, family: int) -> None:
    """Another VNI, another MAC: as the kernel's own peers would be refused; and nothing else suffers."""
    one, two = pair(family)
    mac = mac_of(9).hex(":")
    two.node.ip(f"neigh replace {one.tunnel} dev {two.name} lladdr {mac} nud permanent")
    two.node.run("bridge", "fdb", "add", mac, "dev", two.name, "dst", f"{one.address}", "self", "permanent")
    assert two.node.ping(one.tunnel, "-W", "0.2").returncode
    one.wait_for("in", "other_mac")
    two.node.ip(f"neigh replace {one.tunnel} dev {two.name} lladdr {mac_of(1).hex(':')} nud permanent")
    assert two.node.ping(one.tunnel).returncode == 0
    one.wait_for("in", "delivered")
    assert one.outcomes("in").keys() == {"other_mac", "delivered"}


@FAMILIES
def test_ours_and_ours(topology: Callable[..., Topology], family: int) -> None:
    require_tun()
    one, two = (Agent(node, family, vxlan=True, sources=4) for node in topology(2).nodes)
    one.knows(two)
    two.knows(one)
    transfer(one.node, two.node, two.tunnel, PART)
    transfer(two.node, one.node, one.tunnel, PART)
    exchange(one, two, 60_000, 1300)
    assert segments_per_message(one) > 2
    assert [checksum_errors(one), checksum_errors(two)] == [0, 0]
    one.close()
    two.close()
