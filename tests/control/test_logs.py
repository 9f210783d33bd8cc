"""logs: one line per event, values that cannot break it, and a limit by cause on a clock of our own."""

import io
import re
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from flannel_udp import logs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    logs.configure(0, clock)
    yield clock
    logs.configure(0)


@pytest.fixture
def lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    assert clock.now == 0.0
    return lambda: capsys.readouterr().err.splitlines()  # noqa: PLW0108  (read at each call)


def test_a_line_holds_time_level_room_event_and_fields_in_order(lines: Callable[[], list[str]]) -> None:
    logs.get("daemon").warning("unknown sender", address="192.0.2.7", count=3, known=False, peer=None)
    (line,) = lines()
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warning room=daemon "
        r'event="unknown sender" address=192\.0\.2\.7 count=3 known=false peer=none', line)


@pytest.mark.parametrize(("value", "written"), [
    ("eth0", "eth0"), ("", '""'), ("a b", '"a b"'), ("a=b", '"a=b"'), ('say "x"', '"say \\"x\\""'),
    ("a\\b", '"a\\\\b"'), ("two\nlines\r\t", '"two\\nlines\\r\\t"'), ("\x1b[31m", '"\\u001b[31m"'),
    ("\u2028", '"\\u2028"'), ("größe", "größe"), ("\U000e0001", '"\\U000e0001"'), (1.5, "1.5"), (True, "true"),
    (1, "1"), (OSError(13, "denied"), '"[Errno 13] denied"'),
])
def test_values_stay_on_their_line(value: object, written: str) -> None:
    assert logs.quoted(value) == written


def test_verbosity_decides_about_debug(clock: Clock, lines: Callable[[], list[str]]) -> None:
    log = logs.get("tun")
    log.debug("detail")
    assert lines() == []
    logs.configure(1, clock)
    log.debug("detail")
    log.info("fact")
    log.error("end")
    assert [re.findall(r"level=(\w+)", line)[0] for line in lines()] == ["debug", "info", "error"]


def test_a_cause_that_repeats_is_held_back_and_counted(clock: Clock, lines: Callable[[], list[str]]) -> None:
    log = logs.get("daemon")
    for _ in range(logs.BURST + 7):
        log.info("again")
    assert len(lines()) == logs.BURST
    clock.now += logs.INTERVAL
    log.info("again")
    log.info("again")
    (line,) = lines()
    assert line.endswith("suppressed=7")
    clock.now += logs.INTERVAL
    log.info("again")
    assert lines()[0].endswith("suppressed=1")


def test_causes_are_limited_apart_and_group_different_events(clock: Clock, lines: Callable[[], list[str]]) -> None:
    log = logs.get("daemon")
    for number in range(20):
        log.info(f"sender {number}", cause="unknown sender")
    log.info("other")
    logs.get("tun").info("sender", cause="unknown sender")
    assert len(lines()) == logs.BURST + 2
    assert clock.now == 0


def test_a_held_back_debug_line_costs_no_token(lines: Callable[[], list[str]]) -> None:
    log = logs.get("daemon")
    for _ in range(50):
        log.debug("same")
    log.info("same")
    assert len(lines()) == 1


def test_the_highest_verbosity_lifts_the_limit(clock: Clock, lines: Callable[[], list[str]]) -> None:
    logs.configure(2, clock)
    for _ in range(50):
        logs.get("daemon").debug("same")
    assert len(lines()) == 50


def test_what_is_remembered_of_causes_has_an_end() -> None:
    limiter = logs.Limiter(Clock())
    for number in range(3 * logs.CAUSES):
        assert limiter.admit(("daemon", str(number))) == 0
    assert len(limiter.buckets) == logs.CAUSES


def test_lines_of_many_threads_stay_whole(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure(2, clock)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log = logs.get("daemon")

    def talk() -> None:
        for n in range(200):
            log.info("x", n=n)

    threads = [threading.Thread(target=talk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = stream.getvalue().splitlines()
    assert len(written) == 1600
    assert all(re.fullmatch(r"time=\S+ level=info room=daemon event=x n=\d+", line) for line in written)


def test_a_closed_stderr_stops_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.get("daemon").error("lost")
    assert clock.now == 0
