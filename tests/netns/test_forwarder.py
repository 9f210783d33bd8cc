"""The data plane on real devices: what ping, traceroute and TCP see of it, and what it survives."""

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from flannel_udp._dataplane import UDP_PORT
from flannel_udp.forwarder import Loops
from flannel_udp.lab import namespace

from ..conftest import DEADLINE, require_commands, require_tun, wait_until
from ..dataplane.packets import ipv4, ipv6
from .agent import Agent, subnet_of
from .topology import Node, Place, Pod, Topology

MakeTopology = Callable[..., Topology]
MakeAgents = Callable[..., list[Agent]]


@pytest.fixture
def agents(topology: MakeTopology) -> Iterator[MakeAgents]:
    """Make nodes with agents that know each other; the law of the counters holds at the end of every test."""
    require_tun()
    made: list[Agent] = []

    def make(count: int = 2, family: int = 4, source_check: str = "known", *, loops: Loops | None = None,
             off: tuple[str, ...] = ()) -> list[Agent]:
        made.extend(Agent(node, family, source_check, loops=loops, off=off) for node in topology(count).nodes)
        for agent in made:
            agent.knows(*(other for other in made if other is not agent))
        return made

    yield make
    for agent in made:
        agent.close()


def pod_of(agent: Agent) -> Pod:
    return agent.node.add_pod(agent.subnet, agent.tun.mtu)


def hops(place: Place, destination: object) -> list[str]:
    """The hop list of `traceroute -n`."""
    require_commands("traceroute")
    shown = place.run("traceroute", "-n", "-q", "1", "-w", "5", "-m", "8", f"{destination}").stdout
    return [line.split()[1] for line in shown.splitlines()[1:]]


def send(node: Node, source: object, to: Agent, packet: bytes, port: int = 0) -> None:
    """Send one datagram to an agent's port, from an underlay address of a node."""
    with node.entered(), socket.socket(socket.AF_INET if to.family == 4 else socket.AF_INET6,
                                       socket.SOCK_DGRAM) as opened:
        opened.bind((f"{source}", port))
        opened.sendto(packet, (f"{to.address}", UDP_PORT))


def transfer(client: Place, server: Pod, size: int) -> None:
    """Send bytes over TCP and compare their hashes."""
    data = os.urandom(size)
    with server.entered():
        listener = socket.create_server((f"{server.address}", 0))

    def receive() -> str:
        digest = hashlib.sha256()
        listener.settimeout(DEADLINE)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE)
            while received := connection.recv(1 << 16):
                digest.update(received)
        return digest.hexdigest()

    with listener, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        with client.entered():
            connection = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        with connection:
            connection.sendall(data)
        assert received.result() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("family", [4, 6])
def test_hosts_and_pods_reach_each_other(agents: MakeAgents, family: int) -> None:
    one, two, three = agents(3, family)
    pod1, pod3 = pod_of(one), pod_of(three)
    hop = "ttl={}"
    assert hop.format(62) in one.node.ping(two.tunnel).stdout
    assert hop.format(61) in one.node.ping(pod3.address).stdout
    assert hop.format(60) in pod1.ping(pod3.address).stdout
    assert pod3.ping(two.tunnel).returncode == 0
    # The kernel's own multicast, which no overlay carries, comes out of an IPv6 device now and then.
    assert one.outcomes("out").keys() - {"out_of_network"} == {"sent"}
    assert one.outcomes("in").keys() == {"delivered"}


def test_peers_tell_their_traffic(agents: MakeAgents) -> None:
    one, two, three = agents(3)
    assert one.node.ping(two.tunnel, "-s", "100", count=3).returncode == 0
    one.wait_for("in", "delivered", 3)
    to_two, to_three = one.forwarder.peers()
    assert (to_two.subnet, to_two.underlay) == (two.subnet, two.address)
    assert (to_two.packets_out, to_two.bytes_out, to_two.packets_in, to_two.bytes_in) == (3, 384, 3, 384)
    assert to_two.last_heard
    assert abs(to_two.last_heard - time.time()) < DEADLINE
    assert (to_three.subnet, to_three.packets_out, to_three.last_heard) == (three.subnet, 0, None)


