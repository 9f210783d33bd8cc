"""The benchmark of the CNI plugin in two rounds: what it shows follows from its samples; wrong options get one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import require, require_commands, require_namespaces
from .interop.cni_storm import debian
from .reports import markdown_tables

# Last, so that it shadows nothing: under -P this folder is not on the path.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import cni

ROOT = Path(__file__).parent.parent
ROUNDS = 2


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "benchmarks.cni", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=100)  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    require(os.geteuid() == 0, "needs root: the benchmark makes namespaces and devices")
    require_commands("ip")
    require_namespaces()
    debian()
    folder = tmp_path_factory.mktemp("cni")
    done = run("--rounds", f"{ROUNDS}", "--save", f"{folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (folder / "report.md").read_text().strip()
    told: dict[str, Any] = json.loads((folder / "samples.json").read_text())
    return told


def test_every_contender_adds_and_deletes_in_every_round(record: dict[str, Any]) -> None:
    times = record["times"]
    assert {cni.DIRECT, cni.OURS, cni.UNCOMPILED} <= times.keys()
    for taken in times.values():
        assert {verb: len(values) for verb, values in taken.items()} == dict.fromkeys(cni.VERBS, ROUNDS)
        assert all(value > 0 for values in taken.values() for value in values)


def test_the_own_part_is_what_is_longer_than_the_plugin_that_is_called() -> None:
    times = {cni.DIRECT: {"ADD": [50.0, 30.0, 36.0], "DEL": [20.0, 21.0, 22.0]},
             cni.OURS: {"ADD": [90.0, 61.0, 75.0], "DEL": [50.0, 50.0, 50.0]}}  # fmt: skip
    machine = {"cpu": "-", "date": "-", "busy before the start": 0.0}
    text = cni.markdown({"machine": machine, "times": times})
    (table,) = markdown_tables(text).values()
    assert table[1:] == [
        [cni.DIRECT, "36 (30 - 50)", "-", "21 (20 - 22)", "-"],
        [cni.OURS, "75 (61 - 90)", "39 (31 - 40)", "50 (50 - 50)", "29 (28 - 30)"],
    ]
    assert "Of ADD 39.0 ms are our plugin's own, by the quickest calls of each 31.0 ms" in text
    assert text.rstrip().endswith("reached.")
    times[cni.OURS]["ADD"] = [91.0, 71.0, 75.0]
    assert "**missed**" in cni.markdown({"machine": machine, "times": times})


@pytest.mark.parametrize("rounds", ["0", "1001"])
def test_a_number_of_rounds_that_makes_no_sense_is_told_in_one_line(rounds: str) -> None:
    done = run("--rounds", rounds)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"python -m benchmarks.cni: --rounds {rounds}: from 1 to 1000\n"
