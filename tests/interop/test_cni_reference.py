"""The CNI plugin among the reference plugins, called by cnitool: pods of two nodes talk through our daemons."""

from __future__ import annotations

import contextlib
import json
import socket
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from flannel_udp.cni.install import conflist

from ..netns.real_flannel import peer
from ..netns.transfer import transfer
from .cni_nodes import DUAL_STACK, CniNode, addresses, held, ready_daemons
from .cni_storm import debian, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..netns.node_daemon import Daemon
    from ..netns.topology import Place

CONFIGS: dict[str, dict[str, object]] = {
    "ipv4": {"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}},
    "dual": {**DUAL_STACK, "Backend": {"Type": "vxlan"}},
}
VERSIONS = [*((reference, version) for version in ("1.1.0", "1.0.0", "0.4.0", "0.3.1")),
            *((debian, version) for version in ("1.0.0", "0.4.0", "0.3.1"))]
SIZE = 4 << 20


@pytest.fixture(scope="module", params=list(CONFIGS))
def daemons(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Two nodes whose daemons know each other."""
    root = tmp_path_factory.mktemp(request.param)
    with ready_daemons(root, CONFIGS[request.param], 2, "--ip-masq") as daemons:
        yield daemons


@pytest.fixture(params=VERSIONS, ids=lambda one: f"{one[0].__name__}-{one[1]}")
def nodes(request: pytest.FixtureRequest, daemons: list[Daemon]) -> Iterator[list[CniNode]]:
    """The same as a runtime sees them, with plugins of one origin and a version of the specification."""
    delegates, version = request.param
    with contextlib.ExitStack() as stack:
        made = [CniNode(daemon, delegates(), version) for daemon in daemons]
        for node in made:
            stack.callback(node.close)
        peer("cnitool")
        yield made


def test_pods_of_two_nodes_are_plugged_in_talk_and_leave_nothing(nodes: list[CniNode]) -> None:
    pods = [node.add_pod() for node in nodes]
    results = [node.add(pod) for node, pod in zip(nodes, pods, strict=True)]
    for node, pod, result in zip(nodes, pods, results, strict=True):
        assert result["cniVersion"] == node.version
        assert held(pod) == {ip["address"] for ip in result["ips"]}  # the kernel's word
        assert node.reserved() == set(addresses(result))  # host-local's
        assert len(node.kept()) == len(node.links()) == 1
    talk(pods, results)
    for node, pod in zip(nodes, pods, strict=True):
        checks(node, pod)
    for node, pod in zip(nodes, pods, strict=True):
        for _ in range(2):
            done = node.cnitool("del", pod)
            assert done.returncode == 0, done.stdout + done.stderr
        assert node.kept() == node.links() == node.reserved() == set()


def talk(pods: list[Place], results: list[dict[str, object]]) -> None:
    """By each address, from either to the other; and a transfer."""
    for here, there in ((0, 1), (1, 0)):
        for address in addresses(results[there]):
            pinged = pods[here].ping(address)
            assert pinged.returncode == 0, pinged.stdout
    for address in addresses(results[1]):
        transfer(pods[0], pods[1], ip_address(address), SIZE)


def checks(node: CniNode, pod: Place) -> None:
    """CHECK, where the version has it, finds the pod well, and tells when it is not."""
    if node.version == "0.3.1":
        return
    found = node.cnitool("check", pod)
    assert found.returncode == 0, found.stdout + found.stderr
    pod.ip("addr flush dev eth0")
    missed = node.cnitool("check", pod)
    assert missed.returncode != 0
    assert "plugin bridge" in missed.stdout + missed.stderr


def test_a_port_of_the_node_leads_to_the_pod(nodes: list[CniNode]) -> None:
    one, two = nodes
    pod = one.add_pod()
    result = one.add(pod, [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    fetched = serve_and_fetch(pod, two, str(one.node.address), addresses(result)[0])
    assert fetched == b"from the pod"
    assert one.cnitool("del", pod, [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]).returncode == 0


def serve_and_fetch(pod: Place, other: CniNode, node_address: str, pod_address: str) -> bytes:
    """What comes from port 80 of the pod to the other node, which asks for port 8080 of the pod's node."""
    with pod.entered():
        listener = socket.create_server((pod_address, 80))
    with listener:
        with other.node.entered():
            client = socket.create_connection((node_address, 8080), timeout=20)
        with client:
            listener.settimeout(20)
            server, _ = listener.accept()
            with server:
                server.sendall(b"from the pod")
            return client.recv(100)


@pytest.mark.parametrize("daemons", ["dual"], indirect=True)
def test_status_and_gc_reach_the_plugins(daemons: list[Daemon]) -> None:
    node = CniNode(daemons[0], reference(), "1.1.0")
    with contextlib.closing(node):
        pod = node.add_pod()
        assert node.cnitool("status", pod).returncode == 0
        node.add(pod)
        assert len(node.reserved()) == 2
        done = node.cnitool("gc", pod)  # cnitool takes every attachment for a gone one
        assert done.returncode == 0, done.stdout + done.stderr
        assert node.reserved() == set()
        assert not list(node.records.iterdir())
        env = daemons[0].home / "subnet.env"
        env.rename(env.with_name("away"))
        missed = node.cnitool("status", pod)
        env.with_name("away").rename(env)
        assert missed.returncode != 0
        assert "subnet.env is missing" in missed.stdout + missed.stderr


@pytest.mark.parametrize("daemons", ["dual"], indirect=True)
@pytest.mark.parametrize("delegates", [reference, debian])
def test_when_the_subnet_changes_new_pods_get_new_addresses_and_old_ones_keep_theirs(
    daemons: list[Daemon], delegates: Callable[[], Path]
) -> None:
    with contextlib.closing(CniNode(daemons[0], delegates(), "1.0.0")) as node:
        env = node.folder / "subnet.env"
        node.network |= {"subnetFile": str(env), "delegate": usual_delegate()}
        old, new = node.add_pod(), node.add_pod()
        kept = plugged(node, env, "10.5.1.1/24", old, "old")
        assert ip_address(kept) in ip_network("10.5.1.0/24")
        assert ip_address(plugged(node, env, "10.5.2.1/24", new, "new")) in ip_network("10.5.2.0/24")
        assert kept in {address.partition("/")[0] for address in held(old)}
        assert len(node.reserved()) == 2
        for container, pod in (("old", old), ("new", new)):
            assert node.call("DEL", pod, node.plugin, container).returncode == 0
        assert node.reserved() == node.kept() == node.links() == set()


def usual_delegate() -> object:
    """That of the network which `cni install` writes."""
    plugins = conflist()["plugins"]
    assert isinstance(plugins, list)
    return plugins[0]["delegate"]


def plugged(node: CniNode, env: Path, subnet: str, pod: Place, container: str) -> str:
    """Plug a pod in while the node has this subnet; its address."""
    env.write_text(f"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    done = node.call("ADD", pod, node.plugin, container)
    assert done.returncode == 0, done.stdout
    return addresses(json.loads(done.stdout))[0]
