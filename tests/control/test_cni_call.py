"""Calls of the CNI plugin that make no sense, each with its code and one line; and what VERSION answers."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni.call import VERSIONS

from .cni_world import Done, World

ALL = ("ADD", "DEL", "CHECK", "STATUS", "GC")
PREVIOUS = {"cniVersion": "1.1.0", "ips": [{"address": "10.5.52.2/24"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that no call changes, as each is refused."""
    return World(tmp_path_factory.mktemp("refused"))


def refused(
    world: World, verb: str, said: dict[str, Any] | bytes, changes: dict[str, str | None], code: int, word: str
) -> None:
    """See that a call is refused as it should be, and that nothing was done."""
    done = world.call(verb, said, **changes)
    done.failed(code, word)
    assert done.answer["cniVersion"] in VERSIONS
    assert world.calls() == []
    assert not world.data.exists()


@pytest.mark.parametrize(("verb", "changes", "code", "word"), [
    ("ADD", {"COMMAND": None}, 4, "CNI_COMMAND is missing"),
    ("ADD", {"COMMAND": ""}, 4, "CNI_COMMAND is missing"),
    ("add", {}, 4, "unknown CNI_COMMAND 'add'"),
    ("REMOVE", {}, 4, "expected one of ADD, DEL, CHECK, STATUS, GC, VERSION"),
    *((verb, {"CONTAINERID": None}, 4, "CNI_CONTAINERID missing") for verb in ("ADD", "DEL", "CHECK")),
    *((verb, {"CONTAINERID": ""}, 4, "CNI_CONTAINERID missing") for verb in ("ADD", "DEL", "CHECK")),
    *((verb, {"IFNAME": None}, 4, "CNI_IFNAME missing") for verb in ("ADD", "DEL", "CHECK")),
    *((verb, {"NETNS": ""}, 4, "CNI_NETNS missing") for verb in ("ADD", "CHECK")),
    ("ADD", {"NETNS": None, "IFNAME": None}, 4, "CNI_NETNS, CNI_IFNAME missing"),
    ("GC", {"PATH": None}, 4, "CNI_PATH missing"),
    ("ADD", {"PATH": None}, 4, "CNI_PATH missing"),
    ("ADD", {"PATH": "/nowhere"}, 100, "plugin bridge not found"),
    *(("ADD", {"CONTAINERID": name}, 4, "CNI_CONTAINERID") for name in (
        ".hidden", "-c", "_c", "a/b", "../c", "a b", "a@b", "a\nb", "ä", "c" * 224)),
    *(("ADD", {"IFNAME": name}, 4, "CNI_IFNAME") for name in (
        ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-", "ä" * 8, "a\u00a0b")),
    ("ADD", {"NETNS": "/proc/self/ns/net"}, 8, "CNI_NETNS"),
    ("CHECK", {"NETNS": "/proc/self/ns/net"}, 8, "CNI_NETNS"),
])  # fmt: skip
def test_variables(shared: World, verb: str, changes: dict[str, str | None], code: int, word: str) -> None:
    refused(shared, verb, shared.network(prevResult=PREVIOUS, **{"cni.dev/valid-attachments": []}), changes, code, word)


@pytest.mark.parametrize(("data", "word"), [
    *((data, "not JSON") for data in (
        b"", b" \n", b"nonsense", b"{", b'{"name": }', b"\xff\xfe{}", b'{"name": "\xe4"}', b"{} {}", b"\x00",
        b"{'name': 'net1'}", b'{"n": ' + b"9" * 5000 + b"}")),
    (b'{"mtu": NaN}', "NaN"),
    (b'{"mtu": 1e999}', "1e999 is too large"),
    (b'{"mtu": -1e999}', "-1e999 is too large"),
    (b'{"mtu": -Infinity}', "-Infinity"),
    (b"[" * 100_000, "nested too deeply"),
    *((data, "not a JSON object") for data in (b"[]", b'"text"', b"null", b"7")),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["ADD", "GC"])
def test_configurations_that_are_none(shared: World, verb: str, data: bytes, word: str) -> None:
    refused(shared, verb, data, {}, 6, word)


@pytest.mark.parametrize(("verb", "said", "code", "word"), [
    *((verb, {"cniVersion": "2.0.0"}, 1, "supported are 0.1.0, ") for verb in ALL),
    ("ADD", {"cniVersion": "1"}, 1, '"1" is not supported'),
    ("ADD", {"cniVersion": "1.1.0\n"}, 1, "is not supported"),
    ("ADD", {"cniVersion": 1.1}, 7, "cniVersion 1.1"),
    ("CHECK", {"cniVersion": "0.3.1"}, 1, "0.3.1 has no CHECK"),
    ("CHECK", {"cniVersion": ""}, 1, "0.1.0 has no CHECK"),
    ("STATUS", {"cniVersion": "1.0.0"}, 1, "it came with 1.1.0"),
    ("GC", {"cniVersion": "1.0.0"}, 1, "1.0.0 has no GC"),
    *((verb, {"name": None}, 7, "name is missing") for verb in ALL),
    ("ADD", {"name": ""}, 7, "name is missing"),
    ("ADD", {"name": 7}, 7, "name 7"),
    ("ADD", {"name": "a/b"}, 7, 'name "a/b"'),
    ("ADD", {"name": ".net"}, 7, "expected letters"),
    ("ADD", {"name": "n" * 5000 + "/"}, 7, "nnn..."),
    ("ADD", {"subnetFile": 7}, 7, "subnetFile 7"),
    ("ADD", {"subnetFile": ""}, 7, "/run/flannel/subnet.env"),
    ("STATUS", {"subnetFile": "subnet.env"}, 7, "an absolute path"),
    ("DEL", {"dataDir": ["/data"]}, 7, "dataDir"),
    ("DEL", {"dataDir": "/da\u0000ta"}, 7, "dataDir"),
    ("DEL", {"dataDir": "/\ud800"}, 7, "dataDir"),
    ("ADD", {"subnetFile": "/" + "n" * 5000}, 7, "subnetFile"),
    *((verb, {"dataDir": "/" + "n" * 300, "cni.dev/valid-attachments": []}, 5, "File name too long")
      for verb in ("ADD", "DEL", "GC")),
    ("STATUS", {"controlSocket": "/" + "n" * 300}, 51, "File name too long"),
    ("CHECK", {"prevResult": {"ips": [{"address": "10.5.52.2/24", "gateway": 5}]}}, 7, "gateways are texts"),
    ("CHECK", {"controlSocket": "control.sock"}, 7, "controlSocket"),
    ("ADD", {"delegate": "bridge"}, 7, "expected an object"),
    ("ADD", {"delegate": []}, 7, "delegate []"),
    ("ADD", {"delegate": {"type": 7}}, 7, "delegate.type 7"),
    ("ADD", {"delegate": {"type": ""}}, 7, "delegate.type"),
    ("ADD", {"delegate": {"type": None}}, 7, "delegate.type null"),
    ("ADD", {"delegate": {"type": "../bridge"}}, 7, "delegate.type"),
    ("ADD", {"delegate": {"type": ".."}}, 7, "without folders"),
    ("ADD", {"delegate": {"name": "net2"}}, 2, 'delegate.name "net2"'),
    ("ADD", {"delegate": {"ipam": {"type": "dhcp"}}}, 2, 'delegate.ipam {"type": "dhcp"}'),
    ("ADD", {"ipam": "host-local"}, 7, "ipam"),
    ("ADD", {"ipam": {"type": False}}, 7, "ipam.type false"),
    ("ADD", {"ipam": {"type": "a/b"}}, 7, "ipam.type"),
    ("ADD", {"ipam": {"routes": {}}}, 7, "ipam.routes {}"),
    *(("ADD", {"ipam": {"routes": [{"dst": "10.0.0.0/8"}, route]}}, 7, "ipam.routes[1]") for route in (
        "10.0.0.0/8", {}, {"dst": 7}, {"dst": "10.0.0.0"}, {"dst": "10.0.0.0/33"}, {"dst": "here/8"},
        {"dst": "10.0.0.0/8", "gw": "there"}, {"dst": "10.0.0.0/8", "gw": []})),
    ("ADD", {"runtimeConfig": []}, 7, "runtimeConfig"),
    ("ADD", {"args": "IP=10.5.52.9"}, 7, "args"),
    ("CHECK", {}, 7, "prevResult is missing"),
    *((verb, {"prevResult": "none"}, 7, "prevResult") for verb in ("ADD", "DEL", "CHECK")),
    ("CHECK", {"prevResult": {"ips": {}}}, 7, "prevResult.ips"),
    ("CHECK", {"prevResult": {"ips": ["10.5.52.2"]}}, 7, "prevResult.ips[0]"),
    ("CHECK", {"prevResult": {"routes": [{"gw": "10.5.52.1"}]}}, 7, "prevResult.routes[0]"),
    ("CHECK", {"prevResult": {"interfaces": [7]}}, 7, "prevResult.interfaces[0]"),
    ("GC", {"cni.dev/valid-attachments": {}}, 7, "cni.dev/valid-attachments {}"),
    ("GC", {"cni.dev/valid-attachments": ["c1"]}, 7, "cni.dev/valid-attachments[0]"),
    ("GC", {"cni.dev/valid-attachments": [{"containerID": "c1"}]}, 7, "containerID"),
    ("GC", {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": None}]}, 7, "ifname"),
])  # fmt: skip
def test_configurations_with_a_wrong_key(shared: World, verb: str, said: dict[str, Any], code: int, word: str) -> None:
    refused(shared, verb, shared.network(**said), {}, code, word)


@pytest.mark.parametrize(("text", "code", "word"), [
    (None, 11, "subnet.env is missing"),
    ("", 6, "lacks FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU"),
    ("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n", 6, "lacks FLANNEL_SUBNET"),
    ("FLANNEL_NETWORK=net\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n", 6, "'net' is not"),
    (b"\xff", 6, "UTF-8"),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_subnet_env(tmp_path: Path, verb: str, text: str | bytes | None, code: int, word: str) -> None:
    world = World(tmp_path)
    world.env.unlink()
    if text is not None:
        world.env.write_bytes(text.encode() if isinstance(text, str) else text)
    refused(world, verb, world.network(), {}, code if verb == "ADD" else 50, word)


def test_a_subnet_env_that_cannot_be_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.env.unlink()
    world.env.mkdir()
    refused(world, "ADD", world.network(), {}, 5, "Is a directory")


@pytest.mark.parametrize("closed", ["<&-", "0>/dev/null"], ids=["closed", "write-only"])
def test_a_stdin_that_cannot_be_read(shared: World, closed: str) -> None:
    command = ["sh", "-c", f"{shared.bin}/flannel {closed}"]
    done = subprocess.run(command, env=shared.environment("ADD", {}), capture_output=True, text=True, check=False)
    Done(done.returncode, done.stdout, done.stderr).failed(5, "stdin cannot be read")


def test_who_calls_it_by_hand_is_told_what_it_is(shared: World) -> None:
    done = shared.call("ADD", COMMAND=None)
    assert "called by container runtimes" in done.stderr
    assert ", ".join(VERSIONS) in done.stderr


def test_another_namespace_than_the_own_and_an_own_one_that_is_meant(shared: World) -> None:
    shared.call("ADD", CONTAINERID="other", NETNS_OVERRIDE="1", NETNS="/proc/self/ns/net").succeeded()
    shared.call("DEL", CONTAINERID="other", NETNS_OVERRIDE="TRUE", NETNS="/proc/self/ns/net").succeeded()
    shared.calls()
    for file in (shared.data / ".lock", shared.data):
        file.unlink() if file.is_file() else file.rmdir()


@pytest.mark.parametrize(("said", "version"), [
    (b"", "1.1.0"), (b"{}", "1.1.0"), (b'{"cniVersion": "0.4.0"}', "0.4.0"), (b'{"cniVersion": "1.7.0"}', "1.7.0"),
    (b'{"cniVersion": 7}', "1.1.0"),
])  # fmt: skip
def test_version(shared: World, said: bytes, version: str) -> None:
    done = shared.call("VERSION", said, CONTAINERID=None, NETNS=None, IFNAME=None, PATH=None)
    assert done.succeeded() == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def test_version_at_a_terminal_does_not_wait_for_input(shared: World) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run([shared.bin / "flannel"], stdin=theirs, env={"CNI_COMMAND": "VERSION"}, capture_output=True,
                          timeout=30, check=True)  # fmt: skip
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)
    os.close(ours)
    os.close(theirs)


def test_version_without_stdin(shared: World) -> None:
    command = ["sh", "-c", f"{shared.bin}/flannel <&-"]
    done = subprocess.run(command, env={"CNI_COMMAND": "VERSION"}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_changes_nothing(tmp_path: Path, stderr: str) -> None:
    world = World(tmp_path)
    world.call("ADD").succeeded()
    (world.data / "c1").write_bytes(b"")
    world.env.unlink()  # so that DEL has something to log
    script = f"{world.bin}/flannel {stderr} <{world.root}/stdin"
    done = subprocess.run(["sh", "-c", script], env=world.environment("DEL", {}), stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert world.records() == set()


def test_version_of_nonsense(shared: World) -> None:
    shared.call("VERSION", b"nonsense").failed(6, "not JSON")
