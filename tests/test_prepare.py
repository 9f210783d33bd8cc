""".ci/prepare: touches nothing where nothing is missing, installs what is, and otherwise says so in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH without compiler and ping, and with an apt-get that only writes down what it is asked."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("sh", "id", "tr", "sort", "env", "test"):
        found = shutil.which(name)
        assert found
        (place / name).symlink_to(found)
    script = place / "apt-get"
    script.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nexit "${{APT_STATUS:-0}}"\n')
    script.chmod(0o755)
    return place


def prepare(path: str, *parts: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ROOT / ".ci/prepare"), sys.executable, *parts], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=60, env={"PATH": path, **environ})


def test_where_nothing_is_missing_nothing_is_done(bare: Path) -> None:
    done = prepare(f"{os.environ['PATH']}:{bare}", "build", "lab", "test", "bench", "cni")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (bare.parent / "asked").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may install")
def test_what_is_missing_is_installed(bare: Path) -> None:
    done = prepare(str(bare), "build", "lab")
    assert done.returncode == 0
    update, install = (bare.parent / "asked").read_text().splitlines()
    assert update.endswith("update")
    assert {"gcc", "libc6-dev", "iputils-ping"} <= set(install.partition("install ")[2].split())


def test_what_cannot_be_installed_is_told_in_one_line(bare: Path) -> None:
    done = prepare(str(bare), "build", "lab", APT_STATUS="100")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "please install first (as root): apt-get install" in done.stderr
    assert "iputils-ping" in done.stderr


def test_an_old_python_or_none_is_told_in_one_line() -> None:
    done = subprocess.run([str(ROOT / ".ci/python"), "/nowhere/python3"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "Python 3.11 or newer is needed" in done.stderr
