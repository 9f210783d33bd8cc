"""Run the comparison: python -m benchmarks.rivals quick --save .cache/benchmarks/quick (needs root)."""

import argparse
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.rivals import contenders
from benchmarks.rivals.loads import LOADS
from benchmarks.rivals.places import MODES
from benchmarks.rivals.plan import SIZES, START, Row, duration
from benchmarks.rivals.run import new_record, run

PROGRAMS = ("ip", "bridge", "ss", "ping", "setpriv", "iperf3")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    made.add_argument("size", choices=SIZES)
    made.add_argument("--rounds", type=int, help="of each row; fewer than 5 show nothing")
    made.add_argument("--seconds", type=float, help="of one measurement")
    made.add_argument("--contenders", help="only these, in all rows: vxlan,flannel_udp,flannel_udp:threads=1")
    made.add_argument("--settings", action="append", default=[], metavar="NAME",
                      help="a further contender in all rows, e.g. flannel_udp:threads=1+busy-poll=50")  # fmt: skip
    made.add_argument("--loads", help=f"only these, of {', '.join((*LOADS, START))}")
    made.add_argument("--modes", help=f"only these, of {', '.join(MODES)}")
    made.add_argument("--overlay", type=Path, action="append", default=[], metavar="FILE.py",
                      help="Python file with your own contenders in its KINDS; see docs/benchmarking.md")  # fmt: skip
    made.add_argument("--save", type=Path, help="folder for samples.json, report.md and report.html")
    made.add_argument("--plan", action="store_true", help="only say what would be measured, and how long that takes")
    return made


def _entered_by(file: Path) -> dict[str, type[contenders.Contender]]:
    """Return the contenders that a file of the user's defines."""
    defined = runpy.run_path(str(file))
    if not isinstance(defined.get("KINDS"), dict):
        raise ValueError(f"--overlay {file}: defines no KINDS = {{'name': its class}}")
    return dict(defined["KINDS"])


def chosen_rows(chosen: argparse.Namespace) -> tuple[Row, ...]:
    """Return the rows of the size, as the options narrow or widen them; ValueError says what is wrong with these."""
    modes = _listed(chosen.modes, MODES, "--modes")
    loads = _listed(chosen.loads, (*LOADS, START), "--loads")
    given = SIZES[chosen.size][0]
    rows = [row for row in given if row.mode in (modes or MODES) and row.load in (loads or LOADS | {START: None})]
    # What is asked for by name need not be in the table of that size.
    everyone = tuple(dict.fromkeys(name for row in given for name in row.contenders))
    for load in loads:
        there = {row.mode for row in rows if row.load == load}
        rows += [Row(mode, load, everyone) for mode in modes or ([] if there else ["all"]) if mode not in there]
    names = tuple(chosen.contenders.split(",")) if chosen.contenders else ()
    wanted = [Row(row.mode, row.load, (*(names or row.contenders), *chosen.settings)) for row in rows]
    rows = list(dict.fromkeys(wanted))  # rows that differ in contenders alone may be one by now
    for name in dict.fromkeys(name for row in rows for name in row.contenders):
        contenders.check(name)
    if not rows:
        raise ValueError(f"--loads and --modes: {chosen.size} has no such rows")
    return tuple(rows)


def _listed(text: str | None, known: "dict[str, str] | tuple[str, ...]", option: str) -> list[str]:
    words = text.split(",") if text else []
    for word in words:
        if word not in known:
            raise ValueError(f"{option} {word!r}: choose from {', '.join(known)}")
    return words


def amounts(chosen: argparse.Namespace) -> tuple[int, float]:
    """Return rounds and seconds."""
    _, rounds, seconds = SIZES[chosen.size]
    rounds = rounds if chosen.rounds is None else chosen.rounds
    seconds = seconds if chosen.seconds is None else chosen.seconds
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: at least 1")
    if not 0.5 <= seconds <= 3600:
        raise ValueError(f"--seconds {seconds:g}: from 0.5 to 3600")
    return rounds, seconds


def announce(rows: tuple[Row, ...], rounds: int, seconds: float) -> None:
    """Say what will be measured, and how long that takes."""
    minutes = duration(rows, rounds, seconds) / 60
    samples = rounds * sum(len(row.contenders) for row in rows)
    length = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
    print(f"{len(rows)} rows, {rounds} rounds of {seconds:g} s: {samples} samples, about {length}", file=sys.stderr)


def wanting() -> str:
    """Return what this machine lacks for a run; nothing if all is there."""
    if os.geteuid() != 0:
        return "needs root: it makes namespaces and devices"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs the programs {', '.join(missing)} (Debian: iproute2, iputils-ping, util-linux, iperf3)"
    return ""


def main() -> None:
    arguments = parser()
    chosen = arguments.parse_args()
    try:
        for file in chosen.overlay:
            contenders.KINDS.update(_entered_by(file))
        rows, (rounds, seconds) = chosen_rows(chosen), amounts(chosen)
        if chosen.save:
            chosen.save.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"python -m benchmarks.rivals: {error}")
    announce(rows, rounds, seconds)
    if chosen.plan:
        return
    if missing := wanting():
        sys.exit(f"python -m benchmarks.rivals: {missing}")
    record = new_record(rows, rounds, seconds)
    try:
        run(record, rows)
    except KeyboardInterrupt:
        record["interrupted"] = True  # hours may have passed: what was measured is reported
    if chosen.save:
        (chosen.save / "samples.json").write_text(json.dumps(record, indent=1))
        report.write(chosen.save / "samples.json")
    print(report.markdown(record))
    if not record["samples"]:
        sys.exit("python -m benchmarks.rivals: nothing could be measured, see above")


if __name__ == "__main__":
    main()
