"""The traps of such a data path, one test each, by number. What a room's tests hold already is called from here, so
that no trap is without its name."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from flannel_udp._dataplane import UDP_PORT

from ..conftest import DEADLINE, require_tun, wait_until
from ..dataplane import test_coalesce, test_receive, test_refusals, test_segment, test_send
from ..dataplane.super_packets import ALL, BULK4, NAMES, UDP4, UDP6, Flow, text
from . import test_vxlan
from .agent import Agent, KernelVxlan, subnet_of
from .test_transfers import Sequenced, checksum_errors, segments_per_message
from .topology import Node, Topology
from .transfer import transfer

MakePair: TypeAlias = Callable[..., tuple[Agent, Agent]]
MakeMixed: TypeAlias = Callable[..., tuple[Agent, KernelVxlan]]

UDP_SEGMENT, IP_RECVTOS = 103, 13  # linux/udp.h, linux/in.h


@pytest.fixture
def pair(topology: Callable[..., Topology]) -> Iterator[MakePair]:
    """Two agents that know each other, on an underlay of some MTU; the law of the counters holds at the end."""
    require_tun()
    made: list[Agent] = []

    def make(mtu: int = 1500) -> tuple[Agent, Agent]:
        one, two = (Agent(node) for node in topology(2, mtu).nodes)
        made.extend((one, two))
        one.knows(two)
        two.knows(one)
        return one, two

    yield make
    for agent in made:
        agent.close()


mixed = test_vxlan.pair
"""One of ours and a kernel's VXLAN device."""


def street(node: Node) -> socket.socket:
    """A plain socket in the place of a node's data plane."""
    with node.entered():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((f"{node.address}", UDP_PORT))
    opened.settimeout(DEADLINE)
    return opened


@pytest.mark.parametrize("family", [4, 6])
def test_trap_01_a_super_packet_with_an_unfinished_checksum(mixed: MakeMixed, family: int) -> None:
    """A kernel VXLAN peer over a veth: one datagram holds it whole, so that there are fewer messages than packets."""
    one, two = mixed(family)
    transfer(two.node, one.node, one.tunnel, 64 << 20)
    counters = one.forwarder.counters()["in"]
    assert counters.events["super_packets"] > 0
    assert counters.packets / counters.events["messages"] > 5


@pytest.mark.parametrize("family", [4, 6])
def test_trap_02_a_size_that_is_the_inner_ones(mixed: MakeMixed, family: int) -> None:
    """UDP_GRO says a size of one datagram: of its inner super-packet's datagrams. Three of them come as one message."""
    one, two = mixed(family)
    before = one.events("in")["messages"]
    test_vxlan.exchange(two, one, 3000, 1000)
    assert one.events("in")["messages"] - before == 5
    wait_until(lambda: one.outcomes("in") == {"delivered": 15}, "each is counted")


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_trap_03_hdr_len_is_not_trustworthy(flow: Flow) -> None:
    test_segment.test_hdr_len_is_not_believed(flow)


def test_trap_04_flags_of_a_segment() -> None:
    """Against the kernel: test_segment_kernel.py."""
    test_segment.test_flags_stand_where_the_kernel_puts_them()


@pytest.mark.parametrize("flow", [BULK4, UDP4], ids=["tcp4", "udp4"])
def test_trap_05_ip_id_and_df(flow: Flow) -> None:
    test_segment.test_identifications_wrap()
    test_coalesce.test_identifications_count_on_unless_df_makes_them_meaningless(flow)


def test_trap_06_udp_checksum_zero() -> None:
    for flow in (UDP4, UDP6):
        test_segment.test_a_udp_checksum_of_zero_is_sent_as_ffff(flow)
    test_segment.test_what_needs_nothing_is_left_alone()
    test_coalesce.test_datagrams_without_a_checksum_stay_apart()


def test_trap_07_a_bad_inner_checksum_is_not_laundered(topology: Callable[..., Topology]) -> None:
    """Three datagrams of one flow in one message, the second with a flipped byte: the kernel drops and counts it."""
    require_tun()
    near, far = topology(2).nodes
    agent = Agent(near)
    agent.forwarder.set_peer(subnet_of(2), far.address, UDP_PORT)
    agent.forwarder.publish()
    flow = Flow(protocol="udp", source="10.5.2.0", destination="10.5.1.0")
    packets = flow.segments(text(3000), 1000)
    packets[1] = packets[1][:-1] + bytes([packets[1][-1] ^ 0x40])
    with near.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((f"{agent.tunnel}", flow.dport))
    sink.settimeout(DEADLINE)
    with sink, street(far) as plain:
        plain.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(packets[0]))
        plain.sendto(b"".join(packets), (f"{near.address}", UDP_PORT))
        assert [sink.recv(2048) for _ in range(2)] == [text(3000)[:1000], text(3000)[2000:]]
        wait_until(lambda: checksum_errors(agent) == 1, "the kernel counts the wrong one")
    agent.close()


def test_trap_08_ecn(topology: Callable[..., Topology]) -> None:
    """Of udp the outer header says not-ECT whatever the inner says (RFC 6040, compatibility mode), so no router marks
    it where the mark would be lost; and packets of different ECN stay apart. vxlan: test_ecn.py, test_vxlan.py."""
    require_tun()
    near, far = topology(2).nodes
    agent = Agent(near)
    agent.forwarder.set_peer(subnet_of(2), far.address, UDP_PORT)
    agent.forwarder.publish()
    with near.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, street(far) as plain:
        plain.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
        sender.sendto(b"ECT(0)", (f"{subnet_of(2)[9]}", 7))
        data, control, _, _ = plain.recvmsg(2048, 64)
        assert data[1] & 3 == 2
        assert control[0][2][0] & 3 == 0
    agent.close()
    for tos in (1, 2, 3):
        test_coalesce.test_one_field_changed_is_not_merged(BULK4, {"tos": tos})


