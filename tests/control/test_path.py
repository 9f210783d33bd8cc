"""The data path's life, with device, sockets and data plane on paper (fakes.py)."""

from collections.abc import Iterator

import pytest

from flannel_udp.backend import path as path_module
from flannel_udp.backend.path import DELAY_MAX, DELAY_MIN, HELD, DataPath, LoopEnded
from flannel_udp.errors import TunError

from .fakes import FakeLinks, FakeTunnel, lease


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(path_module, "time", clock)
    return clock


@pytest.fixture
def tunnel() -> FakeTunnel:
    return FakeTunnel(FakeLinks())


@pytest.fixture
def path(tunnel: FakeTunnel, clock: Clock) -> Iterator[DataPath]:
    del clock
    events: list[LoopEnded] = []
    path = DataPath(tunnel, tunnel.links, events.append)
    path.open(lease("10.5.1.0/24"))
    yield path
    path.close()


def delays(path: DataPath, clock: Clock, tries: int) -> list[float]:
    """How long each of the next tries is waited for."""
    waited = []
    for _ in range(tries):
        assert path.retry_at is not None
        waited.append(round(path.retry_at - clock.now, 3))
        clock.now = path.retry_at
        path.mend()
    return waited


def test_delays_grow_for_as_long_as_the_path_stays_broken(path: DataPath, tunnel: FakeTunnel, clock: Clock) -> None:
    tunnel.refusals["open_device"] = TunError("cannot open")
    clock.now += 2 * HELD
    path.broke("deleted")
    assert delays(path, clock, 12) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, *[DELAY_MAX] * 5]
    del tunnel.refusals["open_device"]
    delays(path, clock, 1)
    assert path.retry_at is None


def test_a_path_that_held_begins_with_the_smallest_delay(path: DataPath, clock: Clock) -> None:
    path.broke("deleted")
    delays(path, clock, 1)
    path.broke("deleted at once")
    assert delays(path, clock, 1) == [2 * DELAY_MIN]
    clock.now += HELD + 1
    path.broke("deleted late")
    assert delays(path, clock, 1) == [DELAY_MIN]
