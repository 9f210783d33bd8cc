"""Out of the samples of a run the table of what was measured, what was to be reached, and whether it was."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
# The targets: seconds, seconds, MiB, seconds, ns, a ratio. The lag is our reading of "not behind".
START, CHANGE, MEMORY, LAG, LOOKUP, UNCHANGED = 1.0, 0.010, 120.0, 0.1, 5.0, 1.5

VERDICTS = {True: "reached", False: "**missed**", None: "-"}


@dataclass(frozen=True)
class Row:
    """One line: the figure that is judged, where it belongs, and what else was seen."""

    measure: str
    figure: str
    target: str
    reached: bool | None
    beside: str = ""


def rows(record: Record) -> list[Row]:
    """Return all lines."""
    return [*_starts(record), *_changes(record), *_load(record), *_lookups(record), *_crowd(record)]


def markdown(record: Record) -> str:
    """Return the table."""
    chosen = record["options"]
    head = f"{chosen['leases']} leases in etcd; {record['machine']['cpu']}, {record['machine']['date']}"
    lines = [head, "", "## Targets", "", "| measure | figure | target | verdict | beside |", "|---|---|---|---|---|"]
    lines += [f"| {row.measure} | {row.figure} | {row.target} | {VERDICTS[row.reached]} | {row.beside} |"
              for row in rows(record)]  # fmt: skip
    return "\n".join(lines) + "\n"


def percentile(values: Sequence[float], part: float) -> float:
    """Return the least value that this part of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _starts(record: Record) -> list[Row]:
    starts = record["starts"]
    snapshot, process = ([one[name] for one in starts] for name in ("from_snapshot", "from_process"))
    most = max(*(one["VmRSS"] for one in starts), record["load"]["VmRSS"])
    peak = max(*(one["VmHWM"] for one in starts), record["load"]["VmHWM"])
    figure = statistics.median(snapshot)
    return [
        Row("start: from asking for the first snapshot to the first packet", f"{figure:.2f} s", f"< {START:g} s",
            figure < START,
            f"most {max(snapshot):.2f} s; from the start of the process {statistics.median(process):.2f} s, "
            f"{statistics.median(one['cpu'] for one in starts):.2f} s of them at work"),
        Row("memory of the daemon, resident", f"{most:.0f} MiB", f"< {MEMORY:g} MiB", most < MEMORY,
            f"after a start {statistics.median(one['VmRSS'] for one in starts):.0f} MiB, "
            f"after the many changes {record['load']['VmRSS']:.0f} MiB, the most for a moment {peak:.0f} MiB"),
    ]  # fmt: skip


def _changes(record: Record) -> list[Row]:
    found = []
    for kind, values in record["changes"].items():
        middle, high = statistics.median(values), percentile(values, 0.95)
        found.append(Row(f"one change ({kind}): from the write to the first packet, p95", f"{high * 1e3:.1f} ms",
                         f"< {CHANGE * 1e3:g} ms", high < CHANGE,
                         f"p50 {middle * 1e3:.1f} ms, most {max(values) * 1e3:.1f} ms"))  # fmt: skip
    return found


def _load(record: Record) -> list[Row]:
    load, rate = record["load"], record["options"]["rate"]
    late = load["lags"][-max(1, len(load["lags"]) // 4):]
    figure = statistics.median(late)
    return [
        Row("many changes: written a second", f"{load['written']:.0f}", f">= {rate}", load["written"] >= 0.98 * rate,
            f"the daemon took {load['daemon_cpu']:.0%} of a processor, etcd {load['etcd_cpu']:.0%}"),
        Row("many changes: how late the daemon is in the last quarter, p50", f"{figure * 1e3:.0f} ms",
            f"< {LAG * 1e3:g} ms", figure < LAG,
            f"most {max(late) * 1e3:.0f} ms; in the first quarter "
            f"{statistics.median(load['lags'][: len(late)]) * 1e3:.0f} ms; afterwards all routes are right"),
    ]  # fmt: skip


def _lookups(record: Record) -> list[Row]:
    few, *more = ((count, statistics.median(values)) for count, values in record["lookups"].items())
    return [Row(f"FIB look-up with {count} leases", f"{figure:.2f} ns",
                f"< {LOOKUP:g} ns, as with {few[0]}", figure < LOOKUP and figure < UNCHANGED * few[1],
                f"with {few[0]} leases {few[1]:.2f} ns") for count, figure in more]  # fmt: skip


def _crowd(record: Record) -> list[Row]:
    crowd, count = record["crowd"], record["options"]["nodes"]
    held = [one for one in crowd["nodes"] if "subnet" in one]
    distinct = len({one["subnet"] for one in held})
    times = [one["seconds"] for one in held] or [float("inf")]
    calls = ", ".join(f"{number} {name}" for name, number in sorted(crowd["etcd_calls"].items()))
    return [
        Row("nodes that start at once: distinct subnets", f"{distinct}", f"{count}", distinct == len(held) == count,
            f"all after {max(times):.1f} s, half after {statistics.median(times):.1f} s; "
            f"lost races {sum(one['lost_races'] for one in held)}"),
        Row("nodes that start at once: know all others", f"{crowd['know_all']}", f"{count}",
            crowd["know_all"] == count, f"{crowd['known_after']:.1f} s after the start"),
        Row("nodes that start at once: processor time of etcd", f"{crowd['etcd_cpu']:.1f} s", "-", None, calls),
    ]  # fmt: skip
