"""rcu.pxd: no reader ever sees a block that is mixed or freed, none holds one while it sleeps; and what goes, goes."""

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import pytest

from flannel_udp._dataplane import Builder
from flannel_udp._probe import RcuTrial

from ..conftest import wait_until
from .packets import packed, packet
from .rig import LEAK, PEER, Rig, resident

PUBLISHES = 100_000


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_never_see_a_mixed_block(readers: int) -> None:
    """Readers and a writer at once; freed blocks are overwritten first, so that a late reader would notice."""
    trial = RcuTrial()
    with ThreadPoolExecutor(readers) as pool:
        running = [pool.submit(trial.read, place, 60_000) for place in range(readers)]
        stamp = 2
        while not all(future.done() for future in running) or stamp < 1000:
            trial.publish(stamp)
            stamp += 1
        wait(running)
    assert [future.result() for future in running] == [0] * readers
    assert trial.publish(stamp) == 1


def test_sleepers_hold_nothing() -> None:
    trial = RcuTrial()
    trial.read(0, 10)
    for stamp in range(2, 100):
        assert trial.publish(stamp) == 1


def test_a_reader_in_its_batch_holds_what_it_may_read() -> None:
    trial = RcuTrial()
    trial.hold(3)
    assert [trial.publish(stamp) for stamp in range(2, 6)] == [2, 3, 4, 5]
    trial.let_go(3)
    assert trial.publish(9) == 1


def test_the_slowest_reader_decides() -> None:
    trial = RcuTrial()
    trial.hold(0)
    trial.publish(2)
    trial.hold(63)
    trial.publish(3)
    trial.let_go(0)
    assert trial.publish(4) == 3  # 63 may still read the block of 2, and so what came after stays too
    trial.hold(63)  # a new batch
    assert trial.publish(5) == 2
    trial.let_go(63)
    assert trial.publish(6) == 1


def test_places_are_bounded() -> None:
    for place in (-1, 64):
        with pytest.raises(ValueError, match="there are 64"):
            RcuTrial().read(place, 1)


def test_publishing_takes_no_memory() -> None:
    """A hundred thousand publishes with a change each, and no loop."""
    builder = Builder(packed("10.5.0.0"), 16, 24)
    before = 0
    for turn in range(PUBLISHES + 1000):
        if turn == 1000:
            before = resident()
        builder.set_peer(3, turn + 1, packed("192.0.2.1"), 8285)
        builder.set_route(packed(f"10.5.{turn % 256}.0"), 24, 3)
        epoch = builder.publish()
    assert resident() - before < LEAK
    assert builder.passed(epoch)
    assert builder.status()["retired"] == 0


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_publishing_beside_loops_takes_no_memory(busy: bool) -> None:
    """Idle loops hold nothing back; busy ones pass on. No packet of the standing route is lost meanwhile."""
    with Rig() as rig:
        data, given, before = packet(4, 1, 2), 0, 0
        for turn in range(PUBLISHES):
            if turn == PUBLISHES // 10:
                before = resident()
            if turn % 2:
                rig.set_route(7, PEER)
            else:
                rig.builder.delete_route(packed("10.5.7.0"), 24)
            rig.builder.publish()
            if busy and turn % 20 == 0:
                rig.give(data)
                given += 1
                if given > 30:  # what a socket's buffer holds
                    rig.receive()
        assert resident() - before < LEAK
        wait_until(lambda: rig.builder.publish() and rig.builder.status()["retired"] == 0, "nothing is held")
        rig.wait_for("out", "sent", given)
        assert rig.outcomes("out") == ({"sent": given} if busy else {})


def test_a_loop_sees_what_is_published_before_the_packet() -> None:
    with Rig() as rig:
        for turn in range(300):
            rig.set_route(7, PEER)
            rig.builder.publish()
            rig.give(packet(4, 1, 7))
            assert rig.receive()
            rig.builder.delete_route(packed("10.5.7.0"), 24)
            passed = partial(rig.builder.passed, rig.builder.publish())
            rig.give(packet(4, 1, 7))
            rig.wait_for("out", "no_route", turn + 1)
            wait_until(passed, "the loop has passed or sleeps")
