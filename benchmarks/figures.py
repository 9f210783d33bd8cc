"""Figures out of the samples of a run: medians with their spread, paired ratios, verdicts, tables of these."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.rivals.plan import FLANNEL, TARGETS, VXLAN, Target

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of words under its title."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Kind:
    """How loads of one kind are shown: the value that is compared, its unit, a factor; and columns beside it."""

    title: str
    value: str
    unit: str
    scale: float
    columns: tuple[tuple[str, str, float], ...]


OFFLOAD = (("bytes per frame on the link", "bytes_per_frame", 1.0),
           ("datagrams per message", "datagrams_per_message", 1.0),
           ("packets per frame", "packets_per_frame", 1.0))  # fmt: skip
DATAGRAMS = (("CPU s per Mpps", "cpu_per_mpps", 1.0), ("offered, kpps", "sent_pps", 1e-3), ("lost, %", "lost", 100.0))
KINDS = {
    "tcp": Kind("Bulk TCP", "gbps", "Gb/s", 1.0, (
        ("CPU s per Gb", "cpu_per_gb", 1.0), ("retransmits", "retransmits", 1.0), ("dropped", "dropped", 1.0),
        *OFFLOAD)),
    "udp": Kind("Datagrams at full rate", "pps", "kpps received", 1e-3, (
        *DATAGRAMS, ("dropped", "dropped", 1.0), *OFFLOAD)),
    "flows": Kind("Datagrams of 16 flows at full rate", "pps", "kpps received", 1e-3, (
        *DATAGRAMS, ("dropped", "dropped", 1.0), *OFFLOAD)),
    "rate": Kind("The highest rate that loses less than 0.1 %", "pps", "kpps received", 1e-3, DATAGRAMS),
    "ask": Kind("Request-response", "p50", "µs, p50", 1.0, (
        ("p99, µs", "p99", 1.0), ("p99.9, µs", "p999", 1.0), ("answers missing", "lost", 1.0),
        ("bulk meanwhile, Gb/s", "gbps", 1.0), ("dropped", "dropped", 1.0))),
    "start": Kind("Start and memory of one node", "start", "ms to the first packet", 1e3, (
        ("RSS idle, MiB", "idle_rss", 1.0), ("RSS after bulk TCP, MiB", "loaded_rss", 1.0),
        ("PSS idle, MiB", "idle_pss", 1.0), ("PSS after bulk TCP, MiB", "loaded_pss", 1.0))),
}  # fmt: skip


def kind_of(load: str) -> Kind:
    """Return how a load is shown."""
    return KINDS[load.partition("-")[0]]


def values(record: Record, mode: str, load: str, contender: str, value: str) -> dict[int, float]:
    """Return the samples of one cell by round."""
    return {
        sample["round"]: sample[value]
        for sample in record["samples"]
        if (sample["mode"], sample["load"], sample["contender"]) == (mode, load, contender) and value in sample
    }


def paired(record: Record, target: Target) -> list[float]:
    """Return ours divided by the rival's, for each round that has both."""
    ours = values(record, target.mode, target.load, target.ours, target.value)
    rival = values(record, target.mode, target.load, target.rival, target.value)
    return [ours[number] / rival[number] for number in sorted(ours.keys() & rival.keys()) if rival[number]]


def spread(numbers: list[float], digits: int = 3) -> str:
    """Median, and the lowest and highest in brackets."""
    if not numbers:
        return "-"
    middle, low, high = (_short(number, digits) for number in (statistics.median(numbers), min(numbers), max(numbers)))
    return f"{middle} ({low} - {high})"


def _short(number: float, digits: int) -> str:
    """Return a number with so many digits that count, and never as a power of ten."""
    return f"{number:.0f}" if abs(number) >= 10**digits else f"{number:.{digits}g}"


def label(record: Record, contender: str) -> str:
    """Return a contender's name, with a mark on those that encrypt."""
    encrypts = record["contenders"].get(contender, {}).get("encrypts")
    return f"{contender} (encrypts)" if encrypts else contender


