"""flannel-udp cni install: what it puts where, and what it leaves alone."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli import main
from flannel_udp.cni import install
from flannel_udp.cni.call import VERSIONS
from flannel_udp.errors import PluginError, UsageError

VERSION_CALL = {"CNI_COMMAND": "VERSION", "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}


def supported(plugin: Path) -> list[str]:
    """What an installed plugin answers, called as a runtime calls it: in an environment of its own."""
    asked = json.dumps({"cniVersion": "1.0.0"})
    done = subprocess.run([plugin], input=asked, env=VERSION_CALL, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["cniVersion"] == "1.0.0"
    versions: list[str] = answer["supportedVersions"]
    return versions


def test_the_plugin_runs_from_where_it_was_put(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = os.umask(0o077)
    try:
        assert main(["cni", "install", "--bin-dir", str(tmp_path / "bin")]) == 0
    finally:
        os.umask(old)
    plugin = tmp_path / "bin" / "flannel"
    assert capsys.readouterr().out == f"{plugin}: the CNI plugin\n"
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
    assert supported(plugin) == list(VERSIONS)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bin"]


@pytest.mark.parametrize("folder", ["with a blank", "with'quote", "deep" * 40])
def test_an_interpreter_that_no_first_line_can_name(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    install.install(tmp_path / "bin")
    assert supported(tmp_path / "bin" / "flannel") == list(VERSIONS)


def test_a_package_that_has_gone_is_told_as_the_specification_wants_it(tmp_path: Path) -> None:
    install.install(tmp_path)
    plugin = tmp_path / "flannel"
    plugin.write_text(plugin.read_text().replace(repr(str(Path(install.__file__).parents[2])), repr("/gone")))
    done = subprocess.run([plugin], env={"CNI_COMMAND": "ADD"}, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr, answer["code"]) == (1, "", 999)
    assert "flannel-udp cni install" in answer["details"]


def test_another_plugin_is_kept_beside_ours_and_ours_is_renewed(tmp_path: Path) -> None:
    (tmp_path / "flannel").write_bytes(b"\x7fELF flannel's")
    told = install.install(tmp_path)
    assert told == [f"{tmp_path}/flannel.saved: the plugin that was there", f"{tmp_path}/flannel: the CNI plugin"]
    assert install.install(tmp_path) == [f"{tmp_path}/flannel: the CNI plugin"]
    assert (tmp_path / "flannel.saved").read_bytes() == b"\x7fELF flannel's"
    (tmp_path / "flannel").write_bytes(b"another")
    with pytest.raises(PluginError, match=r"flannel\.saved is taken.*nothing was done"):
        install.install(tmp_path)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"another", b"\x7fELF flannel's"}
    (tmp_path / "flannel").unlink()
    install.install(tmp_path)
    assert supported(tmp_path / "flannel") == list(VERSIONS)


def test_the_network_is_flannels_usual_one(tmp_path: Path) -> None:
    install.install(tmp_path / "bin", tmp_path / "net.d", "0.3.1")
    network = json.loads((tmp_path / "net.d" / "10-flannel.conflist").read_text())
    assert (network["name"], network["cniVersion"]) == ("cbr0", "0.3.1")
    assert [plugin["type"] for plugin in network["plugins"]] == ["flannel", "portmap"]
    install.install(tmp_path / "bin", tmp_path / "net.d", "0.3.1")  # once more is no fault


def test_a_network_of_the_administrators_own_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "net.d" / "10-flannel.conflist"
    theirs.parent.mkdir()
    theirs.write_text('{"name": "mine"}')
    with pytest.raises(PluginError, match=r"10-flannel\.conflist is there and differs"):
        install.install(tmp_path / "bin", theirs.parent)
    assert theirs.read_text() == '{"name": "mine"}'
    assert not (tmp_path / "bin").exists()


def test_what_cannot_be_obeyed_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"--cni-version 2\.0\.0: expected one of 0\.1\.0, "):
        install.install(tmp_path, version="2.0.0")
    for words in (["--bin-dir", ""], ["--bin-dir", str(tmp_path), "--conf-dir", ""]):
        with pytest.raises(SystemExit, match="2"):
            main(["cni", "install", *words])
        assert "expected a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["cni", "install", "--bin-dir", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"flannel-udp: {tmp_path}/file: File exists: the plugin is not installed\n"