def test_traceroute_is_as_over_real_routers(agents: MakeAgents) -> None:
    """Either end of the tunnel is a hop, and so is the far node; none stays silent."""
    one, two = agents(2)
    for agent in (one, two):  # or the kernels' own limit hides hops, as with real routers
        agent.node.call(namespace.write_sysctl, "net/ipv4/icmp_ratelimit", 0)
    pod1, pod2 = pod_of(one), pod_of(two)
    tunnel = [f"{one.tunnel}", f"{two.tunnel}"]
    assert hops(one.node, two.tunnel) == [*tunnel, f"{two.tunnel}"]
    assert hops(one.node, pod2.address) == [*tunnel, f"{two.tunnel}", f"{pod2.address}"]
    assert hops(pod1, pod2.address) == [f"{one.subnet[1]}", *tunnel, f"{two.tunnel}", f"{pod2.address}"]


@pytest.mark.parametrize("family", [4, 6])
def test_time_exceeded_at_either_end(agents: MakeAgents, family: int) -> None:
    one, two = agents(2, family)
    for ttl, where, agent, direction in ((1, one.tunnel, one, "out"), (2, two.tunnel, two, "in")):
        said = one.node.ping(two.tunnel, "-t", f"{ttl}").stdout
        assert re.search(rf"From {where} .*(Time to live|Hop limit)", said, re.IGNORECASE), said
        agent.wait_for(direction, "ttl_expired")


@pytest.mark.parametrize("family", [4, 6])
def test_unknown_subnets_are_unreachable(agents: MakeAgents, family: int) -> None:
    one, _ = agents(2, family)
    pod = pod_of(one)
    unknown = subnet_of(9, family)[9]
    for place in (one.node, pod):
        said = place.ping(unknown).stdout
        # of ICMPv6's "no route to destination" ping says "No route"
        assert re.search(rf"From {one.tunnel} .*(Destination Net Unreachable|unreachable: No route)", said), said
    assert one.outcomes("out")["no_route"] == 2


def test_own_subnet_and_out_of_network_are_unreachable(agents: MakeAgents) -> None:
    one, _ = agents(2)
    one.node.ip(f"route add 203.0.113.0/24 dev {one.tun.name}")
    for destination, outcome in ((one.subnet[77], "own_subnet"), ("203.0.113.9", "out_of_network")):
        assert "Destination Net Unreachable" in one.node.ping(destination).stdout
        assert one.outcomes("out")[outcome] == 1


@pytest.fixture
def narrow(topology: MakeTopology) -> Iterator[tuple[Agent, Agent]]:
    """Nodes 1 and 2 with node 3 as a router between them, whose link to node 2 carries 1300 bytes."""
    require_tun()
    node1, node2, router = topology(3).nodes
    router.ip(f"link add narrow mtu 1300 type veth peer name narrow mtu 1300 netns {node2.path}", "link set narrow up",
              "addr add 198.51.100.1/24 dev narrow")
    node2.ip("link set narrow up", "addr add 198.51.100.2/24 dev narrow", f"route add {node1.address} via 198.51.100.1")
    node1.ip(f"route add 198.51.100.0/24 via {router.address}")
    one, two = Agent(node1), Agent(node2, address=ip_address("198.51.100.2"))
    one.knows(two)
    two.knows(one)
    yield one, two
    one.close()
    two.close()


FITS = 1300 - 28


def test_path_mtu_is_discovered_by_hosts(narrow: tuple[Agent, Agent]) -> None:
    """First the router tells this node, then this node tells the sender; what may be fragmented passes after that."""
    one, two = narrow
    said = one.node.ping(two.tunnel, "-M", "do", "-s", "1400", "-W", "1", count=4).stdout
    assert re.search(rf"mtu ?= ?{FITS}", said), said
    one.wait_for("out", "too_big")
    assert one.node.ping(two.tunnel, "-M", "do", "-s", f"{FITS - 28}").returncode == 0
    assert one.node.ping(two.tunnel, "-M", "do", "-s", f"{FITS - 27}", "-W", "1").returncode != 0
    assert one.events("out")["outer_fragmented"] == 0


