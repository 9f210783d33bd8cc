"""A run of benchmarks.rivals as Markdown and as one self-contained HTML page: caveats first, no figure without spread.

    python -m benchmarks.report .cache/benchmarks/quick/samples.json      writes report.md and report.html beside it
"""

import html as escape
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals.plan import TARGETS, Target

Record = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]
# By kind of load: the value that is compared, its unit, a factor for showing it.
MEASURES = {
    "tcp": ("gbps", "Gb/s", 1.0), "udp": ("pps", "kpps received", 1e-3), "ask": ("p50", "µs, median of a round", 1.0),
}  # fmt: skip
BUSY = 0.1


def caveats(record: Record) -> Iterator[str]:
    """What a reader must know before any figure."""
    machine = record["machine"]
    yield (
        "Both nodes, the load generators and every contender share one machine and its processors: a contender that "
        "uses less CPU leaves more to the generators. Between two hosts with a real card the figures, and their order, "
        "may differ."
    )
    yield (
        "Figures move between hours and machines; what counts are the ratios of one run, taken round by round between "
        "measurements that lie next to each other."
    )
    yield "flannel_udp is measured as its data plane alone (benchmarks/path/node.py), without the daemon around it."
    yield "MTU as each overlay sets it on a 1500-byte link: flannel_udp and flannel's udp 1472, VXLAN 1450, veth 1500."
    yield (
        "UDP rates: the sender offers all that its socket takes, 64 datagrams in one sendmmsg call, and what arrives "
        "is counted; the rest is lost on the way, wherever the sender is the faster (the column of losses)."
    )
    yield (
        "Request-response: where the scheduler puts both ends on one processor, a round trip through the kernel costs "
        "no wake-up of a sleeping processor; between hosts it always does. “ask-apart” pins the ends to two processors."
    )
    busy = machine.get("busy before the start", 0)
    if busy > BUSY:
        yield (
            f"TAKEN ON A BUSY MACHINE: {busy:.0%} of its processors were used by others before the start, load average "
            f"{machine['load at start']:.1f}."
        )
    steal = sum(sample["steal"] for sample in record["samples"])
    if steal > 0.01 * sum(sample["cpu"] for sample in record["samples"]):
        yield f"The host took {steal:.1f} s of processor time away during the run (steal)."
    if record["rounds"] < 5:
        yield f"Only {record['rounds']} rounds: too few to tell small differences from noise."
    for failure in record["failures"]:
        where = " ".join(str(failure[name]) for name in ("mode", "load", "contender", "round"))
        yield f"No sample: {where}: {failure['why']}"


def values(record: Record, mode: str, load: str, contender: str, value: str) -> dict[int, float]:
    """Return the samples of one cell by round."""
    return {
        sample["round"]: sample[value]
        for sample in record["samples"]
        if (sample["mode"], sample["load"], sample["contender"]) == (mode, load, contender) and value in sample
    }


def ratios(record: Record, target: Target) -> list[float]:
    """Return ours divided by the rival's, for each round that has both."""
    ours = values(record, target.mode, target.load, target.ours, target.value)
    rival = values(record, target.mode, target.load, target.rival, target.value)
    return [ours[number] / rival[number] for number in ours.keys() & rival.keys() if rival[number]]


def spread(numbers: list[float], digits: int = 3) -> str:
    """Median, and the lowest and highest in brackets."""
    if not numbers:
        return "-"
    middle, low, high = statistics.median(numbers), min(numbers), max(numbers)
    return f"{middle:.{digits}g} ({low:.{digits}g} - {high:.{digits}g})"


def targets_table(record: Record) -> Table:
    """Return the targets with the ratio of medians, and the median and range of the paired ratios."""
    rows = []
    for target in TARGETS:
        paired = ratios(record, target)
        if not paired:
            continue
        ours = values(record, target.mode, target.load, target.ours, target.value).values()
        rival = values(record, target.mode, target.load, target.rival, target.value).values()
        ratio = statistics.median(ours) / statistics.median(rival)
        sign = "≤ " if target.smaller_is_better else "≥ "
        rows.append([target.name, target.rival, f"{sign}{target.floor:.3g}", f"{sign}{target.aim:.3g}", f"{ratio:.3g}",
                     spread(paired), target.verdict(ratio)])  # fmt: skip
    head = ["measure", "against", "at least", "aim", "ratio of medians", "paired ratios", ""]
    return "Targets: flannel_udp against its rivals", head, rows