def targets_table(record: Record) -> Table:
    """Return the targets: ratio of medians, the paired ratios of the rounds, and the verdict on the median of these."""
    rows = []
    for target in TARGETS:
        ratios = paired(record, target)
        if not ratios:
            continue
        ours, rival = (values(record, target.mode, target.load, name, target.value).values()
                       for name in (target.ours, target.rival))  # fmt: skip
        sign = "≤" if target.smaller_is_better else "≥"
        held = sum(target.verdict(ratio) != "missed" for ratio in ratios)
        rows.append([target.name, target.rival, f"{sign} {target.floor:.3g}", f"{sign} {target.aim:.3g}",
                     f"{statistics.median(ours) / statistics.median(rival):.3g}", spread(ratios),
                     f"{held} of {len(ratios)}", target.verdict(statistics.median(ratios))])  # fmt: skip
    head = ["measure", "against", "at least", "aim", "ratio of medians", "paired ratios", "rounds at the floor", ""]
    return Table("Targets: flannel_udp against its rivals", head, rows)


def cell_tables(record: Record) -> Iterator[Table]:
    """Return a table for each link mode and kind of load: every load and contender."""
    for mode, told in record["modes"].items():
        for name, kind in KINDS.items():
            found = [row for row in record["rows"] if row["mode"] == mode and row["load"].partition("-")[0] == name]
            rows = [_cell(record, row, contender) for row in found for contender in row["contenders"]]
            head = ["load", "contender", kind.unit, "against kernel VXLAN, paired", "against flannel's udp, paired"]
            head += [title for title, _, _ in kind.columns]
            if rows:
                title = f"{kind.title}, link mode “{mode}”: {told['meaning']}"
                yield Table(title, head, rows)


def _cell(record: Record, row: Record, contender: str) -> list[str]:
    mode, load = row["mode"], row["load"]
    kind = kind_of(load)

    def of(name: str, scale: float) -> str:
        return spread([number * scale for number in values(record, mode, load, contender, name).values()])

    family = ":family=6" if "family=6" in contender else ""
    against = [spread(paired(record, Target("", mode, load, kind.value, contender, rival + family, 0, 0)))
               if contender != rival + family else "-" for rival in (VXLAN, FLANNEL)]  # fmt: skip
    beside = [of(name, scale) for _, name, scale in kind.columns]
    return [load, label(record, contender), of(kind.value, kind.scale), *against, *beside]


def drops_table(record: Record) -> Table:
    """Return where packets were dropped and what else the contenders counted: counts of one measurement."""
    rows = []
    for row in record["rows"]:
        for contender in row["contenders"]:
            found = [sample.get("drops", {}) | sample.get("other_counters", {}) for sample in record["samples"]
                     if (sample["mode"], sample["load"], sample["contender"]) ==
                     (row["mode"], row["load"], contender)]  # fmt: skip
            names = sorted({name for counts in found for name in counts})
            rows += [[row["mode"], row["load"], label(record, contender), name,
                      spread([counts.get(name, 0) for counts in found])] for name in names]  # fmt: skip
    return Table("What was dropped where, and what else was counted", ["link mode", "load", "contender", "counter",
                 "in one measurement"], rows)  # fmt: skip


def facts_tables(record: Record) -> Iterator[Table]:
    """Return the machine, the link and the contenders with their settings."""
    facts = [[name, str(fact)] for name, fact in record["machine"].items()]
    facts += [["rounds", str(record["rounds"])], ["seconds per measurement", str(record["seconds"])]]
    yield Table("The machine", ["", ""], facts)
    yield Table("Offloads of the link", ["link mode", "on at both ends"],
                [[mode, ", ".join(told["on"])] for mode, told in record["modes"].items()])  # fmt: skip
    settings = [[label(record, contender), name, ", ".join(value) if isinstance(value, list) else str(value)]
                for contender, told in record["contenders"].items() for name, value in told.items()]  # fmt: skip
    yield Table("Contenders, their devices on node 1 and their settings at the end", ["contender", "", ""], settings)


def tables(record: Record) -> list[Table]:
    """Return all tables of the report that have rows, in order."""
    made = [targets_table(record), *cell_tables(record), drops_table(record), *facts_tables(record)]
    return [table for table in made if table.rows]
