"""The order of a run, its length, and the search for a rate, on made-up paths."""

import sys
from pathlib import Path

import pytest

# Last, so that it shadows nothing: under -P this folder is not on the path.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.rivals import rates
from benchmarks.rivals.plan import SIZES, Row, duration, schedule
from benchmarks.rivals.sample import Failed


def test_a_round_goes_through_all_and_the_next_one_back() -> None:
    rows = (Row("all", "tcp-1", ("a", "b", "c")), Row("none", "ask", ("a", "b")), Row("all", "ask", ("c", "a")))
    assert [(row.mode, row.load, number, "".join(order)) for row, number, order in schedule(rows, 3)] == [
        ("all", "tcp-1", 0, "abc"), ("all", "ask", 0, "ca"), ("all", "tcp-1", 1, "cba"), ("all", "ask", 1, "ac"),
        ("all", "tcp-1", 2, "abc"), ("all", "ask", 2, "ca"),
        ("none", "ask", 0, "ab"), ("none", "ask", 1, "ba"), ("none", "ask", 2, "ab"),
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "minutes"), [("quick", 5), ("standard", 30), ("backends", 40)])
def test_a_size_keeps_its_limit(size: str, minutes: int) -> None:
    assert duration(*SIZES[size]) < 60 * minutes


def found(capacity: float, sender: float, overload: float = 1.0) -> tuple[rates.Trial, list[rates.Trial]]:
    """The best rate over a path of a known capacity, of which a part arrives when more is offered; and all trials."""
    tried: list[rates.Trial] = []

    def attempt(offered: float) -> rates.Trial:
        sent = min(offered or sender, sender)
        arrived = sent if sent <= capacity else min(0.98 * sent, overload * capacity)
        tried.append(rates.Trial(sent, arrived, 1 - arrived / sent))
        return tried[-1]

    return rates.search(attempt), tried


@pytest.mark.parametrize("overload", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("capacity", [2_000, 43_000, 100_000, 299_000])
def test_the_search_finds_the_rate_that_a_path_carries(capacity: float, overload: float) -> None:
    best, tried = found(capacity, 300_000, overload)
    assert best.passed
    assert capacity / rates.CLOSE <= best.sent_pps <= capacity
    assert len(tried) <= 1 + rates.STEPS


def test_the_search_ends_where_the_sender_is_the_slower() -> None:
    best, tried = found(400_000, 300_000)
    assert (best.sent_pps, len(tried)) == (300_000, 1)


def test_a_path_that_always_loses_fails_in_one_line() -> None:
    with pytest.raises(Failed, match=r"^\d+ datagrams a second, the fewest tried, still lost more than 0.1%$"):
        rates.search(lambda offered: rates.Trial(offered or 1e5, (offered or 1e5) * 0.99, 0.01))


def test_what_does_not_hold_for_longer_is_offered_less() -> None:
    def attempt(offered: float) -> rates.Trial:
        return rates.Trial(offered, offered, 0.0 if offered < 80_000 else 0.01)

    assert rates.confirm(attempt, rates.Trial(100_000, 100_000, 0)).sent_pps == pytest.approx(72_250)
