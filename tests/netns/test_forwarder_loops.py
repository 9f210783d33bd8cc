"""How the loops of a Forwarder run: threads, names, CPUs, patience; with all offloads, without, and after a refusal."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.forwarder import Loops

from ..conftest import wait_until
from .agent import Agent
from .test_forwarder import MakeAgents, agents, pod_of, transfer

__all__ = ["agents"]  # a fixture, taken by name

SO_NO_CHECK = 11  # asm-generic/socket.h; UDP_SEGMENT is refused where it is set
MIB = 1 << 20


def threads_of(agent: Agent) -> dict[str, int]:
    """The names of an agent's threads, and their ids."""
    running = agent.forwarder._running
    assert running is not None
    return {thread.name: thread.native_id for thread in running.threads if thread.native_id}


def named_by_the_kernel(native_id: int) -> str:
    """What `top -H` calls a thread."""
    return Path(f"/proc/self/task/{native_id}/comm").read_text().strip()


@pytest.fixture(params=[1, 2])
def running(agents: MakeAgents, request: pytest.FixtureRequest) -> tuple[Loops, list[Agent]]:
    loops = Loops(threads=request.param)
    return loops, agents(2, loops=loops)


def test_threads_have_names_in_top(running: tuple[Loops, list[Agent]]) -> None:
    loops, (one, _) = running
    named = threads_of(one)
    assert list(named) == {1: ["both_ways"], 2: ["tun_to_udp", "udp_to_tun"]}[loops.threads]
    for name, native_id in named.items():
        wait_until(lambda id_=native_id, name=name: named_by_the_kernel(id_) == name,  # type: ignore[misc]
                   "the thread has its name")


def test_one_thread_or_two_carry_tcp_both_ways(running: tuple[Loops, list[Agent]]) -> None:
    _, (one, two) = running
    pods = [pod_of(agent) for agent in (one, two)]
    transfer(pods[0], pods[1], 16 * MIB)
    transfer(pods[1], pods[0], 16 * MIB)
    # Super-packets really passed: several packets per frame, several per message.
    for agent, direction in ((one, "out"), (two, "in")):
        wait_until(lambda agent=agent, direction=direction:  # type: ignore[misc]
                   agent.forwarder.counters()[direction].law_holds, "the traffic rests")
        counters = agent.forwarder.counters()[direction]
        assert counters.packets > 4 * counters.events["frames"]
        assert counters.packets > 4 * counters.events["messages"]


def test_one_thread_tells_its_end_and_starts_again(agents: MakeAgents) -> None:
    one, two = agents(2, loops=Loops(threads=1))
    one.node.ip(f"link delete {one.tun.name}")
    wait_until(lambda: one.exits, "the loop tells its end")
    assert [loop for loop, _ in one.exits] == ["both_ways"]
    for _ in range(3):
        one.stop()
        one.start()
        assert one.node.ping(two.tunnel).returncode == 0


def test_a_sleeping_loop_costs_nothing(running: tuple[Loops, list[Agent]]) -> None:
    """No timer wakes it: while nothing comes it is woken not once, and is given no processor."""
    _, (one, two) = running
    assert one.node.ping(two.tunnel).returncode == 0
    threads = threads_of(one).values()

    def wakings() -> list[int]:
        return [*map(voluntary_switches, threads), one.events("out")["wake_ups"], one.events("in")["wake_ups"]]

    before = wait_until(lambda: rested(wakings), "what the ping left behind is done")
    time.sleep(1)  # what must not come can only be waited for
    assert wakings() == before


def rested(wakings: Callable[[], list[int]]) -> list[int]:
    """The counts, once they have stood still for a moment."""
    before = wakings()
    time.sleep(0.2)
    return before if wakings() == before else []


