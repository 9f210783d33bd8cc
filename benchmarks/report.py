"""A run of benchmarks.rivals as Markdown and as one self-contained HTML page: caveats first, no figure without spread.

    python -m benchmarks.report .cache/benchmarks/quick/samples.json      writes report.md and report.html beside it
"""

import html as escape
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Record, Table, label, tables
from benchmarks.plots import bars, plot, target_plot, title

BUSY = 0.1
ALWAYS = """\
Both nodes, the load generators and every contender share one machine and its processors: a contender that uses less \
CPU leaves more to the generators. Between two hosts with a real card the figures, and their order, may differ.
Figures move between hours and machines; what counts are the ratios of one run, taken round by round between \
measurements that lie next to each other (“paired”). Figures are medians, with the lowest and the highest round in \
brackets.
flannel_udp is measured as its data plane alone (benchmarks/path/node.py), without the daemon around it; only the \
contender “daemon” is the whole.
CPU is that of the whole machine, load generators and whatever else runs included.""".splitlines()
# What has to be known about a kind of load, where it was run.
OF_LOADS = {
    "udp": "Datagrams at full rate: the sender offers all that its socket takes, 64 in one sendmmsg call, and what "
           "arrives is counted; the rest is lost on the way, wherever the sender is the faster.",
    "flows": "Datagrams of 16 flows at full rate: the same sender, one datagram of each flow in turn. So no two that "
             "follow each other are of one flow, which is the worst that there is for whatever joins packets.",
    "rate": "The highest rate is searched with trials of a twelfth of the time, at least 0.2 s, and confirmed by one "
            "of a third, whose figures are shown. One slow moment of the machine fails a trial: look at the best "
            "round, too. Where the offered rate is all that the sender can do, the path may carry more.",
    "ask": "Request-response: where the scheduler puts both ends on one processor, a round trip through the kernel "
           "costs no wake-up of a sleeping processor; between hosts it always does. “ask-apart” pins the ends to two "
           "processors; “ask-loaded” has one TCP flow go the same way meanwhile, as fast as it can.",
    "start": "Start: from the first program's start on both nodes to the first ping answered, in namespaces of their "
             "own; flannel's etcd stands before. Memory is the mean of the two nodes. RSS counts libraries that others "
             "use as well, PSS divides them among all users, other contenders' nodes among them.",
}  # fmt: skip


def caveats(record: Record) -> Iterator[str]:
    """What a reader must know before any figure."""
    yield from ALWAYS
    kinds = {row["load"].partition("-")[0] for row in record["rows"]}
    yield from (text for kind, text in OF_LOADS.items() if kind in kinds)
    contenders = record["contenders"]
    mtus = ", ".join(f"{name} {told['mtu']}" for name, told in contenders.items() if "mtu" in told)
    yield f"MTU as each overlay sets it on a link of 1500 bytes: {mtus}."
    if marked := [name for name in contenders if label(record, name) != name]:
        yield f"{', '.join(marked)} encrypts, which no other does: it shows what that costs, and is no equal."
    yield from doubts(record)


def doubts(record: Record) -> Iterator[str]:
    """What was wrong with this very run."""
    machine = record["machine"]
    busy = machine.get("busy before the start", 0)
    if busy > BUSY:
        yield (
            f"TAKEN ON A BUSY MACHINE: {busy:.0%} of its processors were used by others before the start, load average "
            f"{machine['load at start']:.1f}."
        )
    steal, cpu = (sum(sample.get(name, 0) for sample in record["samples"]) for name in ("steal", "cpu"))
    if steal > 0.01 * cpu:
        yield f"The host took {steal:.1f} s of processor time away during the run (steal)."
    if record["rounds"] < 5:
        yield f"Only {record['rounds']} rounds: too few to tell small differences from noise."
    if record.get("interrupted"):
        yield "The run was interrupted: some rows have fewer rounds, or none."
    for failure in record["failures"]:
        where = " ".join(str(failure[name]) for name in ("mode", "load", "contender", "round"))
        yield f"No sample: {where}: {failure['why']}"


def markdown(record: Record) -> str:
    """Return the report as Markdown."""
    lines = ["# Overlays between two namespaces", "", "## Before the figures", ""]
    lines += [f"- {caveat}" for caveat in caveats(record)]
    for table in tables(record):
        lines += ["", f"## {table.title}", "", _line(table.head), "|---" * len(table.head) + "|"]
        lines += [_line(row) for row in table.rows]
    lines += ["", "## Pictures", "", "```text"]
    for row in record["rows"]:
        lines += [title(row), *bars(record, row), ""]
    return "\n".join(lines) + "```\n"


def _line(words: list[str]) -> str:
    return f"| {' | '.join(word.replace('|', '/') for word in words)} |"


STYLE = """body{font:15px/1.45 sans-serif;max-width:85em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}
td,th{border-bottom:1px solid #ccc;padding:.25em .7em;text-align:left;vertical-align:top}
h2{margin-top:1.6em}svg text{font:12px sans-serif}.caveats{background:#fff6e0;padding:.5em 2em}"""
LEGEND = "Each dot is a round. Red: the floor; green: the aim; the scale is logarithmic, and right is better."


def html(record: Record) -> str:
    """Return the report as one HTML page without any reference to other files."""
    notes = "".join(f"<li>{escape.escape(caveat)}</li>" for caveat in caveats(record))
    parts = ["<h1>Overlays between two namespaces</h1>", "<h2>Before the figures</h2>"]
    parts += [f'<ul class="caveats">{notes}</ul>']
    if targets := target_plot(record):
        parts += ["<h2>The targets, round by round</h2>", f"<p>{LEGEND}</p>", targets]
    parts += [_table(table) for table in tables(record)]
    parts += ["<h2>Pictures</h2>", "<p>A bar ends at the median, each dot is a round.</p>"]
    parts += [f"<h3>{escape.escape(title(row))}</h3>{plot(record, row)}" for row in record["rows"]]
    head = f'<meta charset="utf-8"><title>Overlays compared</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _table(table: Table) -> str:
    top = "".join(f"<th>{escape.escape(word)}</th>" for word in table.head)
    body = "".join("<tr>" + "".join(f"<td>{escape.escape(word)}</td>" for word in row) + "</tr>" for row in table.rows)
    return f"<h2>{escape.escape(table.title)}</h2><table><tr>{top}</tr>{body}</table>"


def write(samples: Path) -> None:
    """Write both reports beside a file of samples."""
    record = json.loads(samples.read_text())
    samples.with_name("report.md").write_text(markdown(record))
    samples.with_name("report.html").write_text(html(record))


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("usage: python -m benchmarks.report SAMPLES.json ...")
    for name in sys.argv[1:]:
        try:
            write(Path(name))
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"python -m benchmarks.report: {name}: no record of a run ({error})")


if __name__ == "__main__":
    main()
