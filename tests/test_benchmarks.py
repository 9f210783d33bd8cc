"""The benchmark suite on real devices: a tiny run, its reports against its samples; and what it is asked wrongly."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import require, require_commands, require_tun
from .reports import Page, compare, markdown_tables

# Last, so that it shadows nothing: under -P this folder is not on the path.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.rivals.loads import LOADS
from benchmarks.rivals.places import MODES
from benchmarks.rivals.plan import SIZES, START
from benchmarks.rivals.rates import ALLOWED

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs/benchmarking.md"
RIVALS = "vxlan,mine,flannel_udp,flannel_udp:backend=vxlan+source-ports=4"
RUN_LOADS = ("tcp-1", "udp-64", "flows-64", "rate-64", "ask-loaded", "start")


def suite(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "benchmarks.rivals", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=100)


@pytest.fixture(scope="module")
def own_overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contender that the guide shows, in a file as the guide says."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path_factory.mktemp("overlay") / "mine.py"
    file.write_text(block)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own_overlay: Path) -> Path:
    """The folder of a tiny run on real devices."""
    require(os.geteuid() == 0, "needs root: the benchmark suite makes devices and changes their offloads")
    require_commands("ip", "bridge", "ss", "ping", "setpriv", "iperf3")
    require_tun()
    folder = tmp_path_factory.mktemp("run")
    done = suite("standard", "--rounds", "1", "--seconds", "0.5", "--modes", "all", "--loads", ",".join(RUN_LOADS),
                 "--overlay", str(own_overlay), "--contenders", RIVALS, "--save", str(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 rows, 1 rounds of 0.5 s: 24 samples, about" in done.stderr.splitlines()[0]
    return folder


@pytest.fixture
def record(finished: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((finished / "samples.json").read_text())
    return told


def test_every_row_has_its_sample_or_its_reason(record: dict[str, Any]) -> None:
    found = {(one["load"], one["contender"]) for one in (*record["samples"], *record["failures"])}
    assert found == set(itertools.product(RUN_LOADS, RIVALS.split(",")))
    # A kernel's device is no program: the row cannot run, and the run went on.
    assert {(one["load"], one["contender"]) for one in record["failures"]} >= {("start", "vxlan"), ("start", "mine")}
    assert all("no program" in one["why"] for one in record["failures"] if one["load"] == "start")


def test_what_a_load_measures_is_there_and_possible(record: dict[str, Any]) -> None:
    by_load = {load: [one for one in record["samples"] if one["load"] == load] for load in RUN_LOADS}
    for one in by_load["tcp-1"]:
        assert one["gbps"] > 0
        assert one["cpu_per_gb"] > 0
        assert 500 < one["bytes_per_frame"] <= 65_600
    for one in by_load["udp-64"] + by_load["flows-64"]:
        assert one["pps"] > 0
        assert 0 <= one["lost"] < 1
        assert one["dropped"] == sum(one["drops"].values())
    for one in by_load["rate-64"]:
        assert one["lost"] < ALLOWED
        assert 0 < one["pps"] <= one["sent_pps"]
        assert one["cpu_per_mpps"] > 0
    for one in by_load["ask-loaded"]:
        assert 0 < one["p50"] <= one["p99"] <= one["p999"]
        assert one["gbps"] > 0
    assert len(by_load["start"]) == 2
    for start in by_load["start"]:
        assert start["start"] > 0
        assert 1 < start["idle_pss"] <= start["idle_rss"]
        assert 1 < start["loaded_pss"] <= start["loaded_rss"]


def test_the_record_tells_machine_devices_and_settings(record: dict[str, Any]) -> None:
    assert {"kernel", "cpu", "commit", "iperf3", "date"} <= record["machine"].keys()
    ours = record["contenders"]["flannel_udp"]
    assert ours["threads"] in {1, 2}
    assert ours["TUN offloads, UDP_SEGMENT, UDP_GRO"] == "granted"
    assert "tx-tcp-segmentation" in ours["offloads on"]
    assert {"mtu", "txqlen", "gso_max_size", "device"} <= ours.keys()
    assert record["contenders"]["mine"]["device"] == "mine"


def test_both_reports_show_what_was_measured(finished: Path, record: dict[str, Any]) -> None:
    text = (finished / "report.md").read_text()
    page = Page((finished / "report.html").read_text())
    assert compare(record, markdown_tables(text)) == compare(record, page.tables) == len(record["samples"])
    assert page.tables == markdown_tables(text)
    assert text.index("Before the figures") < text.index("## Targets") < text.index("Gb/s")
    assert {"svg", "rect", "circle"} <= page.tags
    assert not page.references, "the page needs nothing else"
    assert text.count("█") > len(record["samples"])
    for failure in record["failures"]:
        assert failure["why"] in text


@pytest.mark.parametrize(("words", "named"), [
    (["--loads", "tcp-9"], "'tcp-9': choose from tcp-1"), (["--modes", "some"], "'some': choose from all"),
    (["--contenders", "vxlan,ours"], "'ours': choose from veth"), (["--rounds", "0"], "--rounds 0: at least 1"),
    (["--contenders", "flannel_udp:thread=1"], "'thread=1': no option of"), (["--seconds", "0"], "from 0.5 to 3600"),
    (["--settings", "flannel_udp:threads=9"], "'threads=9': argument --threads"), (["--overlay", "/nowhere"], "where"),
    (["--contenders", "veth:x=1"], "'x=1': this one has family=4|6"),
    (["--contenders", "wireguard-go:family=6"], "'family=6': this one has none"),
    (["--contenders", "flannel:backend=ipip"], "'backend=ipip': this one has backend=udp|vxlan, family=4|6"),
    (["--modes", "no-tunnel"], "has no such rows"),
    (["--overlay", str(ROOT / "setup.cfg.py")], "setup.cfg.py"), (["--save", "/dev/null/x"], "/dev/null"),
])  # fmt: skip
def test_a_wrong_option_is_named_in_one_line(words: list[str], named: str) -> None:
    done = suite("quick", "--plan", *words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_a_plan_is_told_and_nothing_is_run() -> None:
    done = suite("quick", "--plan", "--rounds", "10", "--loads", "tcp-1,start")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"3 rows, 10 rounds of 2 s: 110 samples, about \d\.\d minutes\n", done.stderr)


def test_a_file_that_is_no_record_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    file.write_text("{}")
    done = subprocess.run([sys.executable, "-m", "benchmarks.report", file], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr


def test_the_guide_names_all_that_can_be_chosen() -> None:
    text = GUIDE.read_text()
    kinds = {load.partition("-")[0] for load in (*LOADS, START)}
    for name in (*kinds, *MODES, *(name for size in SIZES.values() for row in size[0] for name in row.contenders)):
        assert f"`{name.partition(':')[0]}" in text, name