def voluntary_switches(native_id: int) -> int:
    for line in Path(f"/proc/self/task/{native_id}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError("no such line")


def test_threads_are_pinned_in_turn(agents: MakeAgents) -> None:
    usable = sorted(os.sched_getaffinity(0))
    cpus = (usable[-1], usable[0])
    one, two = agents(2, loops=Loops(threads=2, cpus=cpus))
    for name, cpu in zip(("tun_to_udp", "udp_to_tun"), cpus, strict=True):
        wait_until(lambda name=name, cpu=cpu:  # type: ignore[misc]
                   os.sched_getaffinity(threads_of(one)[name]) == {cpu}, "the thread is pinned")
    assert os.sched_getaffinity(0) == set(usable)
    assert one.node.ping(two.tunnel).returncode == 0
    assert one.forwarder.notices() == []


def test_a_cpu_that_is_gone_is_said_and_packets_pass(agents: MakeAgents) -> None:
    one, two = agents(2, loops=Loops(threads=1, cpus=(99_999,)))
    assert one.node.ping(two.tunnel).returncode == 0
    notice, = one.forwarder.notices()
    assert (notice.event, notice.cause) == ("thread not pinned", "cpus")
    assert "both_ways runs on any CPU, not on 99999" in notice.meaning
    assert one.forwarder.notices() == []


@pytest.mark.parametrize("threads", [1, 2])
def test_busy_polling_answers_without_sleeping_between(agents: MakeAgents, threads: int) -> None:
    """Patience of a second outlasts the pauses of this ping, so the loop sleeps only before it and after it."""
    one, two = agents(2, loops=Loops(threads=threads, busy_poll=1_000_000))
    assert one.node.ping(two.tunnel, "-i", "0.01", count=20).returncode == 0
    assert one.outcomes("out") == {"sent": 20}
    assert one.events("out")["wake_ups"] <= 2
    one.stop()  # within a second, as ever
    one.start()


OFF = [("tun",), ("udp_segment",), ("udp_gro",), ("tun", "udp_segment", "udp_gro")]


@pytest.mark.parametrize("off", OFF, ids=",".join)
def test_each_offload_can_be_switched_off(agents: MakeAgents, off: tuple[str, ...]) -> None:
    one, two = agents(2, off=off)
    transfer(pod_of(one), pod_of(two), 4 * MIB)
    wait_until(lambda: one.forwarder.counters()["out"].law_holds and two.forwarder.counters()["in"].law_holds,
               "the traffic rests")
    out, into = one.forwarder.counters()["out"], two.forwarder.counters()["in"]
    packets = into.outcomes["delivered"]
    assert (out.events["super_packets"] == 0) == ("tun" in off)
    assert (into.events["super_packets"] == 0) == ("tun" in off)
    assert (out.events["messages"] == out.outcomes["sent"]) == ("udp_segment" in off)
    assert (into.events["messages"] == packets) == bool({"udp_segment", "udp_gro"} & {*off})
    assert one.forwarder.notices() == []
    assert one.forwarder.given_up() == {}


def test_a_message_that_the_kernel_refuses_goes_one_by_one_and_is_said_once(agents: MakeAgents) -> None:
    """A socket without checksums takes no UDP_SEGMENT: the refusal of old kernels, brought about on a new one."""
    one, two = agents(2)
    one.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    transfer(pod_of(one), pod_of(two), 4 * MIB)
    notice, = one.forwarder.notices()
    assert (notice.event, notice.cause, notice.detail) == ("offload given up", "udp_segment", "Invalid argument")
    assert list(one.forwarder.given_up()) == ["udp_segment"]
    assert one.forwarder.given_up()["udp_segment"].startswith("Invalid argument: the kernel refused a message")
    assert one.forwarder.notices() == []
    assert set(one.outcomes("out")) == {"sent"}
    one.stop()
    one.start()
    assert one.forwarder.given_up() == {}, "another start may have better luck"
    transfer(one.node.pods[0], two.node.pods[0], MIB)
    assert list(one.forwarder.given_up()) == ["udp_segment"]
    assert one.forwarder.notices() == [], "but it is said only once"
