"""Measure how one daemon fares among 10,000 nodes: python -m benchmarks.scale --save .cache/benchmarks/scale (root)."""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals import machine
from benchmarks.rivals.sample import Failed
from benchmarks.scale.figures import markdown
from benchmarks.scale.leases import CONFIG, MOST, Leases
from benchmarks.scale.lookups import lookups
from benchmarks.scale.measures import CHANGES, Place, change, crowd, load, start
from benchmarks.scale.world import Street, world
from tests.interop.etcd_cluster import cluster

PROGRAMS = ("ip", "setpriv")
PREFIX = "/scale/network"
WORDS = {"leases": (2, MOST), "starts": (1, 100), "changes": (1, 10_000), "rate": (1, 100_000), "nodes": (1, 1000)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    made.add_argument("--leases", type=int, default=10_000, help="of other nodes, in etcd (default 10000)")
    made.add_argument("--starts", type=int, default=5, help="of the daemon (default 5)")
    made.add_argument("--changes", type=int, default=100, help="single ones of each kind (default 100)")
    made.add_argument("--rate", type=int, default=1000, help="changes a second (default 1000)")
    made.add_argument("--seconds", type=float, default=20, help="how long these go on (default 20)")
    made.add_argument("--nodes", type=int, default=200, help="that start at once (default 200)")
    made.add_argument("--save", type=Path, help="folder for samples.json and report.md")
    return made


def check(chosen: argparse.Namespace) -> None:
    """ValueError says which option is wrong."""
    for name, (low, high) in WORDS.items():
        if not low <= getattr(chosen, name) <= high:
            raise ValueError(f"--{name} {getattr(chosen, name)}: from {low} to {high}")
    if not 0.5 <= chosen.seconds <= 3600:
        raise ValueError(f"--seconds {chosen.seconds:g}: from 0.5 to 3600")
    if chosen.changes >= chosen.leases:
        raise ValueError(f"--changes {chosen.changes}: each takes one of the {chosen.leases} leases away")


def wanting() -> str:
    """Return what this machine lacks for a run; nothing if all is there."""
    if os.geteuid() != 0:
        return "needs root: it makes namespaces and devices"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs the programs {', '.join(missing)} (Debian: iproute2, util-linux)" if missing else ""


@contextlib.contextmanager
def place(leases: int) -> Iterator[Place]:
    """Everything set up, this thread in node 2, which etcd is in."""
    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(world())
        stack.enter_context(cable.two.entered())
        etcd = stack.enter_context(cluster("3.7", 1, "--listen-client-urls", "http://0.0.0.0:2379"))
        many = Leases(f"{cable.two.address}:2379", PREFIX, leases)
        stack.callback(many.close)
        street = Street(cable)
        stack.callback(street.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield Place(cable, etcd, many, street, folder, PREFIX)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all, one after the other."""
    record: dict[str, Any] = {"machine": machine.facts(), "options": {name: getattr(chosen, name) for name in
                              (*WORDS, "seconds")}}  # fmt: skip
    say("look-ups in the FIB")
    record["lookups"] = lookups((16, chosen.leases, 1 << 16))
    say(f"etcd, and {chosen.leases} leases in it")
    with place(chosen.leases) as here:
        record["starts"] = []
        for number in range(chosen.starts):
            say(f"start {number + 1}")
            daemon, sample = start(here)
            record["starts"].append(sample)
            if number + 1 < chosen.starts:
                daemon.stop()
        say("single changes")
        record["changes"] = {kind: [change(here, kind) for _ in range(chosen.changes)] for kind in CHANGES}
        say(f"{chosen.rate} changes a second")
        record["load"] = load(here, daemon, chosen.rate, chosen.seconds)
        daemon.stop()
        say(f"{chosen.nodes} nodes that start at once")
        here.etcd.put("/crowd/network/config", CONFIG.encode())
        record["crowd"] = crowd(here, chosen.nodes, "/crowd/network")
    return record


def main() -> None:
    chosen = parser().parse_args()
    try:
        check(chosen)
        if chosen.save:
            chosen.save.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"python -m benchmarks.scale: {error}")
    if missing := wanting():
        sys.exit(f"python -m benchmarks.scale: {missing}")
    try:
        record = measure(chosen)
    except Failed as error:
        sys.exit(f"python -m benchmarks.scale: {error}")
    text = markdown(record)
    if chosen.save:
        (chosen.save / "samples.json").write_text(json.dumps(record, indent=1))
        (chosen.save / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
