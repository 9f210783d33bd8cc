"""The benchmark of scale with a few hundred leases: it measures what it says; wrong options are named in one line."""

import json
import os
import re
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from .conftest import require, require_commands, require_tun
from .interop.etcd_cluster import program
from .reports import markdown_tables

# Last, so that it shadows nothing: under -P this folder is not on the path.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.scale import figures
from benchmarks.scale.__main__ import main

ROOT = Path(__file__).parent.parent
LEASES, CHANGES, NODES = 300, 3, 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    require(os.geteuid() == 0, "needs root: the benchmark makes namespaces and devices")
    require_commands("ip", "setpriv")
    require_tun()
    program("3.7")
    folder = tmp_path_factory.mktemp("scale")
    words = ["--leases", f"{LEASES}", "--starts", "1", "--changes", f"{CHANGES}", "--rate", "100", "--seconds", "1",
             "--nodes", f"{NODES}", "--save", f"{folder}"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "benchmarks.scale", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (folder / "report.md").read_text().strip()
    return folder


@pytest.fixture
def record(finished: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((finished / "samples.json").read_text())
    return told


def test_what_is_measured_is_there_and_possible(record: dict[str, Any]) -> None:
    (start,) = record["starts"]
    assert 0 < start["from_snapshot"] < start["from_process"]
    assert 1 < start["VmRSS"] <= start["VmHWM"]
    assert {len(values) for values in record["changes"].values()} == {CHANGES}
    assert all(value > 0 for values in (*record["changes"].values(), record["load"]["lags"]) for value in values)
    assert 0 < record["load"]["written"] <= 101
    assert record["lookups"].keys() == {"16", f"{LEASES}", "65536"}
    assert all(value > 0 for values in record["lookups"].values() for value in values)


def test_nodes_that_start_at_once_are_told_apart(record: dict[str, Any]) -> None:
    crowd = record["crowd"]
    subnets = {IPv4Network(node["subnet"]) for node in crowd["nodes"]}
    assert len(subnets) == len(crowd["nodes"]) == crowd["know_all"] == NODES
    races = sum(node["lost_races"] for node in crowd["nodes"])
    # Each writes its lease by one transaction, and by one more for each race that it lost.
    assert crowd["etcd_calls"]["Txn"] == NODES + races
    assert crowd["etcd_calls"]["LeaseGrant"] == NODES


def test_the_table_has_a_line_for_each_measure(finished: Path, record: dict[str, Any]) -> None:
    (table,) = markdown_tables((finished / "report.md").read_text()).values()
    rows = figures.rows(record)
    assert [line[0] for line in table[1:]] == [row.measure for row in rows]
    assert [line[3] for line in table[1:]] == [figures.VERDICTS[row.reached] for row in rows]


def test_a_target_is_missed_by_what_is_beyond_it(record: dict[str, Any]) -> None:
    record["changes"] = {"good": [0.001] * 99 + [1.0], "bad": [0.001] * 90 + [0.02] * 10}
    record["starts"][0].update(from_snapshot=1.2, VmRSS=121.0, VmHWM=122.0)
    record["crowd"]["nodes"][0]["subnet"] = record["crowd"]["nodes"][1]["subnet"]
    verdicts = {row.measure: row.reached for row in figures.rows(record)}
    missed = {measure for measure, reached in verdicts.items() if reached is False}
    for part in ("start: ", "memory", "(bad)", "distinct subnets"):
        assert any(part in measure for measure in missed), part
    assert not any("(good)" in measure for measure in missed)


@pytest.mark.parametrize(("words", "named"), [
    (["--leases", "1"], "--leases 1: from 2 to"), (["--seconds", "0"], "--seconds 0: from 0.5"),
    (["--leases", "5", "--changes", "5"], "--changes 5: each takes one"), (["--nodes", "0"], "--nodes 0: from 1"),
    (["--save", "/dev/null/x"], "/dev/null"),
])  # fmt: skip
def test_a_wrong_option_is_named_in_one_line(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", *words])
    with pytest.raises(SystemExit, match=rf"^python -m benchmarks.scale: [^\n]*{re.escape(named)}[^\n]*$"):
        main()
    assert capsys.readouterr() == ("", "")
