"""instance: one daemon per directory and file, told by flag; nothing left, and no lock outlives its process."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_udp.errors import InstanceError
from flannel_udp.instance import sole_instance
from flannel_udp.options import NodeOptions


def options(root: Path) -> NodeOptions:
    return NodeOptions(run_dir=root / "run", state_dir=root / "state", subnet_file=root / "subnet.env")


@pytest.mark.parametrize("shared", ["run_dir", "state_dir", "subnet_file"])
def test_two_that_share_anything_are_refused(tmp_path: Path, shared: str) -> None:
    one, other = options(tmp_path / "one"), options(tmp_path / "two")
    with sole_instance(one):
        with sole_instance(other):
            pass
        flag, what = f"--{shared.replace('_', '-')}", getattr(one, shared)
        with pytest.raises(InstanceError, match=f"^{flag} {what} is in use by another .*process {os.getpid()}"):
            sole_instance(replace(other, **{shared: what})).__enter__()
        with sole_instance(other):  # the refused one holds nothing
            pass


def test_all_in_one_folder_is_fine_and_nothing_is_left(tmp_path: Path) -> None:
    same = NodeOptions(run_dir=tmp_path / "x", state_dir=tmp_path / "x", subnet_file=tmp_path / "x" / "subnet.env")
    for _ in range(2):
        with sole_instance(same):
            assert list((tmp_path / "x").iterdir())
        assert list((tmp_path / "x").iterdir()) == []


def test_unusable_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InstanceError, match=r"--run-dir .*/run cannot be used: (File exists|Not a directory)"):
        sole_instance(options(tmp_path)).__enter__()


def test_who_may_not_write_is_told_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flannel_udp.instance._open_locked", refused)  # root may write anywhere
    with pytest.raises(InstanceError, match=r"denied: run as root, or name another with --run-dir$"):
        sole_instance(options(tmp_path)).__enter__()


HOLDER = """
import sys, time
from pathlib import Path
from flannel_udp.instance import sole_instance
from flannel_udp.options import NodeOptions
root = Path(sys.argv[1])
with sole_instance(NodeOptions(run_dir=root / "run", state_dir=root / "state", subnet_file=root / "subnet.env")):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InstanceError, match=f"process {holder.pid}"):
            sole_instance(options(tmp_path)).__enter__()
        holder.send_signal(signal.SIGKILL)
    with sole_instance(options(tmp_path)):
        pass
