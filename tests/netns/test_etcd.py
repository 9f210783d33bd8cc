"""Daemons on several hosts, over an etcd that comes late, dies and comes back."""

import json
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from ..conftest import require_tun, wait_until
from ..interop.etcd_cluster import VERSIONS, b64, program
from .node_daemon import Daemon
from .topology import Node, Topology

CONFIG = '{"Network": "10.5.0.0/16"}'


def start_etcd(node: Node, folder: Path, version: str = "3.7") -> Popen[str]:
    """etcd where flannel looks for it, and on the node's address for the others."""
    with (folder / "etcd.log").open("a") as log:
        return node.start(program(version), "--data-dir", f"{folder}/etcd", "--listen-client-urls",
                          f"http://127.0.0.1:2379,http://{node.address}:2379", "--advertise-client-urls",
                          f"http://{node.address}:2379", "--listen-peer-urls", "http://127.0.0.1:2380", output=log)


def command(node: Node, *words: str) -> str:
    return node.run(sys.executable, "-P", "-m", "flannel_udp.cli", *words).stdout


def deletes(prefix: bytes) -> None:
    """Delete all below a prefix in one go, as `etcdctl del --prefix` does; inside of a node."""
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    body = json.dumps({"key": b64(prefix), "range_end": b64(end)}).encode()
    url = "http://127.0.0.1:2379/v3/kv/deleterange"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        assert int(json.loads(answer.read())["deleted"]) == 3  # two leases, and the configuration


def test_daemons_share_an_overlay_over_etcd(topology: Callable[..., Topology], tmp_path: Path) -> None:
    require_tun()
    one, two = topology(2).nodes
    place = "--etcd-endpoints", f"http://192.0.2.99:2379,http://{one.address}:2379"  # the first is nobody's
    here, there = Daemon(one, tmp_path), Daemon(two, tmp_path, "", "", *place)
    waiting = 'event="waiting for the network configuration"'
    for daemon in (here, there):
        wait_until(lambda daemon=daemon: waiting in daemon.log(), "it waits for etcd")  # type: ignore[misc]
    etcd = start_etcd(one, tmp_path)
    wait_until(lambda: "no network configuration yet" in here.log(), "it waits for the configuration")
    command(two, "config", "set", *place, CONFIG)
    for daemon in (here, there):
        wait_until(daemon.ready, "it is ready")
        daemon.node.add_pod(daemon.subnet())
    wait_until(lambda: here.status()["peers"] and there.status()["peers"], "they know each other")
    assert one.pods[0].ping(two.pods[0].address, count=2).returncode == 0
    leases = json.loads(command(one, "leases", "--json"))["leases"]
    assert {lease["subnet"] for lease in leases} == {str(here.subnet()), str(there.subnet())}
    assert here.log().count(waiting) <= 2  # once for each reason

    etcd.kill()
    etcd.wait()
    wait_until(lambda: "leases and peers stand as they are" in here.log(), "it is told")
    assert one.pods[0].ping(two.pods[0].address, count=2).returncode == 0
    start_etcd(one, tmp_path)
    wait_until(lambda: "the registry answers again" in here.log(), "it is told")
    command(two, "config", "set", *place, '{"Network": "10.6.0.0/16"}')
    wait_until(lambda: "the network configuration changed" in here.log(), "a change is heard of")
    assert one.pods[0].ping(two.pods[0].address).returncode == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_deleted_prefix_interrupts_no_route(topology: Callable[..., Topology], tmp_path: Path, version: str) -> None:
    """Leases and configuration go at one revision; both nodes take their subnets again, and no packet is lost."""
    require_tun()
    one, two = topology(2).nodes
    start_etcd(one, tmp_path, version)
    place = "--etcd-endpoints", f"http://{one.address}:2379"
    wait_until(lambda: one.run(sys.executable, "-P", "-m", "flannel_udp.cli", "config", "set", *place, CONFIG,
                               check=False).returncode == 0, "etcd takes the configuration")
    here, there = (Daemon(node, tmp_path, "", "", *place) for node in (one, two))
    for daemon in (here, there):
        wait_until(daemon.ready, "it is ready")
        daemon.node.add_pod(daemon.subnet())
    wait_until(lambda: here.status()["peers"] and there.status()["peers"], "they know each other")
    subnets = {str(here.subnet()), str(there.subnet())}
    with (tmp_path / "ping").open("w") as output:
        ping = one.pods[0].start("ping", "-n", "-i", "0.01", str(two.pods[0].address), output=output)
    wait_until(lambda: (tmp_path / "ping").read_text().count("ttl=") > 20, "it is answered")
    one.call(deletes, b"/coreos.com/network/")
    for daemon in (here, there):
        wait_until(lambda daemon=daemon: "lease is held as before" in daemon.log(), "it is taken again")  # type: ignore[misc]
        assert "the network configuration was deleted" in str(daemon.status()["warnings"])
    command(one, "config", "set", *place, CONFIG)
    leases = json.loads(command(two, "leases", "--json", *place))["leases"]
    assert {lease["subnet"] for lease in leases} == subnets
    wait_until(lambda: not here.status()["warnings"] + there.status()["warnings"], "the configuration is back")
    ping.send_signal(signal.SIGINT)
    ping.wait(10)
    assert " 0% packet loss" in (tmp_path / "ping").read_text()
    assert {str(here.subnet()), str(there.subnet())} == subnets
