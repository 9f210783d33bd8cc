"""Reports on made-up samples: figures, paired ratios, verdicts on the targets, and what stands before them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .reports import Page, compare, numbers

# Last, so that it shadows nothing: under -P this folder is not on the path.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import report
from benchmarks.rivals.plan import Row

MADE_UP = Row("all", "tcp-1", ("vxlan", "flannel", "flannel_udp"))


def made_up(samples: dict[str, list[float]], row: Row = MADE_UP, value: str = "gbps", **more: object) -> dict[str, Any]:
    """A record with these values of the contenders, round by round."""
    return {
        "machine": {"busy before the start": 0, "load at start": 0.0}, "rounds": 5, "seconds": 1.0, "failures": [],
        "rows": [{"mode": row.mode, "load": row.load, "contenders": list(row.contenders)}],
        "contenders": {"wireguard-go": {"encrypts": True, "mtu": 1420}},
        "modes": {row.mode: {"meaning": "<made> & up", "on": []}},
        "samples": [{"mode": row.mode, "load": row.load, "contender": name, "round": number, value: figure, "cpu": 1.0,
                     "steal": 0.0} for name, figures in samples.items() for number, figure in enumerate(figures)],
    } | more  # fmt: skip


def verdicts(record: dict[str, Any]) -> Iterator[tuple[str, str, float, str]]:
    """(measure, rival, median of the paired ratios, verdict) of each target in the report."""
    _, *rows = Page(report.html(record)).tables["Targets: flannel_udp against its rivals"]
    for measure, rival, _, _, _, paired, _, verdict in rows:
        yield measure, rival, numbers(paired)[0], verdict


@pytest.mark.parametrize(("ours", "against_flannel", "against_vxlan"), [
    (6.0, "missed", "missed"), (7.5, "missed", "floor reached"), (8.6, "missed", "aim reached"),
    (11.0, "floor reached", "aim reached"), (20.0, "aim reached", "aim reached"),
])  # fmt: skip
def test_a_verdict_on_more_is_better(ours: float, against_flannel: str, against_vxlan: str) -> None:
    record = made_up({"vxlan": [10.0] * 3, "flannel": [1.0] * 3, "flannel_udp": [ours] * 3})
    first, second = verdicts(record)
    assert first == ("TCP 1 flow", "flannel", ours, against_flannel)
    assert (second[1], second[3]) == ("vxlan", against_vxlan)
    assert second[2] == pytest.approx(ours / 10)


@pytest.mark.parametrize(("ours", "verdict"), [(0.6, "aim reached"), (1.0, "floor reached"), (1.1, "missed")])
def test_a_verdict_on_less_is_better(ours: float, verdict: str) -> None:
    row = Row("all", "ask", ("flannel", "flannel_udp"))
    record = made_up({"flannel": [100.0] * 3, "flannel_udp": [100 * ours] * 3}, row, "p50")
    ((measure, rival, ratio, said),) = verdicts(record)
    assert (measure, rival, said) == ("UDP request-response p50", "flannel", verdict)
    assert ratio == pytest.approx(ours)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine is unsteady, and ours has no fourth round: the ratio of medians says 1.09, and every round 0.6 or so.
    record = made_up({"flannel": [], "vxlan": [10.0, 1.0, 20.0, 1.0], "flannel_udp": [6.0, 0.5, 12.0]})
    ((_, _, *texts, held, verdict),) = Page(report.html(record)).tables["Targets: flannel_udp against its rivals"][1:]
    assert (texts[-2], numbers(texts[-1]), held, verdict) == ("1.09", [0.6, 0.5, 0.6], "0 of 3", "missed")
    assert compare(record, Page(report.html(record)).tables) == 2


def test_ipv6_is_compared_with_ipv6() -> None:
    row = Row("all", "flows-64", ("vxlan", "vxlan:family=6", "flannel_udp:family=6"))
    record = made_up({"vxlan": [1e5] * 3, "vxlan:family=6": [5e4] * 3, "flannel_udp:family=6": [1e5] * 3}, row, "pps")
    (rows,) = (table for title, table in Page(report.html(record)).tables.items() if "16 flows" in title)
    assert [line[3] for line in rows[1:]] == ["-", "-", "2 (2 - 2)"]
    assert compare(record, Page(report.html(record)).tables) == 3


def test_what_is_to_be_doubted_stands_before_the_figures() -> None:
    row = Row("all", "rate-64", ("vxlan", "wireguard-go"))
    record = made_up({"vxlan": [1e5], "wireguard-go": [2e4]}, row, "pps", rounds=1, interrupted=True)
    record["machine"]["busy before the start"] = 0.4
    record["samples"][0]["steal"] = 1.0
    first, *_ = report.markdown(record).partition("\n## The highest rate")
    for words in ("BUSY MACHINE", "steal", "Only 1 rounds", "interrupted", "wireguard-go encrypts", "1420"):
        assert words in first
    assert "wireguard-go (encrypts)" in report.html(record)
    assert "&lt;made&gt; &amp; up" in report.html(record)
