"""mk-docker-opts against the very script of flannel, where the real node's build has brought it, and golden texts."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp import cli
from flannel_udp.subnet_env import SubnetEnv, write_subnet_env

from ..conftest import require
from ..netns.real_flannel import peer

ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.20.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
BOTH = ('DOCKER_OPT_BIP="--bip=10.5.20.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=false"\nDOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --bip=10.5.20.1/24 --ip-masq=false --mtu=1472"\n')
CASES = [[], ["-i"], ["-c"], ["-m"], ["-ic"], ["-c", "-k", "OTHER"], ["-kOTHER", "-m", "-i"]]

Make = Callable[..., str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "DOCKER_OPT" in name]:
        monkeypatch.delenv(name)


@pytest.fixture
def ours(tmp_path: Path) -> Make:
    """What our command writes for a subnet.env."""
    def make(env: str, *words: str, status: int = 0) -> str:
        source, written = tmp_path / "subnet.env", tmp_path / "docker.env"
        source.write_text(env)
        assert cli.main(["mk-docker-opts", "-f", str(source), "-d", str(written), *words]) == status
        return written.read_text() if written.exists() else ""

    return make


@pytest.fixture
def theirs(tmp_path: Path) -> Make:
    """What flannel's script writes."""
    cache = Path(os.environ.get("GOMODCACHE") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "pkg/mod")
    pattern = "github.com/flannel-io/flannel@*/dist/mk-docker-opts.sh"
    if not list(cache.glob(pattern)):
        peer("flannel-node")  # brings the module
    script = next(iter(cache.glob(pattern)), None)
    require(script and shutil.which("ip"), "needs flannel's module: tests/interop/peers/build flannel-node")

    def make(env: str, *words: str) -> str:
        source, written = tmp_path / "theirs.env", tmp_path / "theirs.docker.env"
        source.write_text(env)
        subprocess.run(["sh", str(script), "-f", str(source), "-d", str(written), *words], check=True)
        return written.read_text()

    return make


def test_both_forms_are_the_default(ours: Make) -> None:
    assert ours(ENV) == BOTH
    assert ours(ENV, "-i") == "".join(BOTH.splitlines(keepends=True)[:3])
    assert ours(ENV, "-c") == BOTH.splitlines(keepends=True)[3]


@pytest.mark.parametrize("words", CASES, ids=" ".join)
@pytest.mark.parametrize("env", [ENV, ENV.replace("true", "false"), "FLANNEL_MTU=1450\n", ""])
def test_output_is_that_of_flannels_script(ours: Make, theirs: Make, env: str, words: list[str]) -> None:
    assert ours(env, *words) == theirs(env, *words)


def test_what_the_environment_brings_is_carried_over(
        ours: Make, theirs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_OPT_DNS", "--dns=192.0.2.53")
    monkeypatch.setenv("DOCKER_OPTS", "--debug")
    assert "--dns=192.0.2.53" in ours(ENV)
    assert ours(ENV) == theirs(ENV)


def test_daemons_own_file_is_read(tmp_path: Path, ours: Make) -> None:
    from ipaddress import IPv4Network

    file = tmp_path / "daemon.env"
    write_subnet_env(file, SubnetEnv(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.20.0/24"), mtu=1472, ip_masq=True))
    assert ours(file.read_text()) == BOTH


@pytest.mark.parametrize(("env", "words", "told"), [
    (ENV.replace("true", "yes"), [], "FLANNEL_IPMASQ is 'yes': expected true or false"),
    (ENV, ["-k", "A B"], "-k A B: expected the name of a shell variable"),
])
def test_bad_input_is_one_line_and_nothing_is_written(
        ours: Make, capsys: pytest.CaptureFixture[str], env: str, words: list[str], told: str) -> None:
    assert ours(env, *words, status=2) == ""
    assert told in capsys.readouterr().err


def test_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mk-docker-opts", "-f", f"{tmp_path}/none", "-d", f"{tmp_path}/out"]) == 2
    assert f"{tmp_path}/none: No such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "subnet.env").write_text(ENV)
    assert cli.main(["mk-docker-opts", "-f", f"{tmp_path}/subnet.env", "-d", f"{tmp_path}/no/out"]) == 2
    assert f"{tmp_path}/no/out: No such file" in capsys.readouterr().err