def test_path_mtu_is_discovered_by_pods(narrow: tuple[Agent, Agent]) -> None:
    one, two = narrow
    pod1, pod2 = pod_of(one), pod_of(two)
    said = pod1.ping(pod2.address, "-M", "do", "-s", "1400", "-W", "1", count=4).stdout
    assert f"From {one.tunnel} icmp_seq" in said
    assert f"Frag needed and DF set (mtu = {FITS})" in said
    assert pod1.ping(pod2.address, "-M", "do", "-s", f"{FITS - 28}").returncode == 0


def test_what_may_be_fragmented_passes(narrow: tuple[Agent, Agent]) -> None:
    one, two = narrow
    pod1, pod2 = pod_of(one), pod_of(two)
    one.node.ping(two.tunnel, "-M", "do", "-s", "1400", "-W", "1")  # this node now knows the path, and the pod does not
    assert pod1.ping(pod2.address, "-M", "dont", "-s", "1400", count=3).returncode == 0
    assert one.events("out")["outer_fragmented"] == 3


def test_tcp_converges(narrow: tuple[Agent, Agent]) -> None:
    one, two = narrow
    pod1, pod2 = pod_of(one), pod_of(two)
    transfer(pod1, pod2, 1 << 20)
    assert one.outcomes("out")["too_big"] > 0
    assert one.events("out")["outer_fragmented"] == 0


def test_ipv6_minimum_is_never_undercut(agents: MakeAgents) -> None:
    """A path of 1300 leaves 1252, and every IPv6 link carries 1280: told is 1280, and that passes in fragments."""
    one, two = agents(2, 6)
    one.node.ip(f"route add {two.address}/128 dev eth0 mtu 1300")
    said = one.node.ping(two.tunnel, "-M", "do", "-s", "1300", count=2).stdout
    assert re.search(r"mtu ?[=:] ?1280", said), said
    assert one.node.ping(two.tunnel, "-M", "do", "-s", f"{1280 - 48}").returncode == 0
    wait_until(lambda: one.events("out")["outer_fragmented"], "what was sent is counted, after the answer perhaps")
    assert one.node.ping(two.tunnel, "-M", "do", "-s", f"{1252 - 48}").returncode == 0


@pytest.mark.parametrize("family", [4, 6])
def test_strangers_and_forgers_are_dropped_and_counted(agents: MakeAgents, family: int) -> None:
    one, two, three = agents(3, family)
    one.forwarder.delete_peer(three.subnet)
    one.forwarder.publish()
    build = ipv4 if family == 4 else ipv6
    inside = f"{one.tunnel}"
    send(three.node, three.address, one, build(f"{three.subnet[2]}", inside))
    one.wait_for("in", "unknown_sender")
    for source in (one.subnet[9], one.tunnel, one.address):
        send(two.node, two.address, one, build(f"{source}", inside))
    one.wait_for("in", "own_source", 3)
    send(two.node, two.address, one, build(f"{two.subnet[2]}", f"{subnet_of(9, family)[2]}"))
    one.wait_for("in", "not_ours")
    assert one.outcomes("in") == {"unknown_sender": 1, "own_source": 3, "not_ours": 1}
    notice, = one.forwarder.notices()
    assert (notice.cause, notice.count, notice.detail) == ("unknown_sender", 1, f"{three.address}")
    assert one.forwarder.notices() == []


@pytest.mark.parametrize(("source_check", "outcome"), [
    ("off", "delivered"), ("known", "delivered"), ("strict", "source_mismatch")])
def test_a_peer_with_anothers_source(agents: MakeAgents, source_check: str, outcome: str) -> None:
    one, two, three = agents(3, source_check=source_check)
    send(two.node, two.address, one, ipv4(f"{three.subnet[2]}", f"{one.tunnel}"))
    one.wait_for("in", outcome)
    assert one.node.ping(two.tunnel).returncode == 0