def test_trap_09_what_is_out_of_the_ordinary_stays_verbatim_and_in_order() -> None:
    for packet in test_coalesce.ALONE:
        test_coalesce.test_what_stays_alone(packet)
    for bits in (0x20, 0x80):
        test_coalesce.test_fragments_that_continue_one_another_stay_apart(bits)
    test_coalesce.test_flows_that_alternate_keep_their_order()


def test_trap_10_refused_sends_lose_no_tail() -> None:
    """By a real kernel and by one that is spoken for; each errno at any place: test_refusals.py, here and there."""
    test_send.test_no_checksums_no_segment()
    test_send.test_what_is_forbidden_is_counted_each()
    test_send.test_a_peer_that_cannot_be_sent_to_takes_nothing_from_the_others()
    test_send.test_a_full_buffer_drops_only_after_a_wait()
    test_send.test_udp_lite_is_not_cut_by_the_kernel()
    test_refusals.test_messages_of_63_and_then_none()
    for place in (0, 5, 10):
        test_refusals.test_one_that_is_too_big_is_answered_with_what_fits(True, place)
        test_refusals.test_a_datagram_that_is_refused_takes_none_with_it(errno.ENOBUFS, place)


def test_trap_11_a_path_mtu_that_shrinks(pair: MakePair) -> None:
    """Super-packets of segments that no longer fit: the sender is told, and TCP converges. With routers and pods:
    test_forwarder.py."""
    one, two = pair()
    transfer(one.node, two.node, two.tunnel, 1 << 20)
    one.node.ip(f"route add {two.address}/32 dev eth0 mtu 1300")
    transfer(one.node, two.node, two.tunnel, 4 << 20)
    assert one.outcomes("out")["too_big"] > 0
    assert one.forwarder.given_up() == {}
    assert segments_per_message(one) > 2


def test_trap_12_forwarded_super_packets_arrive_whole(pair: MakePair) -> None:
    """The TUN takes what a pod's device sends, so that the kernel does not divide it before us."""
    one, two = pair()
    pods = [agent.node.add_pod(agent.subnet, agent.tun.mtu) for agent in (one, two)]
    with pods[1].entered():
        listener = socket.create_server((f"{pods[1].address}", 0))
    with pods[0].entered():
        client = socket.create_connection(listener.getsockname(), DEADLINE)
    with listener, client:
        server, _ = listener.accept()
        server.settimeout(DEADLINE)
        with server:
            left = 16 << 20
            data = os.urandom(1 << 16)
            for _ in range(left // len(data)):
                client.sendall(data)
                due = len(data)
                while due:
                    due -= len(server.recv(due))
    counters = one.forwarder.counters()["out"]
    assert counters.packets / counters.events["frames"] > 5, "segments in a frame of the TUN"


@pytest.mark.parametrize("gro", [True, False], ids=["gro", "singles"])
def test_trap_13_what_is_cut_off_is_not_passed_on(gro: bool) -> None:
    test_receive.test_any_sizes_beside_one_another(gro)
    for flag in (test_receive.MSG_TRUNC, test_receive.MSG_CTRUNC):
        test_receive.test_what_is_cut_off_is_counted_and_not_passed_on(gro, flag)
    test_receive.test_a_message_without_its_size_counts_as_one()


@pytest.mark.parametrize("size", [65507, 65506, 60000])
def test_trap_13_nothing_is_cut_off(pair: MakePair, size: int) -> None:
    """The largest datagram that there is, as one packet, through both; and back out of the far TUN whole."""
    one, two = pair(65535)
    for agent in (one, two):
        agent.node.ip(f"link set {agent.tun.name} mtu 65507")
    payload = text(size - 28)
    with two.node.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with one.node.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, sender:
        sink.bind((f"{two.tunnel}", 0))
        sink.settimeout(DEADLINE)
        sender.sendto(payload, sink.getsockname())
        assert sink.recv(1 << 16) == payload
    wait_until(lambda: two.outcomes("in") == {"delivered": 1}, "the datagram is counted, just after it is written")


def test_trap_14_starts_and_stops_under_load(pair: MakePair) -> None:
    """Loops that hold pieces of a frame end within a second and begin anew; the table changes meanwhile. A thousand
    times, and for leaks: test_worker.py; under the thread sanitizer: make races."""
    one, two = pair()
    with one.node.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 500)
        for turn in range(30):
            for _ in range(20):
                sender.sendto(text(20_000), (f"{two.tunnel}", 7))
                one.knows(two)
            agent = (one, two)[turn % 2]
            agent.stop()
            agent.start()
    assert one.exits == two.exits == []
    assert one.outcomes("out")["sent"] > 0


@pytest.mark.parametrize("segment", [1, 40])
def test_trap_15_no_reordering_while_sends_fail(pair: MakePair, segment: int) -> None:
    """A socket's buffer with room for next to nothing: sends fail at any place of a run."""
    one, two = pair()
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    numbered = Sequenced(one, two)
    lost = numbered.run(3, 6000, 200, segment)
    received = [number for numbers in numbered.seen.values() for number in numbers]
    for numbers in numbered.seen.values():
        assert numbers == sorted(set(numbers))
    assert two.outcomes("in")["delivered"] == len(received) + lost
