"""Run the comparison: python -m benchmarks.rivals quick --save .cache/benchmarks/quick (needs root)."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.rivals import contenders, loads
from benchmarks.rivals.places import MODES, Cable, cpu_seconds
from benchmarks.rivals.plan import SIZES, Row, schedule

ROOT = Path(__file__).parent.parent.parent


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--rounds", type=int, help="of each row; fewer than 5 show nothing")
    parser.add_argument("--seconds", type=float, help="of one measurement")
    parser.add_argument("--contenders", help="only these, in all rows: vxlan,flannel_udp,flannel_udp:threads=1")
    parser.add_argument("--settings", action="append", default=[], metavar="NAME",
                        help="a further contender in all rows, e.g. flannel_udp:threads=1+busy-poll=50")  # fmt: skip
    parser.add_argument("--loads", help="only these")
    parser.add_argument("--modes", help="only these")
    parser.add_argument("--save", type=Path, help="folder for samples.json, report.md and report.html")
    return parser.parse_args()


def chosen_rows(chosen: argparse.Namespace) -> tuple[Row, ...]:
    """Return the rows of the size, as the options narrow or widen them."""
    kept = []
    for row in SIZES[chosen.size][0]:
        if chosen.loads and row.load not in chosen.loads.split(","):
            continue
        if chosen.modes and row.mode not in chosen.modes.split(","):
            continue
        names = tuple(chosen.contenders.split(",")) if chosen.contenders else row.contenders
        kept.append(Row(row.mode, row.load, (*names, *chosen.settings)))
    return tuple(kept)


def machine() -> dict[str, Any]:
    """Return what a figure depends on and a reader cannot know."""
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")]  # fmt: skip
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    iperf = subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": f"{len(cpus)} x {cpus[0] if cpus else platform.machine()}",
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "iperf3": iperf.stdout.splitlines()[0] if iperf.stdout else "",
        "flannel": "packages v0.28.10 on etcd 3.7.3, go modules",
        "load at start": os.getloadavg()[0],
    }


def others_cpu() -> float:
    """Return the part of the machine that others use while nothing is measured here: a second's look."""
    before, _ = cpu_seconds()
    time.sleep(1)
    return (cpu_seconds()[0] - before) / (os.cpu_count() or 1)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows; return the record of the run."""
    rows, (_, rounds, seconds) = chosen_rows(chosen), SIZES[chosen.size]
    rounds, seconds = chosen.rounds or rounds, chosen.seconds or seconds
    record: dict[str, Any] = {"machine": machine(), "rounds": rounds, "seconds": seconds}
    record |= {"rows": [asdict(row) for row in rows], "samples": [], "failures": [], "modes": {}}
    record["machine"]["busy before the start"] = round(others_cpu(), 2)
    names = dict.fromkeys(name for row in rows for name in row.contenders)
    cable = Cable()
    standing: dict[str, contenders.Contender] = {}
    try:
        loads.start_server(cable)
        for place, name in enumerate(names):
            standing[name] = contenders.make(name, cable, place)
        mode = ""
        for row, number, order in schedule(rows, rounds):
            if row.mode != mode:
                mode = row.mode
                record["modes"][mode] = {"meaning": MODES[mode], "on": cable.set_mode(mode)}
            for name in order:
                measure_one(record, row, number, standing[name], seconds)
    finally:
        for contender in standing.values():
            contender.close()
        cable.close()
    return record


def measure_one(record: dict[str, Any], row: Row, number: int, contender: contenders.Contender, seconds: float) -> None:
    """Take one sample, or note that there was none."""
    where = {"mode": row.mode, "load": row.load, "contender": contender.name, "round": number}
    try:
        sample = loads.measure(row.load, contender, seconds)
    except loads.Failed as failure:
        record["failures"].append(where | {"why": str(failure)})
        print(f"{where}: {failure}", file=sys.stderr)
        return
    record["samples"].append(where | sample)
    told = " ".join(f"{key}={sample[key]:.4g}" for key in ("gbps", "pps", "p50", "p99", "cpu") if key in sample)
    print(f"{row.mode:9} {row.load:11} round {number} {contender.name:26} {told}", file=sys.stderr, flush=True)


def main() -> None:
    chosen = options()
    record = run(chosen)
    print(report.markdown(record))
    if chosen.save:
        chosen.save.mkdir(parents=True, exist_ok=True)
        (chosen.save / "samples.json").write_text(json.dumps(record, indent=1))
        (chosen.save / "report.md").write_text(report.markdown(record))
        (chosen.save / "report.html").write_text(report.html(record))


if __name__ == "__main__":
    main()
