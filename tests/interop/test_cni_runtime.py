"""A container runtime as Debian has it, podman, plugs its containers in through our plugin, on two nodes."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..conftest import require_commands, wait_until
from .cni_nodes import DUAL_STACK, NETWORK, CniNode, ready_daemons
from .cni_storm import debian
from .podman import Podman

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..netns.topology import Place

PYTHON = str(Path(sys.executable).resolve())
PORT, OUTSIDE_PORT = 80, 8080
SERVE = """import socket, sys
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    client, _ = server.accept()
    with client:
        client.sendall(f"from {sys.argv[1]}".encode())
"""
FETCH = """import socket, sys
print(socket.create_connection((sys.argv[1], 80), timeout=10).recv(100).decode())
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Podman]]:
    """podman on two nodes whose daemons know each other."""
    require_commands("podman", "crun", "nsenter", package="podman, crun, util-linux")
    root = tmp_path_factory.mktemp("podman")
    with ready_daemons(root, {**DUAL_STACK, "Backend": {"Type": "udp"}}, 2, "--ip-masq") as daemons:
        yield [Podman(CniNode(daemon, debian(), "1.0.0"), NETWORK) for daemon in daemons]


@pytest.fixture
def pair(machines: list[Podman]) -> Iterator[list[Podman]]:
    """Each has a container that serves, named after the node; at the end nothing is left of any."""
    for machine in machines:
        name = machine.node.node.name
        ports = ["--publish", f"{OUTSIDE_PORT}:{PORT}"]
        machine.run(name, *ports, command=[PYTHON, "-IS", "-c", SERVE, name])
    yield machines
    for machine in machines:
        machine("rm", "--all", "--force", "--time", "0")
    for machine in machines:
        assert machine.node.kept() == machine.node.reserved() == machine.node.links() == set()


def fetch(machine: Podman, name: str, address: str) -> str:
    """What a container gets from the port of another, as soon as that serves."""

    def fetched() -> str:
        return machine("exec", name, PYTHON, "-IS", "-c", FETCH, address, check=False).stdout.strip()

    return wait_until(lambda: (said := fetched()).startswith("from ") and said, "the container serves") or ""


def fetch_from_outside(place: Place, address: str) -> bytes:
    """What comes from the published port of a node, asked for at another node."""
    with place.entered(), socket.create_connection((address, OUTSIDE_PORT), timeout=10) as client:
        return client.recv(100)


def test_containers_of_two_nodes_reach_each_other(pair: list[Podman]) -> None:
    one, two = pair
    addresses = {machine.node.node.name: machine.addresses(machine.node.node.name) for machine in pair}
    for here, there in ((one, "node2"), (two, "node1")):
        assert len(addresses[there]) == 2
        for address in addresses[there]:
            assert fetch(here, here.node.node.name, address) == f"from {there}"
            pinged = here("exec", here.node.node.name, "ping", "-n", "-c", "1", "-W", "5", address, check=False)
            assert pinged.returncode == 0, pinged.stdout
    for machine in pair:  # by podman's word, and by host-local's
        assert machine.node.reserved() == set(addresses[machine.node.node.name])
        assert machine.node.kept() == {machine.inspect(machine.node.node.name)["Id"]}


def test_a_published_port_of_the_node_leads_to_the_container(pair: list[Podman]) -> None:
    one, two = pair
    fetch(two, "node2", one.addresses("node1")[0])
    assert fetch_from_outside(two.node.node, str(one.node.node.address)) == b"from node1"


def test_a_container_is_reached_again_after_a_restart(pair: list[Podman]) -> None:
    one, two = pair
    one("restart", "--time", "0", "node1")
    addresses = one.addresses("node1")
    for address in addresses:
        assert fetch(two, "node2", address) == "from node1"
    assert one.node.reserved() == set(addresses)
    assert len(one.node.links()) == 1
    assert fetch_from_outside(two.node.node, str(one.node.node.address)) == b"from node1"


def test_what_a_container_had_is_free_when_it_ends_by_itself_and_given_when_it_starts(pair: list[Podman]) -> None:
    one, two = pair
    one("kill", "--signal", "KILL", "node1")
    wait_until(lambda: not one.node.kept(), "podman has called DEL")
    assert one.node.reserved() == one.node.links() == set()
    one("start", "node1")
    assert fetch(two, "node2", one.addresses("node1")[0]) == "from node1"