def test_a_thousand_changes_a_second_lose_no_packet(agents: MakeAgents) -> None:
    """Peers come, move and go beside a standing route under traffic."""
    one, two = agents(2)
    ping = one.node.start("ping", "-n", "-q", "-i", "0.001", "-c", "2000", f"{two.tunnel}", output=-1)
    changes, began = 0, time.monotonic()
    while ping.poll() is None:
        for number in range(3, 250):
            change_peer(one, number, changes)
            one.forwarder.publish()
            changes += 1
            if changes % 4 == 0:
                time.sleep(0.001)
    seconds = time.monotonic() - began
    assert ping.stdout
    assert "2000 received, 0% packet loss" in ping.stdout.read()
    assert changes > 1000 * seconds
    assert one.outcomes("out") == {"sent": 2000}
    assert one.outcomes("in") == {"delivered": 2000}


def change_peer(agent: Agent, number: int, turn: int) -> None:
    subnet = subnet_of(number)
    if turn % 3 == 2:
        agent.forwarder.delete_peer(subnet)
    else:
        agent.forwarder.set_peer(subnet, ip_address(f"192.0.2.{3 + turn % 200}"), UDP_PORT)


def test_memory_is_flat_over_publishes_with_busy_loops(agents: MakeAgents) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    one, two = agents(2)
    ping = one.node.start("ping", "-n", "-q", "-f", f"{two.tunnel}", output=-3)
    one.wait_for("out", "sent", 100)
    memory = 0
    for turn in range(100_000):
        change_peer(one, 3 + turn % 200, turn)
        one.forwarder.publish()
        if turn == 10_000:
            memory = resident()
    sent = one.outcomes("out")["sent"]
    one.wait_for("out", "sent", sent + 100)
    ping.kill()
    ping.wait()
    # Less than a block per hundred publishes; what the scheduler makes a loop hold for a moment is no leak.
    assert resident() - memory < 32 << 20


def test_a_link_that_goes_down_and_up_again(agents: MakeAgents) -> None:
    """The kernel takes the route with the link, and who owns it (the daemon, here the test) puts it back."""
    one, two = agents(2)
    two.node.ip(f"link set {two.tun.name} down")
    assert one.node.ping(two.tunnel, "-W", "0.2").returncode != 0
    two.wait_for("in", "tun_down")
    two.node.ip(f"link set {two.tun.name} up", f"route replace {two.network} dev {two.tun.name}")
    assert one.node.ping(two.tunnel).returncode == 0
    assert (one.exits, two.exits) == ([], [])


def test_a_deleted_tun_is_told_and_replaced(agents: MakeAgents) -> None:
    one, two = agents(2)
    assert one.node.ping(two.tunnel).returncode == 0
    one.node.ip(f"link delete {one.tun.name}")
    wait_until(lambda: one.exits, "the loop tells its end")
    (loop, error), = one.exits
    assert loop == "tun_to_udp"
    assert isinstance(error, OSError)
    one.stop()
    one.start()
    assert one.node.ping(two.tunnel).returncode == 0
    assert one.outcomes("out")["sent"] == 2
    assert len(one.exits) == 1


@pytest.mark.parametrize(("route", "outcome", "said"), [
    ("unreachable", "underlay_unreachable", "Destination Net Unreachable"),
    ("prohibit", "send_forbidden", "100% packet loss"),
    ("blackhole", "send_error", "100% packet loss"),
])
def test_what_the_underlay_refuses(agents: MakeAgents, route: str, outcome: str, said: str) -> None:
    one, two, three = agents(3)
    one.node.ip(f"route add {route} {two.address}/32")
    assert said in one.node.ping(two.tunnel, "-W", "0.5").stdout
    assert one.outcomes("out") == {outcome: 1}
    assert [notice.cause for notice in one.forwarder.notices()] == [outcome]
    assert one.node.ping(three.tunnel).returncode == 0


def test_a_full_send_buffer_is_waited_for_once_and_then_drops(agents: MakeAgents) -> None:
    """Packets for a neighbour that does not answer stay in the socket's buffer until the kernel gives it up."""
    one, two = agents(2)
    one.forwarder.set_peer(ip_network("10.5.9.0/24"), ip_address("192.0.2.99"), UDP_PORT)
    one.forwarder.publish()
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    one.node.ping("10.5.9.9", "-s", "1400", "-W", "0.1", count=8)
    one.wait_for("out", "send_buffer_full")
    assert one.events("out")["send_waits"] >= 1
    wait_until(lambda: one.node.ping(two.tunnel, "-W", "1").returncode == 0, "the buffer is free again")
