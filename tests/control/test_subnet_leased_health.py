"""The leased subnet manager's health: when the registry was heard, and why it is not."""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from flannel_udp.errors import NoConfig, RegistryUnavailable
from flannel_udp.registry import Listing
from flannel_udp.registry.sqlite import SqliteRegistry
from flannel_udp.subnet import PeersReset
from tests.conftest import DEADLINE, wait_until
from tests.control.leased_world import Events, Gated, World, attrs


def test_health_tells_when_the_registry_was_heard_and_why_not(world: World) -> None:
    registry = Gated(world.path)
    manager = world.manager(registry=registry)
    assert manager.health().lease_written_at is None
    before = time.time()
    manager.acquire(attrs("1.1.1.1"))
    events = Events(manager)
    events.next(PeersReset)
    well = manager.health()
    assert (well.trouble, well.counters["errors"]) == ("", 0)
    assert before <= (well.lease_written_at or 0) <= time.time()
    heard = time.monotonic() - well.lag
    registry.cut()
    wait_until(lambda: manager.health().counters["errors"] >= 3, "each failure is counted")
    ill = manager.health()
    assert ill.trouble == "cut off by the test"
    with pytest.raises(RegistryUnavailable):
        manager.update(attrs("1.1.1.1"))
    assert time.monotonic() - manager.health().lag < heard + DEADLINE
    lag = manager.health().lag
    wait_until(lambda: manager.health().lag > lag + 0.1, "it grows")
    registry.down.clear()
    wait_until(lambda: manager.health().trouble == "", "it is heard again")
    assert manager.health().lag < lag + 0.1


def test_a_quiet_registry_is_heard_again_and_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_udp.subnet.leased.HEARD_WITHIN", 0.02)
    manager = world.manager()
    manager.acquire(attrs("1.1.1.1"))
    Events(manager).next(PeersReset)
    quiet_since = time.monotonic()
    wait_until(lambda: time.monotonic() - quiet_since > 0.5 and manager.health().lag < 0.25, "it is heard while quiet")


def test_health_is_told_while_a_call_of_the_registry_hangs(world: World) -> None:
    entered, gate = threading.Event(), threading.Event()

    class Hanging(SqliteRegistry):
        def snapshot(self) -> Listing:
            entered.set()
            gate.wait(DEADLINE)
            return super().snapshot()

    manager = world.manager(registry=Hanging(world.path))
    thread = threading.Thread(target=manager.acquire, args=(attrs("1.1.1.1"),))
    manager.config()
    thread.start()
    try:
        assert entered.wait(DEADLINE)
        before = time.monotonic()
        assert manager.health().trouble == ""
        assert time.monotonic() - before < DEADLINE / 2
    finally:
        gate.set()
        thread.join()


def test_an_answer_that_is_no_is_an_answer(tmp_path: Path) -> None:
    empty = World(tmp_path / "empty.db")
    try:
        with closing(SqliteRegistry(str(tmp_path / "none.db"))) as registry:
            manager = empty.manager(registry=registry)
            with pytest.raises(NoConfig):
                manager.config()
            assert manager.health().trouble == ""
            assert manager.health().counters["errors"] == 0
    finally:
        empty.close()