def cell_tables(record: Record) -> Iterator[Table]:
    """Return a table per link mode: every load and contender."""
    for mode, told in record["modes"].items():
        rows = []
        for row in record["rows"]:
            if row["mode"] == mode:
                beside = row["contenders"]
                rows += [_cell(record, mode, row["load"], contender, beside) for contender in beside]
        head = ["load", "contender", "unit", "median (range)", "of kernel VXLAN, paired", "CPU s per Gb, Mpps"]
        head += ["p99 µs", "lost", "datagrams per message", "packets per frame"]
        yield f"Link mode “{mode}”: {told['meaning']}", head, rows


def _cell(record: Record, mode: str, load: str, contender: str, beside: list[str]) -> list[str]:
    value, unit, factor = MEASURES[load.partition("-")[0]]

    def of(name: str, scale: float = 1.0) -> str:
        return spread([number * scale for number in values(record, mode, load, contender, name).values()])

    against = Target("", mode, load, value, contender, "vxlan", 0, 0)
    paired = spread(ratios(record, against)) if "vxlan" in beside and contender != "vxlan" else "-"
    cpu = of("cpu_per_gb") if load.startswith("tcp") else of("cpu_per_mpps")
    return [load, contender, unit, of(value, factor), paired, cpu, of("p99"), of("lost"), of("datagrams_per_message"),
            of("packets_per_frame")]  # fmt: skip


def tables(record: Record) -> list[Table]:
    """Return all tables of the report."""
    facts = [[name, str(fact)] for name, fact in record["machine"].items()]
    facts += [["rounds", str(record["rounds"])], ["seconds per measurement", str(record["seconds"])]]
    facts += [[f"offloads on, {mode}", ", ".join(told["on"])] for mode, told in record["modes"].items()]
    return [targets_table(record), *cell_tables(record), ("The machine and the settings", ["", ""], facts)]


def markdown(record: Record) -> str:
    """Return the report as Markdown."""
    lines = ["# Overlays between two namespaces", "", "## Before the figures", ""]
    lines += [f"- {caveat}" for caveat in caveats(record)]
    for title, head, rows in tables(record):
        lines += ["", f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


STYLE = """body{font:15px/1.45 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}
td,th{border-bottom:1px solid #ccc;padding:.25em .7em;text-align:left}
h2{margin-top:1.6em}svg text{font:12px sans-serif}.caveats{background:#fff6e0;padding:.5em 2em}"""


def html(record: Record) -> str:
    """Return the report as one HTML page without any reference to other files."""
    notes = "".join(f"<li>{escape.escape(caveat)}</li>" for caveat in caveats(record))
    parts = [f"<h1>Overlays between two namespaces</h1><h2>Before the figures</h2><ul class=caveats>{notes}</ul>"]
    for title, head, rows in tables(record):
        top = "".join(f"<th>{escape.escape(word)}</th>" for word in head)
        body = "".join("<tr>" + "".join(f"<td>{escape.escape(word)}</td>" for word in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{escape.escape(title)}</h2><table><tr>{top}</tr>{body}</table>")
    parts += [plot(record, row) for row in record["rows"]]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Overlays compared</title><style>{STYLE}</style>"
    return page + "".join(parts) + "</html>\n"


def plot(record: Record, row: dict[str, Any]) -> str:
    """Return one row as an SVG: a bar to the median of each contender, a dot for each round."""
    value, unit, factor = MEASURES[row["load"].partition("-")[0]]
    found = {name: [number * factor for number in values(record, row["mode"], row["load"], name, value).values()]
             for name in row["contenders"]}  # fmt: skip
    most = max((number for numbers in found.values() for number in numbers), default=0) or 1
    drawn = []
    for i, (name, numbers) in enumerate(found.items()):
        if not numbers:
            continue
        y, width = 12 + i * 26, 520 / most
        middle = statistics.median(numbers) * width
        drawn.append(f'<text x="0" y="{y + 9}">{escape.escape(name)}</text>'
                     f'<rect x="190" y="{y}" width="{middle:.0f}" height="12" fill="#9bc"/>')  # fmt: skip
        drawn += [f'<circle cx="{190 + number * width:.0f}" cy="{y + 6}" r="3" fill="#146"/>' for number in numbers]
        drawn.append(f'<text x="725" y="{y + 9}">{escape.escape(spread(numbers))}</text>')
    title = f"{row['load']} ({unit}), link mode {row['mode']}"
    return f'<h3>{escape.escape(title)}</h3><svg width="900" height="{20 + 26 * len(found)}">{"".join(drawn)}</svg>'


def main() -> None:
    for name in sys.argv[1:]:
        samples = Path(name)
        record = json.loads(samples.read_text())
        samples.with_name("report.md").write_text(markdown(record))
        samples.with_name("report.html").write_text(html(record))


if __name__ == "__main__":
    main()
