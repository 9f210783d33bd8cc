"""worker.pyx and both loops, between sockets instead of devices: what passes, what is refused, start and stop."""

import errno
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp._dataplane import FIRST_PEER, Builder, Worker
from flannel_udp._probe import icmp_error

from ..conftest import wait_until
from . import packets
from .packets import ipv4, ipv6, packed
from .rig import LEAK, LOOPS, PEER, Rig, resident, udp_socket

FAMILIES = (4, 6)
IP_RECVERR = 11  # linux/in.h


@pytest.fixture(params=FAMILIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as running:
        yield running


@pytest.fixture
def rig4() -> Iterator[Rig]:
    with Rig() as running:
        yield running


@pytest.mark.parametrize("size", [0, 1, 8, 1000, 1444, 60_000])
def test_golden_both_ways(rig: Rig, size: int) -> None:
    """The datagram is the bare inner packet, one hop older, nothing before or after it (flannel's wire)."""
    data = packets.packet(rig.family, 1, 2, bytes(range(256)) * (size // 256) + bytes(size % 256))
    rig.give(data)
    assert rig.receive() == packets.hop(data)
    data = packets.packet(rig.family, 2, 1, bytes(size))
    rig.send(data)
    assert rig.take() == packets.hop(data)
    wait_until(lambda: rig.outcomes("out") == {"sent": 1}, "the packet out is counted")
    wait_until(lambda: rig.outcomes("in") == {"delivered": 1}, "the packet in is counted")


def test_source_port_is_the_sockets(rig4: Rig) -> None:
    rig4.give(packets.packet(4, 1, 2))
    assert rig4.peer.recvfrom(2048)[1] == rig4.udp.getsockname()


def test_order_is_kept(rig: Rig) -> None:
    for number in range(300):
        rig.give(packets.packet(rig.family, 1, 2, number.to_bytes(2, "big")))
        rig.send(packets.packet(rig.family, 2, 1, number.to_bytes(2, "big")))
        if number % 50 == 49:  # a socket's buffer holds these
            for due in range(number - 49, number + 1):
                assert rig.receive()[-2:] == rig.take()[-2:] == due.to_bytes(2, "big")


def test_peers_are_counted(rig: Rig) -> None:
    for length in (10, 20):
        rig.give(packets.packet(rig.family, 1, 2, bytes(length)))
        rig.send(packets.packet(rig.family, 2, 1, bytes(length + 1)) + b"padding")
    rig.wait_for("out", "sent", 2)
    rig.wait_for("in", "delivered", 2)
    header = 20 if rig.family == 4 else 40
    assert rig.worker.peer_count("out", PEER, 1)[:2] == (2, 2 * header + 30)
    assert rig.worker.peer_count("in", PEER, 1)[:2] == (2, 2 * header + 32)
    assert rig.worker.peer_count("in", PEER, 1)[2] > 0
    assert rig.worker.peer_count("in", PEER, 2) == rig.worker.peer_count("out", PEER + 1, 1) == (0, 0, 0)


def test_another_peer_in_the_slot_counts_from_nothing(rig4: Rig) -> None:
    rig4.give(packets.packet(4, 1, 2))
    rig4.wait_for("out", "sent")
    rig4.builder.set_peer(PEER, 2, packed("127.0.0.2"), rig4.peer.getsockname()[1])
    rig4.builder.publish()
    rig4.give(packets.packet(4, 1, 2, b""))
    rig4.wait_for("out", "sent", 2)
    assert rig4.worker.peer_count("out", PEER, 2)[:2] == (1, 20)
    assert rig4.worker.peer_count("out", PEER, 1) == (0, 0, 0)


ENDS_OUT = [
    # destination subnet, TTL, outcome, ICMP type of IPv4, of IPv6
    (9, 64, "no_route", 3, 1),
    (1, 64, "own_subnet", 3, 1),
    (2, 1, "ttl_expired", 11, 3),
]


@pytest.mark.parametrize(("subnet", "ttl", "outcome", "kind4", "kind6"), ENDS_OUT)
def test_what_ends_here_is_answered(rig: Rig, subnet: int, ttl: int, outcome: str, kind4: int, kind6: int) -> None:
    data = packets.packet(rig.family, 1, subnet, ttl=ttl)
    rig.give(data)
    kind = kind4 if rig.family == 4 else kind6
    assert rig.take() == icmp_error(data, packed(rig.overlay(1)), kind, 0, 0)
    rig.wait_for("out", outcome)
    assert rig.events("out")["icmp_sent"] == 1


def test_out_of_network_is_answered(rig: Rig) -> None:
    data = ipv4(destination="192.0.2.1") if rig.family == 4 else ipv6(destination="2001:db8::9")
    rig.give(data)
    assert rig.take() == icmp_error(data, packed(rig.overlay(1)), 3 if rig.family == 4 else 1, 0, 0)
    rig.wait_for("out", "out_of_network")


def test_a_ttl_that_ends_at_the_far_side_is_answered(rig: Rig) -> None:
    data = packets.packet(rig.family, 2, 1, ttl=1)
    rig.send(data)
    assert rig.take() == icmp_error(data, packed(rig.overlay(1)), 11 if rig.family == 4 else 3, 0, 0)
    rig.wait_for("in", "ttl_expired")


def test_errors_about_errors_are_not_sent(rig: Rig) -> None:
    error = icmp_error(packets.packet(rig.family, 2, 1), packed(rig.overlay(9)), 3 if rig.family == 4 else 1, 0, 0)
    dead = bytearray(error)
    dead[8 if rig.family == 4 else 7] = 1
    rig.give(bytes(dead))
    wait_until(lambda: rig.events("out")["icmp_not_allowed"] == 1, "the rule is counted")


def test_errors_are_limited(rig: Rig) -> None:
    for _ in range(200):
        rig.give(packets.packet(rig.family, 1, 9))
    rig.wait_for("out", "no_route", 200)
    events = rig.events("out")
    assert events["icmp_sent"] + events["icmp_limited"] == 200
    assert 50 <= events["icmp_sent"] < 200


@pytest.mark.parametrize("fragment", [0x4000, 0])
def test_what_no_datagram_can_carry_is_too_big(rig4: Rig, fragment: int) -> None:
    """No IP packet is longer than 65535 bytes, outer headers included, and no fragmenting helps.

    The quote is one hop older: forwarding had begun (RFC 1812, 4.3.2.3 allows it).
    """
    data = ipv4("10.5.1.2", "10.5.2.2", bytes(65515), fragment=fragment)
    rig4.give(data)
    assert rig4.take() == icmp_error(packets.hop(data), packed("10.5.1.0"), 3, 4, 65535 - 28)
    rig4.wait_for("out", "too_big")


@pytest.mark.parametrize(("underlay", "outcome", "error"), [
    ("255.255.255.255", "send_forbidden", errno.EACCES),  # broadcast, which the socket was not allowed
    ("198.51.100.1", "send_error", errno.EINVAL),  # from a loopback address to a real one
])
def test_what_the_kernel_refuses_is_named(rig4: Rig, underlay: str, outcome: str, error: int) -> None:
    rig4.set_route(3, PEER + 1)
    rig4.set_peer(PEER + 1, underlay)
    rig4.give(packets.packet(4, 1, 3))
    rig4.wait_for("out", outcome)
    assert rig4.worker.last_error() == error
    rig4.give(packets.packet(4, 1, 2))  # and the next peer is not concerned
    assert rig4.receive()


def test_errors_of_the_socket_do_not_end_the_loop(rig4: Rig) -> None:
    rig4.udp.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    with udp_socket("127.0.0.3") as closed:
        port = closed.getsockname()[1]
    rig4.set_route(3, PEER + 1)
    rig4.set_peer(PEER + 1, "127.0.0.3", port)
    rig4.give(packets.packet(4, 1, 3))
    wait_until(lambda: rig4.events("in")["receive_errors"], "the port that is unreachable is told")
    rig4.send(packets.packet(4, 2, 1))
    assert rig4.take()


def test_a_full_tun_drops_and_goes_on(rig: Rig) -> None:
    """A unix socket that nobody reads fills, as no TUN does but for want of memory."""
    rig.peer.setblocking(True)
    data = packets.packet(rig.family, 2, 1, bytes(60_000))

    def filled() -> bool:
        rig.send(data)
        return "tun_full" in rig.outcomes("in")

    wait_until(filled, "the TUN is full")
    rig.take()


def test_a_tun_that_refuses() -> None:
    with Rig(tun_type=socket.SOCK_DGRAM) as rig:
        rig.kernel.close()
        rig.send(packets.packet(4, 2, 1))
        rig.wait_for("in", "tun_refused")


def test_strangers_are_named(rig4: Rig) -> None:
    assert rig4.worker.stranger() is None
    with udp_socket("127.0.0.77") as stranger:
        stranger.sendto(packets.packet(4, 2, 1), rig4.udp.getsockname())
        rig4.wait_for("in", "unknown_sender")
        assert rig4.worker.stranger() == (packed("127.0.0.77"), stranger.getsockname()[1])


def test_peers_are_known_by_address_among_many(rig4: Rig) -> None:
    """Table and hash grow under a running loop; each of 300 peers is then known, whatever its port."""
    underlay = {slot: f"127.1.{slot // 200}.{slot % 200 + 1}" for slot in range(FIRST_PEER + 1, 253)}
    for slot, address in underlay.items():
        rig4.builder.set_peer(slot, 1, packed(address), 8285)
    rig4.builder.publish()
    for slot in list(underlay)[::10]:
        with udp_socket(underlay[slot]) as peer:
            peer.sendto(packets.packet(4, 2, 1), rig4.udp.getsockname())
            assert rig4.take()
    rig4.wait_for("in", "delivered", len(list(underlay)[::10]))
    assert [slot for slot in underlay if rig4.worker.peer_count("in", slot, 1)[0]] == list(underlay)[::10]


def zero_loop(direction: str, rig: Rig) -> threading.Thread:
    """A loop whose door never ends: /dev/zero always has another frame."""
    rig.tun.close()
    rig.tun = open("/dev/zero", "r+b", buffering=0)  # type: ignore[assignment] # noqa: PTH123, SIM115 - as a descriptor
    thread = threading.Thread(target=rig.run, args=(direction,))
    thread.start()
    return thread


def test_stop_is_seen_in_an_endless_flood_out() -> None:
    rig = Rig()
    rig.threads = [zero_loop("out", rig)]
    try:
        wait_until(lambda: rig.events("out")["batches"] > 100, "the flood")
    finally:
        os.eventfd_write(rig.stop_fd, 1)
        rig.threads[0].join(1)
        alive = rig.threads[0].is_alive()
        rig.close()
    assert not alive
    count, _, _ = rig.worker.counters("out")
    assert rig.outcomes("out") == {"not_ip": count}
    assert count == 3 * rig.events("out")["batches"], "an arena of 256 KiB holds 3 full frames and their gaps"


def test_stop_is_seen_in_a_flood_in(rig4: Rig) -> None:
    data, done = packets.packet(4, 2, 9), threading.Event()

    def flood() -> None:
        with udp_socket("127.0.0.2") as sender:
            sender.setblocking(True)
            while not done.is_set():
                sender.sendto(data, rig4.udp.getsockname())

    flooders = [threading.Thread(target=flood) for _ in range(2)]
    for thread in flooders:
        thread.start()
    try:
        rig4.wait_for("in", "not_ours", 2000)
        os.eventfd_write(rig4.stop_fd, 1)
        for thread in rig4.threads:
            thread.join(1)
        assert not any(thread.is_alive() for thread in rig4.threads)
    finally:
        done.set()
        for thread in flooders:
            thread.join()


def test_idle_loops_sleep(rig: Rig) -> None:
    rig.give(packets.packet(rig.family, 1, 2))
    rig.receive()
    before = rig.events("out"), rig.events("in")
    assert not threading.Event().wait(0.3)
    after = rig.events("out"), rig.events("in")
    assert all(now["wake_ups"] - then["wake_ups"] <= 1 for then, now in zip(before, after, strict=True))


def failing(rig: Rig, direction: str, fd: int) -> int | None:
    """The errno that ends a loop whose door is this descriptor."""
    doors = (fd, rig.udp.fileno()) if direction == "out" else (rig.tun.fileno(), fd)
    try:
        getattr(rig.worker, LOOPS[direction])(*doors, rig.path.fileno(), rig.stop_fd)
    except OSError as error:
        return error.errno
    return None


def test_a_door_that_fails_ends_the_loop_with_its_error() -> None:
    rig = Rig()
    reading, writing = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    try:
        assert failing(rig, "out", writing) == errno.EBADF
        assert failing(rig, "out", directory) == errno.EISDIR
        assert failing(rig, "in", reading) == errno.ENOTSOCK
        assert failing(rig, "in", 1 << 20) == errno.EBADF
        with rig:  # and the worker is as good as new
            rig.give(packets.packet(4, 1, 2))
            assert rig.receive()
    finally:
        for fd in (reading, writing, directory):
            os.close(fd)


def test_a_loop_runs_once(rig: Rig) -> None:
    rig.give(packets.packet(rig.family, 1, 2))
    rig.receive()
    rig.send(packets.packet(rig.family, 2, 1))
    rig.take()
    for loop in LOOPS.values():
        with pytest.raises(RuntimeError, match="runs already"):
            getattr(rig.worker, loop)(rig.tun.fileno(), rig.udp.fileno(), rig.path.fileno(), rig.stop_fd)


def test_counters_and_table_survive_a_restart(rig: Rig) -> None:
    for turn in range(1, 4):
        rig.give(packets.packet(rig.family, 1, 2))
        assert rig.receive()
        rig.wait_for("out", "sent", turn)
        rig.stop()
        rig.check_law()
        rig.start()


def measures() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def test_a_thousand_starts_and_stops_leak_nothing() -> None:
    rig = Rig()
    before, memory = measures(), 0
    for turn in range(1000):
        rig.start()
        if turn % 10 == 0:
            rig.give(packets.packet(4, 1, 2))
            assert rig.receive()
        rig.stop()
        if turn == 100:
            memory = resident()
    assert measures() == before
    assert resident() - memory < LEAK
    rig.check_law()
    rig.close()


def test_workers_come_and_go_without_leaks() -> None:
    """Two arenas of a mebibyte each: a thousand kept would be 2 GiB, though of pages that were never touched."""

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    builder = Builder(packed("10.5.0.0"), 16, 24)
    memory = 0
    for turn in range(1000):
        Worker(builder, coat_length=0, ttl_step=1, overhead=28, source_check=1)
        if turn == 100:
            memory = mapped()
    assert mapped() - memory < LEAK


def test_a_table_has_places_for_32_workers() -> None:
    def worker() -> Worker:
        return Worker(builder, coat_length=0, ttl_step=1, overhead=28, source_check=1)

    builder = Builder(packed("10.5.0.0"), 16, 24)
    workers = [worker() for _ in range(32)]
    with pytest.raises(MemoryError):
        worker()
    workers.pop()
    workers.append(worker())


def test_the_builder_outlives_its_workers_whatever_the_collector_does() -> None:
    """In a cycle, with the Worker older than the list: the collector meets the Worker first."""
    for _ in range(20):
        cycle: list[object] = []
        worker = Worker(Builder(packed("10.5.0.0"), 16, 24), coat_length=0, ttl_step=1, overhead=28, source_check=1)
        cycle = [worker]
        cycle.append(cycle)
        del worker, cycle
        gc.collect()


def test_words_that_are_no_direction() -> None:
    rig = Rig()
    with pytest.raises(ValueError, match='"out" or "in" is wanted'):
        rig.worker.counters("up")
    with pytest.raises(ValueError, match="there are 515"):
        rig.worker.peer_count("in", 515, 1)
    with pytest.raises(ValueError, match="source check 9"):
        Worker(rig.builder, coat_length=0, ttl_step=1, overhead=28, source_check=9)
    rig.close()
