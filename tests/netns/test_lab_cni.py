"""The lab whose pods are plugged in by the CNI plugin: the same lab, by another hand."""

import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from flannel_udp.errors import LabError
from flannel_udp.lab import plug
from flannel_udp.lab.client import Lab

from ..conftest import require
from .labs import COMMAND, as_user, lab, named_lab, run_at, up

STORES = [Path("/var/lib/cni"), Path("/run/cni"), Path("/run/netns")]  # the machine's own


def require_plugins() -> None:
    """Require the plugins that ours delegates to."""
    try:
        plug.folders()
    except LabError as error:
        require(False, str(error))


@pytest.fixture(scope="module")
def plugged() -> Iterator[str]:
    """The name of a lab of two nodes with both families, its pods plugged in by the plugin."""
    require_plugins()
    with named_lab() as name:
        up(name, "--cni", "--dual-stack")
        yield name


def test_pods_have_addresses_of_their_nodes_leases_and_reach_each_other(plugged: str) -> None:
    first, second = Lab(plugged).status()["nodes"]
    for subnet, pod in (("subnet", "pod"), ("ipv6_subnet", "ipv6_pod")):
        for state in (first, second):
            assert ip_interface(state[pod]).ip in ip_network(state[subnet])
        pinged = run_at(plugged, "node1 --pod", "ping", "-n", "-c", "1", "-W", "5", second[pod])
        assert pinged.returncode == 0, pinged.stdout


def test_the_kernel_agrees_with_the_result(plugged: str) -> None:
    result = json.loads(run_at(plugged, "1", "cat", "/run/cni/result.json").stdout)
    links = json.loads(run_at(plugged, "1 --pod", "ip", "-j", "address").stdout)
    (eth0,) = [link for link in links if link["ifname"] == "eth0"]
    held = {f"{one['local']}/{one['prefixlen']}" for one in eth0["addr_info"] if one["scope"] == "global"}
    assert held == {ip["address"] for ip in result["ips"]}
    (made,) = [one for one in result["interfaces"] if one.get("sandbox") == "/run/netns/pod"]
    assert (made["name"], made["mac"]) == ("eth0", eth0["address"])
    routes = json.loads(run_at(plugged, "1 --pod", "ip", "-j", "route").stdout)
    assert {"10.5.0.0/16", "default"} <= {route["dst"] for route in routes}


def test_a_runtime_can_unplug_the_pod_and_plug_it_in_again(plugged: str) -> None:
    script = """set -e
    export CNI_CONTAINERID=node2-pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin:/usr/lib/cni
    CNI_COMMAND=DEL /run/cni/bin/flannel </run/cni/network.json
    ls /run/cni/flannel /run/cni/networks/node2; if ip netns exec pod ip link show eth0; then exit 1; fi
    CNI_COMMAND=ADD /run/cni/bin/flannel </run/cni/network.json >/run/cni/result.json
    ip netns exec pod ip address show eth0 >&2"""
    done = run_at(plugged, "2", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node2-pod" not in done.stdout
    assert "10.5." not in done.stdout  # no address was left
    assert "inet 10.5." in done.stderr


def test_nothing_of_it_is_on_the_machine(plugged: str) -> None:
    assert run_at(plugged, "1", "ls", "/run/cni/flannel").stdout == "node1-pod\n"
    assert not [found for path in STORES for found in path.rglob("node1*")]


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_the_demo_tells_how_it_was_called(user: str) -> None:
    require_plugins()
    done = lab("demo", "--cni", prefix=as_user(user))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    for expected in ("CNI_COMMAND=ADD", '"type": "bridge"', "of the subnet that node1 leased", "CHECK finds the pod"):
        assert expected in done.stdout


def test_without_plugins_it_says_what_to_install(tmp_path: Path) -> None:
    command = [*COMMAND, "up", "--cni", "--name", "never"]
    env = {**os.environ, "CNI_PATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "needs the CNI plugins bridge and host-local" in done.stderr
    assert "apt-get install containernetworking-plugins" in done.stderr
