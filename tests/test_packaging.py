"""The wheel, made from the sdist, works in a virtual environment elsewhere with no source tree on its path."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import require_commands, require_tun

ROOT = Path(__file__).parent.parent
CLEAN = {name: value for name, value in os.environ.items()
         if not name.startswith(("PYTHON", "PYTEST", "FLANNEL", "LD_", "VIRTUAL_ENV", "CI"))}

COMPILED = ["_dataplane", "_probe", "_timing"]


def run(words: Sequence[str | Path], cwd: str | Path = "/", timeout: float = 300) -> str:
    done = subprocess.run(words, cwd=cwd, env=CLEAN, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, built from a copy of the tree: a build writes beside its sources."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    left_out = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.so", "__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=left_out)
    target = tmp_path_factory.mktemp("dist")
    # The tools of this environment, the ones that pyproject.toml asks for: no download, and the same compiler.
    run([sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", target, copy])
    return target


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it; its bin folder."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    run([sys.executable, "-m", "venv", place])
    run([place / "bin" / "pip", "--disable-pip-version-check", "install", "--quiet", wheel])
    return place / "bin"


@pytest.mark.timeout(600)
def test_the_sdist_holds_what_a_build_and_a_test_run_need(dist: Path) -> None:
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "setup.py", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", ".ci/prepare",
              ".ci/run", "tests/test_packaging.py", "contrib/systemd/flannel-udp.service"}
    sources = {str(file.relative_to(ROOT)) for folder in ("src", "flannel_udp", "tests")
               for ending in ("py", "pyx", "pxd", "pyi", "md") for file in (ROOT / folder).rglob(f"*.{ending}")}
    assert needed | sources <= names
    assert not {name for name in names if name.endswith((".so", ".c", ".pyc"))}


@pytest.mark.timeout(600)
def test_the_wheel_holds_the_package_and_no_sources_of_the_core(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "flannel_udp"
    expected = {str(file.relative_to(ROOT)) for ending in ("py", "pyi") for file in package.rglob(f"*.{ending}")}
    assert expected | {"flannel_udp/py.typed"} <= names
    assert {f"flannel_udp/{name}.pyi" for name in COMPILED} <= names
    compiled = [name for name in names if name.endswith(".so")]
    assert sorted(name.partition(".")[0] for name in compiled) == [f"flannel_udp/{name}" for name in COMPILED]
    assert not {name for name in names if name.endswith((".pyx", ".pxd", ".c", ".pyc"))}
    assert {name.partition("/")[0].rpartition(".")[2] for name in names} == {"flannel_udp", "dist-info"}


@pytest.mark.timeout(600)
def test_the_command_works_from_the_wheel(elsewhere: Path) -> None:
    assert run([elsewhere / "flannel-udp", "--version"]).startswith("flannel-udp ")
    code = "import flannel_udp._dataplane as d, flannel_udp.cli as c; print(d.__file__, c.__file__)"
    where = run([elsewhere / "python", "-c", code])
    assert where.count(str(elsewhere.parent)) == 2
    assert str(ROOT) not in run([elsewhere / "python", "-c", "import sys; print(sys.path)"])


@pytest.mark.timeout(600)
def test_the_images_installation_works_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The second stage of the image's recipe, in this machine's place of its base image; without Debian's packages."""
    stage = (ROOT / "contrib" / "container" / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    steps = [line.removeprefix("RUN ") for line in stage.splitlines() if line.startswith("RUN ")]
    (step,) = (step for step in steps if "apt-get" not in step)
    here = step.replace("/wheels", str(wheel.parent)).replace("/opt", str(tmp_path))
    run(["sh", "-ec", here.replace("python -m venv", f"{sys.executable} -m venv")])
    assert "PATH=/opt/flannel-udp/bin:" in stage
    assert run([tmp_path / "flannel-udp" / "bin" / "flannel-udp", "--version"]).startswith("flannel-udp ")
    run([tmp_path / "flannel-udp" / "bin" / "python", "-c", "import flannel_udp.probes"])


@pytest.mark.timeout(600)
def test_a_small_lab_works_from_the_wheel(elsewhere: Path) -> None:
    require_tun()
    require_commands("ip", "ping")
    command, name = elsewhere / "flannel-udp", f"--name=wheel{os.getpid()}"
    run([command, "lab", "up", "--nodes=2", name])
    try:
        leases = run([command, "lab", "status", name])
        assert "10." in leases
        other = run([command, "lab", "exec", name, "2", "--pod", "--", "hostname", "-I"]).split()[0]
        assert " 0% packet loss" in run([command, "lab", "exec", name, "1", "--pod", "--", "ping", "-c2", "-W5", other])
    finally:
        run([command, "lab", "down", name])
