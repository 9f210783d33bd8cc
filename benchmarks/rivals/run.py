"""Go through a plan: contenders side by side, round by round; what cannot run is noted, and the rest goes on."""

import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.rivals import bulk, footprint, loads, machine
from benchmarks.rivals.contenders import KINDS, Standing
from benchmarks.rivals.places import MODES, Cable
from benchmarks.rivals.plan import START, Row, schedule
from benchmarks.rivals.sample import Failed, Sample

SHOWN = ("gbps", "pps", "lost", "p50", "p99", "p999", "start", "loaded_rss", "cpu")


def new_record(rows: tuple[Row, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Return the record of a run that has not begun: what a report is made of."""
    return {
        "machine": machine.facts(), "rounds": rounds, "seconds": seconds, "rows": [asdict(row) for row in rows],
        "contenders": {}, "modes": {}, "samples": [], "failures": [],
    }  # fmt: skip


def run(record: dict[str, Any], rows: tuple[Row, ...]) -> None:
    """Measure all rows, into the record."""
    cable = Cable()
    standing = Standing(cable)
    try:
        bulk.start_server(cable)
        for name in dict.fromkeys(name for row in rows if row.load != START for name in row.contenders):
            standing.add(name)
        mode = ""
        for row, number, order in schedule(rows, record["rounds"]):
            if row.mode != mode:
                mode = row.mode
                record["modes"][mode] = {"meaning": MODES[mode], "on": cable.set_mode(mode)}
            for name in order:
                measure_one(record, row, number, standing, name)
    finally:
        for name in dict.fromkeys(name for row in rows for name in row.contenders):
            record["contenders"][name] = described(name, standing)
        standing.close()
        cable.close()


def described(name: str, standing: Standing) -> dict[str, Any]:
    """Return what a contender is and what it was granted, as far as it still tells."""
    one = standing.up.get(name) or KINDS[name.partition(":")[0]]
    told: dict[str, Any] = {"version": one.version, "encrypts": one.encrypts, "mtu": one.mtu}
    if name in standing.up:
        try:
            told |= machine.contender(standing.up[name])
        except Exception as error:  # a rival that died: that is worth telling, and no reason to lose the record
            told["at the end"] = f"{type(error).__name__}: {error}"
    return told


def measure_one(record: dict[str, Any], row: Row, number: int, standing: Standing, name: str) -> None:
    """Take one sample, or note why there is none."""
    where = {"mode": row.mode, "load": row.load, "contender": name, "round": number}
    told = f"{row.mode:9} {row.load:11} round {number} {name:26}"
    begin = time.monotonic()
    try:
        sample = _sample(row.load, name, standing, record["seconds"])
    except Exception as error:  # a rival may fail in any way; one sample less must not cost the others
        why = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        record["failures"].append(where | {"why": why})
        print(f"{told} no sample: {why}", file=sys.stderr, flush=True)
        return
    record["samples"].append(where | sample | {"took": time.monotonic() - begin})
    figures = " ".join(f"{key}={sample[key]:.4g}" for key in SHOWN if key in sample)
    print(f"{told} {figures}", file=sys.stderr, flush=True)


def _sample(load: str, name: str, standing: Standing, seconds: float) -> Sample:
    if load == START:
        return footprint.measure(name, seconds)
    return loads.measure(load, standing.get(name), seconds)
