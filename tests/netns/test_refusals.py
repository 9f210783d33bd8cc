"""Sends that a real kernel refuses (trap 10): it is brought to each errno by what an administrator or the world may do.

A super-packet goes out while a route, a firewall, a link or a queue is in the way, and again when it is gone. Each
packet has one outcome, nothing of a tail is lost, and what is given up is told once. EIO: ../dataplane/test_send.py;
what the kernel cannot be brought to say: ../dataplane/test_refusals.py.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from flannel_udp._dataplane import UDP_PORT

from ..conftest import DEADLINE, require_commands, require_tun, wait_until
from ..dataplane.super_packets import text
from .agent import Agent
from .topology import Topology
from .transfer import transfer

UDP_SEGMENT, IP_RECVERR, SO_NO_CHECK = 103, 11, 11  # linux/udp.h, linux/in.h, asm-generic/socket.h
IP_MTU_DISCOVER, PMTUDISC_DO = 10, 2  # linux/in.h
COUNT, SIZE = 20, 1000
SINGLY = pytest.mark.parametrize("off", [(), ("udp_segment",)], ids=["segment", "singly"])


class Burst:
    """Two agents, and UDP super-packets of COUNT datagrams from one's node to the other's, through the overlay."""

    def __init__(self, one: Agent, two: Agent) -> None:
        self.one, self.two = one, two
        with two.node.entered():
            self.sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sink.bind((f"{two.tunnel}", 0))
        self.sink.settimeout(DEADLINE)
        with one.node.entered():
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        self.given = 0

    def send(self) -> dict[str, int]:
        """Send one, and return what became of all that was sent so far."""
        self.sender.sendto(text(COUNT * SIZE), self.sink.getsockname())
        self.given += COUNT
        return wait_until(self.settled, "each datagram has an outcome")

    def settled(self) -> dict[str, int]:
        outcomes = self.one.outcomes("out")
        return outcomes if sum(outcomes.values()) == self.given else {}

    def receive(self) -> None:
        """Receive one, whole and in order."""
        assert b"".join(self.sink.recv(2 * SIZE) for _ in range(COUNT)) == text(COUNT * SIZE)

    def close(self) -> None:
        self.sink.close()
        self.sender.close()


MakeBurst: TypeAlias = Callable[..., Burst]


@pytest.fixture
def burst(topology: Callable[..., Topology]) -> Iterator[MakeBurst]:
    """Two agents that know each other, and one super-packet passed; at the end the counters' law holds."""
    require_tun()
    made: list[Any] = []

    def make(off: tuple[str, ...] = ()) -> Burst:
        one, two = (Agent(node, off=off) for node in topology(2).nodes)
        made.extend((one, two))
        one.knows(two)
        two.knows(one)
        sent = Burst(one, two)
        made.insert(0, sent)
        assert sent.send() == {"sent": COUNT}
        sent.receive()
        return sent

    yield make
    for one in made:
        one.close()
    assert [one.exits for one in made[1:]] == [[]] * len(made[1:]), "no loop has ended"


def refuse(agent: Agent, hook: str, verdict: str) -> None:
    """Have the node's firewall refuse the tunnel's datagrams, in its output or its input."""
    require_commands("nft")
    rules = f"type filter hook {hook} priority 0\nudp dport {UDP_PORT} {verdict}"
    agent.node.run("nft", "-f", "-", text=f"table inet t {{\nchain c {{\n{rules}\n}}\n}}\n")


def permit(agent: Agent) -> None:
    agent.node.run("nft", "flush", "ruleset")


@SINGLY
@pytest.mark.parametrize("verdict", ["drop", "reject with icmpx admin-prohibited"])
def test_eperm_of_a_firewall(burst: MakeBurst, off: tuple[str, ...], verdict: str) -> None:
    sent = burst(off)
    refuse(sent.one, "output", verdict)
    assert sent.send() == {"sent": COUNT, "send_forbidden": COUNT}
    notice, = sent.one.forwarder.notices()
    assert (notice.cause, notice.count, notice.detail) == ("send_forbidden", COUNT, "EPERM")
    permit(sent.one)
    assert sent.send() == {"sent": 2 * COUNT, "send_forbidden": COUNT}
    sent.receive()
    assert sent.one.forwarder.given_up() == {}


ROUTES = {
    # kind of route: outcome, what the kernel says
    "unreachable": ("underlay_unreachable", errno.EHOSTUNREACH), "prohibit": ("send_forbidden", errno.EACCES),
    "blackhole": ("send_error", errno.EINVAL), "none": ("underlay_unreachable", errno.ENETUNREACH),
}


@SINGLY
@pytest.mark.parametrize("kind", ROUTES)
def test_routes_that_lead_nowhere(burst: MakeBurst, off: tuple[str, ...], kind: str) -> None:
    """EINVAL of a route is met by single datagrams, too, and so no reason to give messages up."""
    sent = burst(off)
    outcome, error = ROUTES[kind]
    there, back = f"{kind} {sent.two.address}/32", "192.0.2.0/24 dev eth0"
    if kind == "none":
        sent.one.node.ip("route del default", f"route del {back}")
    else:
        sent.one.node.ip(f"route add {there}")
    assert sent.send() == {"sent": COUNT, outcome: COUNT}
    notice, = sent.one.forwarder.notices()
    assert (notice.cause, notice.detail) == (outcome, errno.errorcode[error])
    sent.one.node.ip(f"route add {back}" if kind == "none" else f"route del {there}")
    wait_until(lambda: sent.sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "the answers are here")
    assert sent.send() == {"sent": 2 * COUNT, outcome: COUNT}
    sent.receive()
    assert sent.one.forwarder.given_up() == {}


