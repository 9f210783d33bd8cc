"""What the CNI plugin keeps of an attachment, and how DEL comes by it, whatever happened between."""

import contextlib
import json
import os
import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flannel_udp.lab import namespace

from ..conftest import require_namespaces, wait_until
from .cni_world import OWNER, SUBNET_ENV, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_record_is_its_owners_alone(world: World) -> None:
    old = os.umask(0)
    try:
        world.call("ADD").succeeded()
    finally:
        os.umask(old)
    assert [mode(path) for path in (world.data, world.data / "c1", world.data / ".lock")] == [0o700, 0o600, 0o600]


def test_it_is_whole_before_the_delegate_is_called(world: World) -> None:
    world.has("bridge", "ADD", f"cp {world.data}/c1 {world.root}/seen\n")
    world.call("ADD").succeeded()
    assert json.loads((world.root / "seen").read_text())[OWNER] == "eth0"


def test_del_undoes_what_add_did_whatever_the_network_says_by_now(world: World) -> None:
    world.call("ADD").succeeded()
    (added,) = world.calls()
    world.env.write_text(SUBNET_ENV.replace("10.5.52", "10.5.99"))
    world.call("DEL", world.network(delegate={"type": "other"}, runtimeConfig={"mac": "x"})).succeeded()
    (deleted,) = world.calls()
    assert (deleted.plugin, deleted.verb, deleted.said) == ("bridge", "DEL", added.said)
    assert world.records() == set()


def test_del_needs_neither_subnet_env_nor_a_namespace_and_may_come_again(world: World) -> None:
    world.call("DEL").succeeded()
    assert not world.data.exists()
    world.call("ADD").succeeded()
    world.env.unlink()
    world.call("DEL", NETNS=None).succeeded()
    for _ in range(2):
        world.call("DEL", NETNS="", PATH=None).succeeded()
    assert world.verbs() == [("bridge", "ADD"), ("bridge", "DEL")]


@pytest.mark.parametrize(("version", "handed"), [("1.1.0", True), ("0.4.0", False)])
def test_del_hands_the_result_of_add_on_where_it_is_of_the_same_version(
    world: World, version: str, handed: bool
) -> None:
    result = world.call("ADD").succeeded()
    world.calls()
    world.call("DEL", world.network(prevResult={**result, "cniVersion": version})).succeeded()
    assert ("prevResult" in world.calls()[0].said) is handed


def test_what_the_delegate_cannot_undo_is_kept_for_the_next_del(world: World) -> None:
    world.call("ADD").succeeded()
    world.fails("bridge", "DEL", 11, "later")
    world.call("DEL").failed(11, "plugin bridge: later")
    assert world.records() == {"c1"}


def test_a_second_add_changes_nothing(world: World) -> None:
    world.call("ADD").succeeded()
    before = (world.data / "c1").read_bytes()
    world.call("ADD", world.network(delegate={"mtu": 1300})).failed(103, "eth0 of container c1 is there", "DEL")
    assert world.verbs() == [("bridge", "ADD")]
    assert (world.data / "c1").read_bytes() == before


# -- several attachments ----------------------------------------------------------------------------------------------


def test_two_interfaces_of_a_container_do_not_meet(world: World) -> None:
    world.call("ADD").succeeded()
    world.call("ADD", world.network(name="net2", delegate={"type": "other"}), IFNAME="net1").succeeded()
    assert world.records() == {"c1", "c1@net1"}
    world.calls()
    world.call("DEL").succeeded()
    assert world.records() == {"c1@net1"}
    world.call("DEL").succeeded()
    assert world.verbs() == [("bridge", "DEL")]
    world.call("DEL", IFNAME="net1").succeeded()
    assert world.verbs() == [("other", "DEL")]
    assert world.records() == set()


def test_the_second_interface_may_go_first_and_come_again(world: World) -> None:
    world.call("ADD").succeeded()
    world.call("ADD", IFNAME="net1").succeeded()
    world.call("DEL", IFNAME="net1").succeeded()
    world.call("DEL", IFNAME="net1").succeeded()  # and does not take the first one's
    assert world.records() == {"c1"}
    world.call("ADD", IFNAME="net1").succeeded()
    assert world.records() == {"c1", "c1@net1"}


def test_files_of_flannels_plugin_are_understood(world: World) -> None:
    theirs = {"type": "bridge", "name": "net1", "cniVersion": "1.1.0", "ipam": {"type": "host-local"}}
    world.data.mkdir()
    (world.data / "c1").write_text(json.dumps(theirs))
    world.call("ADD", IFNAME="net1").succeeded()  # another interface of the same container
    assert world.records() == {"c1", "c1@net1"}
    world.calls()
    world.call("DEL").succeeded()
    (deleted,) = world.calls()
    assert (deleted.interface, deleted.said) == ("eth0", theirs)
    assert world.records() == {"c1@net1"}


def test_an_unnamed_file_of_another_network_is_not_this_ones(world: World) -> None:
    theirs = {"type": "bridge", "name": "net2", "ipam": {"type": "host-local"}}
    world.data.mkdir()
    (world.data / "c1").write_text(json.dumps(theirs))
    world.call("DEL").succeeded()
    assert world.calls() == []
    assert world.records() == {"c1"}


