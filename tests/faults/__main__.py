"""Strike a hundred times, print what was measured: python -m tests.faults [TIMES] [SEED]. Status 1: a goal missed."""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Final, get_args

from ..netns.topology import Topology
from .figures import Outcome, faults_of, strike, table
from .kinds import FAULTS
from .world import Kind, world

_LOGS: Final = Path(".cache/faults").absolute()
"""What the daemons of the last run had to say."""
_SHARES: Final = {"one": 50, "three": 26, "users": 9, "slow": 15}
_LASTING: Final = (2.0, 9.0)
_LONG: Final = {"one": 61.0, "three": 61.0}
"""The first fault of these worlds lasts longer than a minute, for the lines in a minute."""


def strike_all(kind: Kind, times: int, outcomes: list[Outcome]) -> None:
    """Strike so many times in one world: each of its kinds in turn."""
    topology = Topology(5)
    try:
        folder = _LOGS / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with world(topology, folder, kind) as there:
            kinds = itertools.cycle(fault for fault in FAULTS if kind in fault.worlds)
            for number, fault in enumerate(itertools.islice(kinds, times)):
                seconds = random.uniform(*_LASTING) if number else _LONG.get(kind, _LASTING[1])
                outcomes.append(strike(there, fault, seconds))
    finally:
        topology.close()


def main(times: int = 100, seed: int = 0) -> int:
    random.seed(seed)
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    broken: list[str] = []
    for kind in get_args(Kind):
        try:
            strike_all(kind, max(1, round(times * _SHARES[kind] / 100)), outcomes)
        except AssertionError as error:
            broken.append(f"world {kind!r} was given up after {len(outcomes)} faults: {error}")
    print(table(outcomes))
    missed = broken + faults_of(outcomes)
    print(f"\n{len(outcomes)} faults in {time.monotonic() - begin:.0f} s; " +
          ("every goal was met" if not missed else "missed:"), *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