@SINGLY
def test_a_link_that_is_down(burst: MakeBurst, off: tuple[str, ...]) -> None:
    """Its routes go with it, so this is ENETUNREACH; an own route that stays would say ENETDOWN, and end alike."""
    sent = burst(off)
    sent.one.node.ip("link set eth0 down")
    assert sent.send() == {"sent": COUNT, "underlay_unreachable": COUNT}
    sent.one.node.ip("link set eth0 up")
    assert sent.send() == {"sent": 2 * COUNT, "underlay_unreachable": COUNT}
    sent.receive()


@SINGLY
def test_emsgsize_of_an_mtu_that_is_lowered(burst: MakeBurst, off: tuple[str, ...]) -> None:
    """Each datagram is answered with what fits, TCP sends that, and messages of many are kept."""
    sent = burst(off)
    one, two = sent.one, sent.two
    for agent in (one, two):
        agent.node.ip("link set eth0 mtu 900")
    sent.sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    assert sent.send() == {"sent": COUNT, "too_big": COUNT}
    with pytest.raises(OSError, match="Message too long"):  # the answer is here: this kernel knows the path now
        wait_until(lambda: sent.sender.sendto(bytes(SIZE), sent.sink.getsockname()) < 0, "the answer is known", 5)
    given = dict(one.outcomes("out"))
    transfer(one.node, two.node, two.tunnel, 1 << 20)
    assert one.outcomes("out").keys() == {"sent", "too_big"}
    assert one.outcomes("out")["sent"] - given["sent"] > 1000
    for agent in (one, two):
        agent.node.ip("link set eth0 mtu 1500")
    transfer(one.node, two.node, two.tunnel, 1 << 20)
    assert one.forwarder.given_up() == {}


def test_what_may_be_fragmented_passes_a_lowered_mtu(burst: MakeBurst) -> None:
    sent = burst()
    sent.sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
    for agent in (sent.one, sent.two):
        agent.node.ip("link set eth0 mtu 900")
    assert sent.send() == {"sent": 2 * COUNT}
    sent.receive()
    assert sent.one.events("out")["outer_fragmented"] == COUNT
    sent.sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    assert sent.send() == {"sent": 2 * COUNT, "too_big": COUNT}, "and no other datagram may be fragmented"


@SINGLY
def test_enobufs_of_a_queue(burst: MakeBurst, off: tuple[str, ...]) -> None:
    """The kernel tells of a full queue only who asked for errors, and for a queue there is nothing to wait for."""
    require_commands("tc")
    sent = burst(off)
    one = sent.one
    one.socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    one.node.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "3000")
    for _ in range(4):
        outcomes = sent.send()
    assert outcomes.keys() == {"sent", "send_buffer_full"}
    assert outcomes["send_buffer_full"] >= COUNT
    assert one.events("out")["send_waits"] == 0
    one.node.run("tc", "qdisc", "del", "dev", "eth0", "root")
    before = one.outcomes("out")["sent"]
    assert sent.send()["sent"] == before + COUNT


def test_einval_of_a_socket_without_checksums(burst: MakeBurst) -> None:
    sent = burst()
    sent.one.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    for turn in range(2, 6):
        assert sent.send() == {"sent": turn * COUNT}
        sent.receive()
    notice, = sent.one.forwarder.notices()
    assert (notice.event, notice.detail) == ("offload given up", "Invalid argument")


@SINGLY
def test_econnrefused_of_a_peer_that_is_gone(burst: MakeBurst, off: tuple[str, ...]) -> None:
    """A port that is unreachable is told only to who asked for errors, and by a later call, which it concerns not."""
    sent = burst(off)
    one = sent.one
    one.socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    refuse(sent.two, "input", "reject with icmp port-unreachable")
    outcomes = sent.send()
    wait_until(lambda: one.events("in")["receive_errors"] or "underlay_unreachable" in sent.send(), "it is told")
    outcomes = sent.settled()
    assert outcomes.keys() <= {"sent", "underlay_unreachable"}
    permit(sent.two)
    wait_until(lambda: one.node.ping(sent.two.tunnel, "-W", "1").returncode == 0, "and the loops go on")
    assert one.forwarder.given_up() == {}


@SINGLY
def test_eagain_of_a_tiny_buffer(burst: MakeBurst, off: tuple[str, ...]) -> None:
    """A neighbour that does not answer keeps packets in the buffer: its room is waited for once, then they count."""
    sent = burst(off)
    one, two = sent.one, sent.two
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    two.node.ip("link set eth0 arp off")
    one.node.ip("neigh flush dev eth0")
    for _ in range(3):
        outcomes = sent.send()
    assert outcomes.keys() <= {"sent", "send_buffer_full", "underlay_unreachable"}
    assert outcomes["send_buffer_full"] > 0
    assert one.events("out")["send_waits"] >= 1
    two.node.ip("link set eth0 arp on")
    wait_until(lambda: one.node.ping(two.tunnel, "-W", "1").returncode == 0, "the buffer is free again")
    assert one.forwarder.given_up() == {}
