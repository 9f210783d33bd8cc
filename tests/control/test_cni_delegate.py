"""What the CNI plugin has the delegated plugin do: its configuration, key by key, and its answers."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from .cni_world import DUAL_ENV, OWNER, RESULT, World

V4 = {
    "type": "bridge", "name": "net1", "cniVersion": "1.1.0", "mtu": 1472, "ipMasq": False, "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.52.0/24"}]], "routes": [{"dst": "10.5.0.0/16"}]},
}  # fmt: skip
DUAL = {
    **V4, "mtu": 1452, "ipMasq": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.52.0/24"}], [{"subnet": "fd00:5:0:7::/64"}]],
             "routes": [{"dst": "10.5.0.0/16"}, {"dst": "fd00:5::/48"}]},
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def without(configuration: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in configuration.items() if name != key}


@pytest.mark.parametrize(("said", "expected"), [
    ({}, V4),
    ({"cniVersion": None}, without(V4, "cniVersion")),
    ({"cniVersion": "0.3.1"}, {**V4, "cniVersion": "0.3.1"}),
    ({"delegate": None, "ipam": None, "runtimeConfig": None}, V4),
    ({"delegate": {"hairpinMode": True, "bridge": "cbr0"}}, {**V4, "hairpinMode": True, "bridge": "cbr0"}),
    ({"delegate": {"mtu": 1300, "ipMasq": True, "isGateway": 0}}, {**V4, "mtu": 1300, "ipMasq": True, "isGateway": 0}),
    ({"delegate": {"type": "other", "cniVersion": "9"}}, {**without(V4, "isGateway"), "type": "other"}),
    ({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}, {**V4, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}),
    ({"args": {"cni": {"ips": ["10.5.52.9"]}}}, {**V4, "args": {"cni": {"ips": ["10.5.52.9"]}}}),
    ({"ipam": {"dataDir": "/d", "ranges": [["mine"]], "subnet": "10.9.0.0/16"}},
     {**V4, "ipam": {**V4["ipam"], "dataDir": "/d", "subnet": "10.9.0.0/16"}}),  # type: ignore[dict-item]
    ({"ipam": {"type": "other", "routes": [{"dst": "10.9.0.0/16", "gw": "10.5.52.3", "mtu": 1400}]}},
     {**V4, "ipam": {**V4["ipam"], "type": "other",  # type: ignore[dict-item]
                     "routes": [{"dst": "10.9.0.0/16", "gw": "10.5.52.3", "mtu": 1400}, {"dst": "10.5.0.0/16"}]}}),
])
def test_the_delegate_is_told_what_flannels_plugin_tells_it(
    world: World, said: dict[str, Any], expected: dict[str, Any]
) -> None:
    network = {key: value for key, value in world.network(**said).items() if value is not None or key != "cniVersion"}
    world.call("ADD", network).succeeded()
    (called,) = world.calls()
    assert (called.plugin, called.verb, called.container, called.interface) == (expected["type"], "ADD", "c1", "eth0")
    assert called.said == expected
    assert json.loads((world.data / "c1").read_text()) == {**expected, OWNER: "eth0"}


@pytest.mark.parametrize(("env", "expected"), [
    (DUAL_ENV, DUAL),
    ("FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=true\n",
     {**V4, "mtu": 0, "ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00:5:0:7::/64"}]],
                               "routes": [{"dst": "fd00:5::/48"}]}}),
    (DUAL_ENV.replace("=10.5.0.0/16", "=10.5.0.0/16,10.6.0.0/16,10.5.0.0/16"),
     {**DUAL, "ipam": {**DUAL["ipam"], "routes": [  # type: ignore[dict-item]
         {"dst": "10.5.0.0/16"}, {"dst": "10.6.0.0/16"}, {"dst": "fd00:5::/48"}]}}),
], ids=["dual stack", "IPv6", "several networks"])  # fmt: skip
def test_every_kind_of_subnet_env(world: World, env: str, expected: dict[str, Any]) -> None:
    world.env.write_text(env)
    world.call("ADD").succeeded()
    assert world.calls()[0].said == expected


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_its_answer_is_ours(world: World, version: str) -> None:
    result = {**RESULT, "cniVersion": version}
    (world.root / "result").write_text(json.dumps(result, indent=2))
    assert world.call("ADD", world.network(cniVersion=version)).succeeded() == result


def test_a_result_of_plugins_before_is_kept(world: World) -> None:
    before = {"cniVersion": "1.1.0", "interfaces": [{"name": "lo"}],
              "ips": [{"address": "192.0.2.7/32", "interface": 0}],
              "routes": [{"dst": "192.0.2.0/24"}], "dns": {"nameservers": ["192.0.2.53"]}, "extra": 1}  # fmt: skip
    result = world.call("ADD", world.network(prevResult=before)).succeeded()
    assert [one["name"] for one in result["interfaces"]] == ["lo", "cni0", "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("192.0.2.7/32", 0), ("10.5.52.2/24", 2)]
    assert [route["dst"] for route in result["routes"]] == ["192.0.2.0/24", "10.5.0.0/16"]
    assert (result["dns"], result["extra"]) == (before["dns"], 1)
    assert "prevResult" not in world.calls()[0].said


def test_its_error_is_ours_and_what_it_did_is_undone(world: World) -> None:
    world.fails("bridge", "ADD", 42, "no bridge today")
    world.call("ADD").failed(42, "plugin bridge: no bridge today")
    add, undo = world.calls()
    assert (add.verb, undo.verb, undo.said) == ("ADD", "DEL", add.said)
    assert (undo.container, undo.interface, undo.netns) == ("c1", "eth0", "/run/netns/nowhere")
    assert world.records() == set()


def test_what_cannot_be_undone_at_once_waits_for_del(world: World) -> None:
    world.fails("bridge", "ADD", 42, "first")
    world.fails("bridge", "DEL", 43, "second")
    done = world.call("ADD")
    done.failed(42, "first")
    assert "second" in done.stderr
    assert world.records() == {"c1"}
    world.call("DEL").failed(43, "second")
    assert world.records() == {"c1"}
    world.has("bridge", "DEL", "")
    world.call("DEL").succeeded()
    assert world.verbs() == [("bridge", verb) for verb in ("ADD", "DEL", "DEL", "DEL")]
    assert world.records() == set()


@pytest.mark.parametrize(("script", "word"), [
    ("echo nonsense; exit 0", "'nonsense\\n'"),
    ("exit 0", "said nothing"),
    ("exit 3", "ended with status 3 and said nothing"),
    ("echo '[]'; exit 0", "'[]\\n'"),
    ("echo 1; exit 1", "status 1"),
    ("kill -9 $$", "was ended by signal 9"),
    ("echo '{\"msg\": \"odd\", \"code\": \"x\"}'; exit 1", "plugin bridge: odd"),
])  # fmt: skip
def test_an_answer_that_makes_no_sense(world: World, script: str, word: str) -> None:
    world.has("bridge", "ADD", script + "\n")
    world.call("ADD").failed(100, word)
    assert world.verbs() == [("bridge", "ADD"), ("bridge", "DEL")]
    assert world.records() == set()


def test_the_first_folder_of_cni_path_that_has_it(world: World, tmp_path: Path) -> None:
    (tmp_path / "early" / "bridge").mkdir(parents=True)  # a folder is no plugin
    world.call("ADD", PATH=f":{tmp_path}/early::{world.bin}:/usr/lib/cni").succeeded()
    assert world.verbs() == [("bridge", "ADD")]


@pytest.mark.parametrize(("mode", "text", "word"), [
    (0o755, "", "Exec format error"),
    (0o644, "#!/bin/sh\n", "Permission denied"),
    (0o755, "#!/nowhere\n", "No such file"),
])  # fmt: skip
def test_a_plugin_that_cannot_be_run(world: World, mode: int, text: str, word: str) -> None:
    (world.bin / "bridge").write_text(text)
    (world.bin / "bridge").chmod(mode)
    world.call("ADD").failed(100, "bridge cannot be run", word)
    assert world.records() == {"c1"}  # undoing could not be run either


def test_a_plugin_that_is_not_there_leaves_nothing(world: World) -> None:
    world.call("ADD", world.network(delegate={"type": "absent"})).failed(100, "plugin absent not found", str(world.bin))
    assert not world.data.exists()


def test_it_has_our_environment_and_stderr_and_usual_signals(world: World) -> None:
    world.has("bridge", "ADD", 'echo "args: $CNI_ARGS" >&2; grep SigIgn /proc/$$/status >&2\n')
    done = world.call("ADD", ARGS="IgnoreUnknown=1;K8S_POD_NAME=pod")
    assert "args: IgnoreUnknown=1;K8S_POD_NAME=pod\n" in done.stderr
    ignored = int(done.stderr.split("SigIgn:")[1].split()[0], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1)), "Python ignores SIGPIPE, and its children would too"


def test_a_reader_that_left_ends_in_an_error_and_not_a_traceback(world: World) -> None:
    process = world.start("ADD")
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process:
        told = process.stderr.read().decode()
        assert process.wait(30) == 1
    assert "Traceback" not in told
    assert "stdout: Broken pipe" in told