def test_del_where_the_path_of_the_namespace_leads_to_the_nodes_own_by_now(world: World) -> None:
    world.call("ADD").succeeded()
    world.calls()
    world.call("DEL", NETNS="/proc/self/ns/net").succeeded()
    (deleted,) = world.calls()
    assert (deleted.verb, deleted.netns) == ("DEL", "")
    assert world.records() == set()


def test_a_caller_that_ignores_the_end_of_its_children(world: World) -> None:
    (world.root / "stdin").write_text(json.dumps(world.network()))
    script = f"trap '' CHLD; exec {world.bin}/flannel <{world.root}/stdin"
    done = subprocess.run(["bash", "-c", script], env=world.environment("ADD", {}), capture_output=True, check=True)
    assert json.loads(done.stdout)["ips"]


# -- trouble with files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"type": 7}', b"\xff\x00", b"[" * 100_000])
def test_of_a_damaged_record_the_delegate_is_told_anew(world: World, damage: bytes) -> None:
    world.call("ADD").succeeded()
    (added,) = world.calls()
    (world.data / "c1").write_bytes(damage)
    world.call("DEL").succeeded()
    (deleted,) = world.calls()
    assert (deleted.verb, deleted.said) == ("DEL", added.said)
    assert world.records() == set()


def test_a_damaged_record_and_no_subnet_env_is_no_reason_to_keep_a_container(world: World) -> None:
    world.call("ADD").succeeded()
    world.calls()
    (world.data / "c1").write_bytes(b"")
    world.env.unlink()
    done = world.call("DEL")
    done.succeeded()
    assert "c1 is damaged" in done.stderr
    assert world.calls() == []
    assert world.records() == set()


def test_a_record_that_cannot_be_read_is_told_and_kept(world: World) -> None:
    (world.data / "c1").mkdir(parents=True)
    for verb in ("ADD", "DEL"):
        world.call(verb).failed(5, "c1: Is a directory")
    assert world.calls() == []
    assert world.records() == {"c1"}


def test_a_folder_that_cannot_be_made(world: World) -> None:
    world.data.touch()
    world.call("ADD").failed(5, "File exists")
    world.call("DEL").succeeded()
    assert world.calls() == []


def test_a_full_disk_leaves_nothing(world: World) -> None:
    require_namespaces()
    with namespace.created("mnt") as place:
        namespace.mount("none", "/", flags=namespace.MS_REC | namespace.MS_PRIVATE)
        world.data.mkdir()
        namespace.mount("tmpfs", str(world.data), "tmpfs", 0, "size=4096,mode=0700")
        (world.data / "ballast").write_bytes(bytes(4096))
        world.call("ADD").failed(5, "No space left on device")
        assert world.records() == {"ballast"}
        (world.data / "ballast").unlink()
        world.call("ADD").succeeded()
        place.close()
    assert world.verbs() == [("bridge", "ADD")]


def test_a_limit_on_the_size_of_files_leaves_nothing(world: World) -> None:
    limited = ["prlimit", "--fsize=1", str(world.bin / "flannel")]
    done = subprocess.run(limited, input=json.dumps(world.network()), env=world.environment("ADD", {}),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 5)
    assert world.records() == set()
    assert world.calls() == []


# -- calls at once, and calls that are killed -------------------------------------------------------------------------


def waits_for_its_turn(call: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(OSError):
        return "nanosleep" in Path(f"/proc/{call.pid}/wchan").read_text()
    return False


def test_calls_for_one_container_wait_for_each_other_and_others_do_not(world: World) -> None:
    gate = world.root / "gate"
    world.has("bridge", "ADD", f'if test "$CNI_CONTAINERID" = c1; then {world.until(gate)} fi\n')
    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(world.call, "ADD")
        wait_until(lambda: world.records() == {"c1"}, "the first ADD is with the delegate")
        deleting = world.start("DEL")
        world.call("ADD", CONTAINERID="c2").succeeded()
        wait_until(lambda: waits_for_its_turn(deleting), "DEL waits")
        assert world.records() == {"c1", "c2"}
        gate.touch()
        adding.result().succeeded()
        with deleting:
            assert deleting.wait(30) == 0
    assert [(one.container, one.verb) for one in world.calls()] == [("c1", "ADD"), ("c2", "ADD"), ("c1", "DEL")]
    assert world.records() == {"c2"}


def test_what_a_delegate_leaves_running_holds_nobody_up(world: World) -> None:
    world.has("bridge", "ADD", f"({world.until(world.root / 'gate')}) >/dev/null 2>&1 &\n")
    world.call("ADD").succeeded()
    world.call("DEL").succeeded()  # else it would wait for a minute, and fail
    (world.root / "gate").touch()


def test_del_waits_for_the_delegate_of_an_add_that_was_killed(world: World) -> None:
    gate = world.root / "gate"
    world.has("bridge", "ADD", f"{world.until(gate)} echo made >>{world.root}/order\n")
    world.has("bridge", "DEL", f"echo removed >>{world.root}/order\n")
    with world.start("ADD") as adding:
        wait_until(lambda: world.records() == {"c1"} and (world.root / "calls").exists(), "the delegate is called")
        os.kill(adding.pid, signal.SIGKILL)
        with world.start("DEL") as deleting:
            assert adding.wait(30) == -signal.SIGKILL
            wait_until(lambda: waits_for_its_turn(deleting), "DEL waits")
            gate.touch()
            assert deleting.wait(30) == 0
    assert (world.root / "order").read_text() == "made\nremoved\n"
    assert world.records() == set()
