"""flannel's own plugin as a peer: what one adds the other deletes; files and results are the same."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..netns.real_flannel import peer
from .cni_nodes import DUAL_STACK, CniNode, held, ready_daemons
from .cni_storm import debian, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..netns.node_daemon import Daemon
    from ..netns.topology import Place

OWNER = "flannel-udp/ifname"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node of a dual-stack network."""
    root = tmp_path_factory.mktemp("flannel")
    with ready_daemons(root, {**DUAL_STACK, "Backend": {"Type": "vxlan"}}, 1) as (daemon,):
        yield daemon


@pytest.fixture(params=[(reference, "0.4.0"), (reference, "0.3.1"), (debian, "0.4.0")],
                ids=["reference-0.4.0", "reference-0.3.1", "debian-0.4.0"])  # fmt: skip
def node(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[CniNode]:
    delegates: Callable[[], Path]
    delegates, version = request.param
    with closing(CniNode(daemon, delegates(), version)) as node:
        yield node


def theirs() -> Path:
    """flannel's plugin, of the last release of the plugins' repository that had it; it knows no 1.0.0 yet."""
    return Path(peer("flannel"))


def succeed(node: CniNode, verb: str, pod: Place, plugin: Path, container: str = "c1") -> str:
    done = node.call(verb, pod, plugin, container)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours adds", "flannel's adds"])
def test_what_one_adds_the_other_deletes(node: CniNode, ours_first: bool) -> None:
    adding, deleting = (node.plugin, theirs())[::1 if ours_first else -1]
    pod = node.add_pod()
    result = json.loads(succeed(node, "ADD", pod, adding))
    assert held(pod) == {ip["address"] for ip in result["ips"]}
    assert len(node.reserved()) == 2
    assert node.kept() == {"c1"}
    succeed(node, "DEL", pod, deleting)
    assert node.kept() == node.reserved() == node.links() == set()
    for plugin in (adding, deleting):  # and none of them minds that it is gone
        succeed(node, "DEL", pod, plugin)


def test_files_and_results_are_the_same(node: CniNode) -> None:
    results, files = [], []
    for plugin in (node.plugin, theirs()):
        pod = node.add_pod()
        result = json.loads(succeed(node, "ADD", pod, plugin))
        files.append(json.loads((node.records / "c1").read_text()))
        assert (node.records / "c1").stat().st_mode & 0o777 == 0o600
        succeed(node, "DEL", pod, plugin)
        results.append((result, pod.path))
    assert files[0].pop(OWNER) == "eth0"
    assert files[0] == files[1]
    ours, flannels = (normal(result, path) for result, path in results)
    assert ours == flannels


def normal(result: dict[str, Any], netns: str) -> dict[str, Any]:
    """A result less what is by lot: hardware addresses, the veth's name, the pod's namespace and its address."""
    interfaces = [{"name": one["name"].rstrip("0123456789abcdef"), "keys": sorted(one),
                   "in the pod": one.get("sandbox") == netns} for one in result["interfaces"]]  # fmt: skip
    ips = [{**ip, "address": ip["address"].partition("/")[2]} for ip in result["ips"]]
    return {**result, "interfaces": interfaces, "ips": ips}


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "flannel's first"])
def test_containers_of_both_stand_side_by_side(node: CniNode, ours_first: bool) -> None:
    plugins = (node.plugin, theirs())[::1 if ours_first else -1]
    pods = [node.add_pod(), node.add_pod()]
    for number, (plugin, pod) in enumerate(zip(plugins, pods, strict=True)):
        succeed(node, "ADD", pod, plugin, f"c{number}")
    assert len(node.reserved()) == 4
    assert pods[0].ping(sorted(held(pods[1]))[0].partition("/")[0]).returncode == 0
    for number, (plugin, pod) in enumerate(zip(reversed(plugins), pods, strict=True)):
        succeed(node, "DEL", pod, plugin, f"c{number}")
    assert node.kept() == node.reserved() == set()
