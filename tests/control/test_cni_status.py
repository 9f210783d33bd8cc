"""CHECK, STATUS and GC of the CNI plugin: what flannel's leaves undone."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from flannel_udp import control
from flannel_udp.errors import ControlError

from .cni_world import DUAL_ENV, RESULT, SUBNET_ENV, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def daemon(world: World) -> Iterator[list[str]]:
    """A daemon that is asked for its health; the list is what it says is missing."""
    missing: list[str] = []

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        if request != {"command": "health"}:
            raise ControlError(f"not asked for {request}")
        return {"missing": missing}

    with closing(control.serve(world.socket, answer)):
        yield missing


def checked(world: World, **changes: object) -> dict[str, Any]:
    """The configuration of CHECK after ADD."""
    return world.network(prevResult=world.call("ADD").succeeded(), **changes)


# -- CHECK ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
def test_check_has_the_delegate_look_at_what_add_gave(world: World) -> None:
    said = checked(world)
    (added,) = world.calls()
    done = world.call("CHECK", said)
    assert done.succeeded() == {}
    (called,) = world.calls()
    assert (called.verb, called.container, called.interface) == ("CHECK", "c1", "eth0")
    told = called.said.pop("prevResult")
    assert called.said == added.said
    # bridge looks for a route by its gateway, which the result leaves to the address's
    assert told == {**RESULT, "routes": [{"dst": "10.5.0.0/16", "gw": "10.5.52.1"}]}
    assert world.records() == {"c1"}


def test_check_leaves_named_gateways_and_other_families_alone(world: World) -> None:
    said = checked(world)
    said["prevResult"]["routes"] = [{"dst": "10.9.0.0/16", "gw": "10.5.52.3"}, {"dst": "fd00::/8"}]
    world.calls()
    world.call("CHECK", said).succeeded()
    routes = world.calls()[0].said["prevResult"]["routes"]
    assert [(route["dst"], route.get("gw")) for route in routes] == [("10.9.0.0/16", "10.5.52.3"), ("fd00::/8", None)]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_check_speaks_the_version_of_its_call(world: World, version: str) -> None:
    said = checked(world, cniVersion=version)
    world.calls()
    world.call("CHECK", said).succeeded()
    assert world.calls()[0].said["cniVersion"] == version


def test_check_passes_the_delegates_error_on(world: World) -> None:
    said = checked(world)
    world.fails("bridge", "CHECK", 77, "veth is gone")
    world.call("CHECK", said).failed(77, "plugin bridge: veth is gone")


def test_check_of_what_was_never_added_or_is_deleted(world: World) -> None:
    said = checked(world)
    world.call("CHECK", said, CONTAINERID="c2").failed(3, "eth0 of container c2 is not there")
    world.call("CHECK", said, IFNAME="net1").failed(3, "net1 of container c1 is not there")
    world.call("DEL").succeeded()
    world.call("CHECK", said).failed(3)


def test_check_of_a_damaged_record(world: World) -> None:
    said = checked(world)
    (world.data / "c1").write_text("{")
    world.call("CHECK", said).failed(6, "c1 is damaged")


def test_check_tells_that_the_daemon_is_not_ready(world: World, daemon: list[str]) -> None:
    said = checked(world)
    daemon.append("lease: 10.5.52.0-24 has expired")
    world.call("CHECK", said).failed(101, "daemon is not ready", "has expired")
    daemon.clear()
    world.call("CHECK", said).succeeded()


def test_check_tells_that_the_subnet_has_changed_and_add_takes_the_new_one(world: World) -> None:
    said = checked(world)
    world.env.write_text(SUBNET_ENV.replace("10.5.52", "10.5.99"))
    world.call("CHECK", said).failed(102, "10.5.52.0/24 is not this node's any more", "10.5.99.0/24")
    world.calls()
    world.call("ADD", CONTAINERID="c2").succeeded()
    assert world.calls()[0].said["ipam"]["ranges"] == [[{"subnet": "10.5.99.0/24"}]]
    world.env.write_text(DUAL_ENV)  # another family more is no fault of those that have one
    world.call("CHECK", said).succeeded()


def test_check_without_subnet_env(world: World) -> None:
    said = checked(world)
    world.env.unlink()
    world.call("CHECK", said).failed(11, "subnet.env is missing")


# -- STATUS -----------------------------------------------------------------------------------------------------------


def status(world: World, **changes: Any) -> Any:  # noqa: ANN401 - a Done
    return world.call("STATUS", CONTAINERID=None, NETNS=None, IFNAME=None, **changes)


def test_status_of_a_node_that_is_ready(world: World, daemon: list[str]) -> None:
    assert not daemon
    assert status(world).succeeded() == {}
    (called,) = world.calls()
    assert (called.plugin, called.verb) == ("bridge", "STATUS")
    assert called.said["ipam"]["ranges"] == [[{"subnet": "10.5.52.0/24"}]]
    assert not world.data.exists()


def test_status_without_a_daemon_of_ours_is_no_fault(world: World) -> None:
    assert status(world).succeeded() == {}


def test_status_when_the_daemon_is_not_ready(world: World, daemon: list[str]) -> None:
    daemon += ["registry: not heard for 61 s", "data path: no socket"]
    status(world).failed(51, "daemon is not ready", "registry: not heard for 61 s; data path: no socket")


def test_status_when_the_daemon_was_killed(world: World) -> None:
    with closing(control.serve(world.socket, lambda _: {})):
        kept = world.root / "kept.sock"
        kept.hardlink_to(world.socket)
    world.socket = kept  # as kill -9 leaves it
    status(world).failed(51, "left behind by one that was killed")


@pytest.mark.parametrize("answer", [{}, {"missing": "all"}])
def test_status_when_the_daemon_answers_nonsense(world: World, answer: dict[str, Any]) -> None:
    with closing(control.serve(world.socket, lambda _: answer)):
        status(world).failed(51, "makes no sense")


@pytest.mark.parametrize(("code", "told"), [(50, 50), (51, 51), (999, 50), (4, 50)])
def test_status_of_the_delegate_is_ours(world: World, code: int, told: int) -> None:
    world.fails("bridge", "STATUS", code, "no addresses left")
    status(world).failed(told, "plugin bridge: no addresses left")


def test_status_when_there_is_no_delegate(world: World) -> None:
    status(world, PATH="/nowhere").failed(50, "plugin bridge not found")
    status(world, PATH=None).succeeded()  # this verb may come without


# -- GC ---------------------------------------------------------------------------------------------------------------


def collect(world: World, *valid: str, **changes: object) -> Any:  # noqa: ANN401 - a Done
    attachments = [dict(zip(("containerID", "ifname"), one.split("@"), strict=True)) for one in valid]
    said = world.network(**{"cni.dev/valid-attachments": attachments, **changes})
    return world.call("GC", said, CONTAINERID=None, NETNS=None, IFNAME=None)


def test_gc_undoes_all_but_the_valid_and_passes_it_on(world: World) -> None:
    for container, interface in (("c1", "eth0"), ("c1", "net1"), ("c2", "eth0"), ("c3", "eth0")):
        world.call("ADD", CONTAINERID=container, IFNAME=interface).succeeded()
    added = world.calls()
    assert collect(world, "c1@net1", "c3@eth0").succeeded() == {}
    assert world.records() == {"c1@net1", "c3"}
    *deleted, bridge, ipam = world.calls()
    assert [(one.verb, one.container, one.interface, one.netns) for one in deleted] == [
        ("DEL", "c1", "eth0", ""), ("DEL", "c2", "eth0", "")]  # fmt: skip
    assert all(one.said == added[0].said for one in deleted)
    assert [(one.plugin, one.verb) for one in (bridge, ipam)] == [("bridge", "GC"), ("host-local", "GC")]
    for one in (bridge, ipam):
        assert one.said.pop("cni.dev/valid-attachments") == [
            {"containerID": "c1", "ifname": "net1"}, {"containerID": "c3", "ifname": "eth0"}]  # fmt: skip
        assert one.said == added[0].said


@pytest.mark.parametrize("none", [None, []])
def test_gc_of_all_leaves_no_file(world: World, none: list[object] | None) -> None:
    for container in ("c1", "c2"):
        world.call("ADD", CONTAINERID=container).succeeded()
    (world.data / ".c3.new").write_text("half")
    collect(world, **{"cni.dev/valid-attachments": none}).succeeded()
    assert list(world.data.iterdir()) == []


def test_gc_leaves_other_networks_alone(world: World) -> None:
    world.call("ADD", world.network(name="net2")).succeeded()
    world.call("ADD", CONTAINERID="c2").succeeded()
    collect(world).succeeded()
    assert world.records() == {"c1"}


def test_gc_of_flannels_files_and_of_damaged_ones(world: World) -> None:
    world.data.mkdir()
    for container in ("c1", "c2"):
        (world.data / container).write_text(json.dumps({"type": "bridge", "name": "net1", "ipam": {"type": "other"}}))
    (world.data / "c3").write_text("")
    collect(world, "c1@net7").succeeded()
    assert world.records() == {"c1"}
    assert [(one.verb, one.container, one.interface) for one in world.calls()][:2] == [
        ("DEL", "c2", "eth0"), ("DEL", "c3", "eth0")]  # fmt: skip


def test_gc_leaves_files_alone_that_are_no_records(world: World) -> None:
    world.data.mkdir()
    others = {"passwd": "root:x:0:0", "app.json": '{"name": "net1"}', "a b": "", "c1@": "", "list": "[]", "UPPER": "x"}
    for name, text in others.items():
        (world.data / name).write_text(text)
    collect(world).succeeded()
    assert world.records() == set(others)
    assert world.verbs() == [("bridge", "GC"), ("host-local", "GC")]


def test_gc_goes_on_after_a_file_that_cannot_be_read(world: World) -> None:
    for container in ("c1", "c2"):
        world.call("ADD", CONTAINERID=container).succeeded()
    (world.data / "c1").unlink()
    (world.data / "c1").symlink_to(world.data / "c1")  # a circle
    (world.data / "c0").symlink_to("/proc/self/mem")  # reading fails
    collect(world).failed(5, "c0")
    assert "c2" not in world.records()
    assert world.verbs()[-2:] == [("bridge", "GC"), ("host-local", "GC")]


def test_gc_goes_on_after_an_error_and_tells_it(world: World) -> None:
    for container in ("c1", "c2", "c3"):
        world.call("ADD", CONTAINERID=container).succeeded()
    world.has("bridge", "DEL", 'test "$CNI_CONTAINERID" != c2 || { echo \'{"code": 42, "msg": "busy"}\'; exit 1; }\n')
    world.fails("host-local", "GC", 43, "store is locked")
    done = collect(world)
    done.failed(42, "plugin bridge: busy", "plugin host-local: store is locked")
    assert world.records() == {"c2"}
    world.calls()
    world.has("bridge", "DEL", "")
    world.has("host-local", "GC", "")
    collect(world).succeeded()
    assert world.records() == set()


def test_gc_without_subnet_env_passes_on_what_was_delegated_last(world: World) -> None:
    world.call("ADD").succeeded()
    world.env.unlink()
    collect(world).succeeded()
    assert world.verbs() == [("bridge", "ADD"), ("bridge", "DEL"), ("bridge", "GC"), ("host-local", "GC")]
    collect(world).failed(11, "subnet.env is missing")  # now nothing tells what to pass on
