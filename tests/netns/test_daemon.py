"""The daemon as a process on real nodes: packets, signals, kills, and what is left afterwards."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flannel_udp.options import default_threads
from flannel_udp.registry import open_registry

from ..conftest import require_bpf_asks_for_rights, require_steering, require_tun, wait_until
from .node_daemon import Daemon, flags
from .topology import Topology

MakeTopology = Callable[..., Topology]


@pytest.fixture
def registry(tmp_path: Path) -> str:
    url = f"sqlite://{tmp_path}/registry.db"
    with closing(open_registry(url)) as opened:
        opened.write_config('{"Network": "10.5.0.0/16"}')
    return url


@pytest.fixture
def cluster(topology: MakeTopology, tmp_path: Path, registry: str) -> Iterator[list[Daemon]]:
    """Two nodes with daemons and a pod each, peers of one another; the law of the counters holds at the end."""
    require_tun()
    daemons = [Daemon(node, tmp_path, registry) for node in topology(2).nodes]
    for daemon in daemons:
        wait_until(daemon.ready, "it is ready")
        daemon.node.add_pod(daemon.subnet())
    for daemon in daemons:
        wait_until(lambda daemon=daemon: daemon.status()["peers"], "it has a peer")  # type: ignore[misc]
    yield daemons
    for daemon in daemons:
        if daemon.process.poll() is None:
            wait_until(daemon.law_holds, "the counters' law holds, once no packet is on its way")


def reached(one: Daemon, other: Daemon) -> bool:
    """Whether pods reach each other; in test networks no answer means a second of waiting at most."""
    return one.node.pods[0].ping(other.node.pods[0].address, "-W", "1").returncode == 0


def test_pods_and_hosts_reach_each_other(cluster: list[Daemon]) -> None:
    one, two = cluster
    assert "ttl=60" in one.node.pods[0].ping(two.node.pods[0].address).stdout  # two kernels, two ends of the tunnel
    assert reached(two, one)
    assert one.node.ping(two.node.pods[0].address).returncode == 0
    assert one.node.ping(two.subnet().network_address).returncode == 0
    assert one.status()["peers"][0]["last_heard"] > time.time() - 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_within_a_second(cluster: list[Daemon], number: signal.Signals) -> None:
    one = cluster[0]
    before = time.monotonic()
    assert one.end(number) == 0
    assert time.monotonic() - before < 1
    assert one.left() == {"subnet.env", "state/subnet.env"}
    assert "flannel0" not in one.node.run("ip", "link").stdout
    assert "10.5.0.0/16" not in one.node.run("ip", "route").stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_restart_keeps_the_subnet_and_finds_nothing_in_its_way(cluster: list[Daemon], number: signal.Signals) -> None:
    one, two = cluster
    subnet = one.subnet()
    one.end(number)
    one.start()
    wait_until(one.ready, "it is ready again")
    assert one.subnet() == subnet
    wait_until(lambda: reached(two, one), "pods reach each other again")


def delete_device(daemon: Daemon) -> None:
    """Delete it, and wait until there is another."""
    index = daemon.status()["devices"][0]["index"]
    daemon.node.ip("link del flannel0")
    wait_until(lambda: {device["index"] for device in daemon.status()["devices"]} - {index}, "there is another")


def test_deleted_device_comes_back(cluster: list[Daemon]) -> None:
    one, two = cluster

    def descriptors() -> int:
        return len(list(Path(f"/proc/{one.process.pid}/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        delete_device(one)
    wait_until(lambda: descriptors() <= before, "no descriptor is left over; a connection may still be closing")
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")


@pytest.mark.parametrize("words", [
    "link set flannel0 down", "route del 10.5.0.0/16", "addr flush dev flannel0", "link set flannel0 mtu 9000"])
def test_what_others_took_from_the_device_is_put_back(cluster: list[Daemon], words: str) -> None:
    one, two = cluster

    def shown() -> tuple[object, ...]:
        told, = json.loads(one.node.run("ip", "-json", "address", "show", "dev", "flannel0").stdout)
        route = one.node.run("ip", "route", "show", "10.5.0.0/16").stdout
        return told["mtu"], "UP" in told["flags"], str([one["local"] for one in told["addr_info"]]), route

    before = shown()
    one.node.ip(words)
    wait_until(lambda: 'event="device set right again"' in one.log(), "it is put back")
    wait_until(lambda: shown() == before, "the device is as it was")
    assert reached(one, two)
    assert one.status()["warnings"] == []


def test_route_taken_by_another_is_said(cluster: list[Daemon]) -> None:
    one, two = cluster
    one.node.ip("route replace 10.5.0.0/16 dev eth0")
    wait_until(lambda: "10.5.0.0/16 is taken by eth0" in str(one.status()["warnings"]), "it is said")
    assert "10.5.0.0/16 is taken by eth0" in one.log()
    one.node.ip("route del 10.5.0.0/16 dev eth0")
    wait_until(lambda: reached(one, two) and not one.status()["warnings"], "it is put back")


def test_lease_deleted_by_hand_is_taken_again(cluster: list[Daemon], registry: str) -> None:
    one, two = cluster
    subnet = one.subnet()
    with closing(open_registry(registry)) as opened:
        entry, = (entry for entry in opened.snapshot().entries if entry.key == str(subnet).replace("/", "-"))
        opened.delete(entry.key, entry.revision)
        wait_until(lambda: any(new.key == entry.key and new.revision > entry.revision
                               for new in opened.snapshot().entries), "it is there again")
    assert one.subnet() == subnet
    wait_until(lambda: reached(two, one), "pods reach each other")
    assert "lease is held as before" in wait_until(one.log, "the log")


def test_lease_taken_by_another_moves_the_data_path(cluster: list[Daemon], registry: str) -> None:
    one, two = cluster
    subnet = one.subnet()
    with closing(open_registry(registry)) as opened:
        entry, = (entry for entry in opened.snapshot().entries if entry.key == str(subnet).replace("/", "-"))
        opened.update(entry.key, b'{"PublicIP":"192.0.2.99","PublicIPv6":null}', None, entry.revision)
    wait_until(lambda: one.subnet() != subnet, "subnet.env tells another")
    device, = one.status()["devices"]
    assert device["address"] == f"{one.subnet().network_address}/32"
    wait_until(lambda: str(subnet) in {peer["subnet"] for peer in one.status()["peers"]}, "the heir is a peer")
    assert two.node.ping(one.subnet().network_address).returncode == 0
    assert one.node.ping(two.node.pods[0].address).returncode == 0


def unrouted(daemon: Daemon) -> int:
    count: int = daemon.status()["counters"]["out"]["outcomes"]["no_route"]["count"]
    return count


def test_registry_made_anew_is_joined_again_without_a_lost_packet(
        cluster: list[Daemon], registry: str) -> None:
    one, two = cluster
    subnets = [daemon.subnet() for daemon in cluster]
    before = [unrouted(daemon) for daemon in cluster]
    file = Path(registry.removeprefix("sqlite://"))
    for ending in ("-wal", "-shm", ""):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    wait_until(lambda: all("the file was removed" in daemon.log() for daemon in cluster), "both have lost it")
    with closing(open_registry(registry)) as opened:
        opened.write_config('{"Network": "10.5.0.0/16"}')
        keys = sorted(str(subnet).replace("/", "-") for subnet in subnets)
        wait_until(lambda: reached(one, two) and [entry.key for entry in opened.snapshot().entries] == keys,
                   "both leases are there again, and pods reach each other meanwhile")
    for daemon in cluster:
        wait_until(lambda daemon=daemon: "lease is held as before" in daemon.log(), "the log")  # type: ignore[misc]
        assert "the registry is another one than before" in daemon.log()
        assert len(daemon.status()["peers"]) == 1
    assert [unrouted(daemon) for daemon in cluster] == before
    assert reached(one, two)
    assert reached(two, one)


def test_move_to_another_lease_interrupts_no_traffic_to_peers(
        topology: MakeTopology, tmp_path: Path, registry: str) -> None:
    """A ping each 10 ms from an address that does not move, answered past the tunnel: the way out alone is tried.

    The peer must not check sources: it hears of the node's new lease later than of the old one's end.
    """
    require_tun()
    one, two = (Daemon(node, tmp_path, registry, "", "--source-check=off") for node in topology(2).nodes)
    for daemon in (one, two):
        wait_until(daemon.ready, "it is ready")
    two.node.add_pod(two.subnet())
    wait_until(lambda: one.status()["peers"], "it has a peer")
    subnet = one.subnet()
    with (tmp_path / "ping").open("w") as output:
        ping = one.node.start("ping", "-n", "-i", "0.01", "-I", str(one.node.address), str(two.node.pods[0].address),
                              output=output)

    def received() -> int:
        return (tmp_path / "ping").read_text().count("ttl=")

    wait_until(lambda: received() > 20, "it is answered")
    with closing(open_registry(registry)) as opened:
        entry, = (entry for entry in opened.snapshot().entries if entry.key == str(subnet).replace("/", "-"))
        opened.update(entry.key, b'{"PublicIP":"192.0.2.99","PublicIPv6":null}', None, entry.revision)
    wait_until(lambda: one.subnet() != subnet, "it has another subnet")
    before = received()
    wait_until(lambda: received() > before + 20, "it is still answered")
    ping.send_signal(signal.SIGINT)
    ping.wait(10)
    assert " 0% packet loss" in (tmp_path / "ping").read_text()
    assert "data path broken" not in one.log()


@pytest.mark.parametrize("configured", [False, True], ids=["waiting", "at any moment"])
def test_sigterm_during_the_start_leaves_nothing(topology: MakeTopology, tmp_path: Path, configured: bool) -> None:
    require_tun()
    url = f"sqlite://{tmp_path}/registry.db"
    if configured:
        with closing(open_registry(url)) as opened:
            opened.write_config('{"Network": "10.5.0.0/16"}')
    node = topology(1).nodes[0]
    for number in range(8 if configured else 1):
        daemon = Daemon(node, tmp_path, url)
        if configured:
            time.sleep(0.08 * number)  # before its handlers, before its device, before it is ready, after
        else:
            wait_until(lambda: "waiting for the network configuration" in daemon.log(), "it waits")  # noqa: B023
        assert daemon.end(signal.SIGTERM) in ((0, -signal.SIGTERM) if configured else (0,)), daemon.log()
        assert "flannel0" not in node.run("ip", "link").stdout
        assert daemon.left() <= {"subnet.env", "state/subnet.env"}
        assert "Traceback" not in daemon.log()


def test_two_instances_on_one_host(cluster: list[Daemon], tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/other.db"
    with closing(open_registry(url)) as opened:
        opened.write_config('{"Network": "10.6.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}')
    others = [Daemon(daemon.node, tmp_path, url, f"{daemon.node.name}-b") for daemon in cluster]
    for other in others:
        wait_until(other.ready, "it is ready")
    assert others[0].status()["devices"][0]["name"] == "flannel1"
    wait_until(lambda: others[0].node.ping(others[1].subnet().network_address).returncode == 0, "packets pass")
    assert reached(*cluster)


def refused(cluster: list[Daemon], tmp_path: Path, registry: str, name: str, *options: str) -> str:
    """The one line of a daemon that must not start; it leaves nothing."""
    second = Daemon(cluster[0].node, tmp_path, registry, name, *options)
    assert second.process.wait(10) == 1
    line, = (line for line in second.log().splitlines() if "level=error" in line)
    assert second.left() <= {"subnet.env", "state/subnet.env"}
    links = json.loads(cluster[0].node.run("ip", "-json", "link").stdout)
    assert {link["ifname"] for link in links if link["ifname"].startswith("flannel")} == {"flannel0"}
    assert reached(*cluster)
    return line


def test_second_instance_says_what_is_in_its_way(cluster: list[Daemon], tmp_path: Path, registry: str) -> None:
    line = refused(cluster, tmp_path, registry, "b", "--run-dir", str(cluster[0].home / "run"))
    assert f"in use by another flannel-udp (process {cluster[0].process.pid})" in line
    assert "UDP port 8285 of 192.0.2.1 is in use" in refused(cluster, tmp_path, registry, "c")
    other = f"sqlite://{tmp_path}/other.db"
    with closing(open_registry(other)) as opened:
        opened.write_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}')
    assert "route 10.5.0.0/16 is taken by flannel0" in refused(cluster, tmp_path, other, "d")


def test_packets_from_addresses_of_ours_are_not_taken(cluster: list[Daemon]) -> None:
    one, two = cluster
    one.node.ip("link add extra type bridge", "addr add 203.0.113.5/32 dev extra")
    two.node.ip("link add extra type bridge", "link set extra up", "addr add 203.0.113.5/32 dev extra")
    wait_until(lambda: two.node.ping(one.node.pods[0].address, "-I", "203.0.113.5", "-W", "1").returncode and
               one.status()["counters"]["in"]["outcomes"]["own_source"]["count"], "such a packet is dropped")


def threads_of(daemon: Daemon) -> set[str]:
    """The names that `top -H` shows."""
    return {task.joinpath("comm").read_text().strip() for task in Path(f"/proc/{daemon.process.pid}/task").iterdir()}


def restart(daemon: Daemon, *options: str) -> None:
    """Start it anew with more options."""
    daemon.end(signal.SIGTERM)
    daemon.argv += options
    daemon.start()
    wait_until(daemon.ready, "it is ready again")


def test_status_tells_offloads_and_threads(cluster: list[Daemon]) -> None:
    one = cluster[0]
    assert [(line["state"], line["reason"]) for line in one.status()["offloads"]] == [("granted", "")] * 8
    loops = one.status()["loops"]
    assert loops == {"threads": default_threads(), "queues": 1, "cpus": "any", "busy_poll_us": 0}
    assert threads_of(one) >= ({"both_ways"} if loops["threads"] == 1 else {"tun_to_udp", "udp_to_tun"})


def test_nodes_of_different_options_understand_each_other(cluster: list[Daemon]) -> None:
    one, two = cluster
    cpu = min(os.sched_getaffinity(0))
    restart(one, "--threads=2", "--no-tun-offload", "--no-udp-segment", "--no-udp-gro")
    restart(two, "--threads=1", f"--cpus={cpu}", "--busy-poll=50")
    assert {line["state"] for line in one.status()["offloads"]} == {"off"}
    assert two.status()["loops"] == {"threads": 1, "queues": 1, "cpus": f"{cpu}", "busy_poll_us": 50}
    assert threads_of(one) >= {"tun_to_udp", "udp_to_tun"}
    assert "both_ways" in threads_of(two)
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")


def queues_of(daemon: Daemon) -> tuple[int, int, int]:
    """Queues of the device, queues asked for, queues that loops run for."""
    device, = daemon.status()["devices"]
    return device["queues"], device["queues_asked"], daemon.status()["loops"]["queues"]


def test_several_queues_under_a_daemon(cluster: list[Daemon], tmp_path: Path, registry: str) -> None:
    """They carry packets, are told of, come back with the device; another daemon is kept out; the end is quick."""
    require_steering()
    one, two = cluster
    for daemon in cluster:
        restart(daemon, "--queues=4", "--threads=1")
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")
    assert threads_of(one) >= {f"both_ways/{number}" for number in range(4)}
    delete_device(one)
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")
    assert queues_of(one) == (4, 4, 4)
    assert len(one.status()["queues"]) == 4
    assert one.status()["warnings"] == []
    assert "UDP port 8285 of 192.0.2.1 is in use" in refused(cluster, tmp_path, registry, "c", "--queues=4")
    before = time.monotonic()
    assert one.end(signal.SIGTERM) == 0
    assert time.monotonic() - before < 1


WITHOUT_BPF = ("setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin")


def test_queues_without_the_right_to_steer_are_one_and_that_is_said(cluster: list[Daemon]) -> None:
    require_bpf_asks_for_rights()
    one, two = cluster
    one.end(signal.SIGTERM)
    one.argv += ["--queues=4"]
    with (one.home / "log").open("a") as log:
        one.process = one.node.start(*WITHOUT_BPF, sys.executable, *one.argv, output=log)
    wait_until(one.ready, "it is ready again")
    line, = (line for line in one.log().splitlines() if "one queue" in line)
    assert "level=warning" in line
    assert "one queue instead of 4, or the kernel would reorder flows: the kernel does not take the steering" in line
    assert "--cap-add BPF" in line
    assert queues_of(one) == (1, 4, 1)
    assert "one queue instead of 4" in str(one.status()["warnings"])
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")


STUBBORN = """
import sys, time
from flannel_udp import daemon, options
from flannel_udp.subnet.leased import LeasedSubnetManager
LeasedSubnetManager.close = lambda self: time.sleep(60)
sys.exit(daemon.run(options.parse(sys.argv[1:])))
"""


def test_second_signal_ends_at_once(topology: MakeTopology, tmp_path: Path, registry: str) -> None:
    require_tun()
    node = topology(1).nodes[0]
    daemon = Daemon.__new__(Daemon)
    daemon.node, daemon.home = node, tmp_path / "node"
    daemon.home.mkdir()
    daemon.argv = ["-c", STUBBORN, *flags(daemon.home, registry)]
    daemon.start()
    wait_until(lambda: "event=ready" in daemon.log(), "it is ready")
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "event=stopping" in daemon.log(), "it is stopping")
    before = time.monotonic()
    assert daemon.end(signal.SIGTERM) == -signal.SIGTERM
    assert time.monotonic() - before < 1
    assert "flannel0" not in node.run("ip", "link").stdout
