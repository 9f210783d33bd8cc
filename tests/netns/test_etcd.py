"""Daemons on several hosts, over an etcd that comes late, dies and comes back."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from ..conftest import require_tun, wait_until
from ..interop.etcd_cluster import program
from .node_daemon import Daemon
from .topology import Node, Topology

CONFIG = '{"Network": "10.5.0.0/16"}'


def start_etcd(node: Node, folder: Path) -> Popen[str]:
    """etcd where flannel looks for it, and on the node's address for the others."""
    with (folder / "etcd.log").open("a") as log:
        return node.start(program("3.7"), "--data-dir", f"{folder}/etcd", "--listen-client-urls",
                          f"http://127.0.0.1:2379,http://{node.address}:2379", "--advertise-client-urls",
                          f"http://{node.address}:2379", "--listen-peer-urls", "http://127.0.0.1:2380", output=log)


def command(node: Node, *words: str) -> str:
    return node.run(sys.executable, "-P", "-m", "flannel_udp.cli", *words).stdout


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
