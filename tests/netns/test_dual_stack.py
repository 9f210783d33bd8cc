"""Daemons that carry IPv6, beside IPv4 and alone: over a file and over a real etcd. Where not said, by udp."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.lease import parse_subnet_key, subnet_key
from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import SubnetEnv, read_subnet_env

from ..conftest import require_tun, wait_until
from ..interop.etcd_cluster import program
from .firewalled import OUTSIDE, OUTSIDE6, add_outside, require_firewalls, source_of
from .node_daemon import Daemon
from .real_flannel import URL, Flanneld, Keeper
from .topology import UNDERLAY6, Node, Pod, Topology
from .transfer import transfer

MakeTopology = Callable[..., Topology]
DUAL = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "udp"}}'
SIX = '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "udp"}}'
SIZE = 16 << 20
OTHER6 = UNDERLAY6[0x77]


def default_route(node: Node) -> None:
    """The one by which the external interface is found."""
    node.ip(f"route add default via {UNDERLAY6[254]} dev eth0")


def started(nodes: list[Node], root: Path, registry: str, *options: str) -> list[Daemon]:
    """Daemons that are ready."""
    for node in nodes:
        default_route(node)
    daemons = [Daemon(node, root, registry, "", *options) for node in nodes]
    for daemon in daemons:
        wait_until(daemon.ready, "it is ready")
    return daemons


def known(daemons: list[Daemon], families: int) -> None:
    """Wait until each has a peer of each family."""
    for daemon in daemons:
        wait_until(lambda daemon=daemon: len(daemon.status()["peers"]) == families, "it has its peers")  # type: ignore[misc]


def dual(topology: Topology, root: Path, registry: str, *options: str) -> list[Daemon]:
    """Two daemons that know each other, with a pod each of both families."""
    daemons = started(topology.nodes, root, registry, *options)
    for daemon in daemons:
        daemon.node.add_dual_pod(daemon.subnet(), daemon.ipv6_subnet())
    known(daemons, 2)
    return daemons


@pytest.fixture
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """That of a dual-stack network, of the backend that the test names."""
    require_tun()
    url = f"sqlite://{tmp_path}/registry.db"
    with closing(open_registry(url)) as opened:
        opened.write_config(DUAL.replace("udp", getattr(request, "param", "udp")))
    return url


@pytest.fixture
def pair(topology: MakeTopology, tmp_path: Path, registry: str) -> Iterator[list[Daemon]]:
    """At the end the law of the counters holds."""
    daemons = dual(topology(2), tmp_path, registry)
    yield daemons
    for daemon in daemons:
        wait_until(daemon.law_holds, "the counters' law holds")


def six(daemon: Daemon) -> tuple[Pod, IPv6Address]:
    pod = daemon.node.pods[0]
    assert pod.address6
    return pod, pod.address6


def reached6(one: Daemon, two: Daemon) -> bool:
    """Whether packets pass both ways."""
    return all(six(here)[0].ping(six(there)[1], "-W", "1").returncode == 0 for here, there in ((one, two), (two, one)))


def test_both_families_reach_everybody(pair: list[Daemon]) -> None:
    one, two = pair
    pod, _ = six(one)
    assert "ttl=60" in pod.ping(two.node.pods[0].address).stdout
    assert "ttl=60" in pod.ping(six(two)[1]).stdout  # two kernels, two ends of the tunnel
    assert reached6(one, two)
    assert one.node.ping(six(two)[1]).returncode == 0
    assert one.node.ping(two.ipv6_subnet().network_address).returncode == 0
    for address in (two.node.pods[0].address, six(two)[1]):
        transfer(pod, two.node.pods[0], address, SIZE)
    told = one.status()
    assert {device["name"]: device["mtu"] for device in told["devices"]} == {"flannel0": 1472, "flannel-v6-0": 1452}
    assert told["warnings"] == []
    assert {peer["underlay"] for peer in told["peers"]} == {str(two.node.address), str(two.node.address6)}
    assert {row["family"] for row in told["offloads"] if row["state"] == "granted"} == {"ipv4", "ipv6"}
    env = read_subnet_env(one.home / "subnet.env")
    assert env == SubnetEnv(env.network, one.subnet(), IPv6Network("fd00:5::/48"), one.ipv6_subnet(), 1452, False)
    assert one.end(signal.SIGTERM) == 0
    assert "flannel" not in one.node.run("ip", "link").stdout
    one.start()
    wait_until(one.ready, "it is ready again")
    wait_until(lambda: reached6(one, two), "pods reach each other again")
    assert read_subnet_env(one.home / "subnet.env") == env


def test_errors_of_ipv6_come_back_to_the_pod(pair: list[Daemon]) -> None:
    """No route, an ended hop limit, and a packet that does not fit: told by ICMPv6."""
    one, two = pair
    pod, _ = six(one)
    nowhere = pod.ping("fd00:5:0:ffff::2", "-W", "1")
    assert nowhere.returncode == 1
    assert re.search(f"From {one.ipv6_subnet().network_address} .*No route", nowhere.stdout), nowhere.stdout
    ended = pod.ping(six(two)[1], "-t", "2", "-W", "1").stdout  # the node's kernel takes one, the tunnel the other
    assert re.search(f"From {one.ipv6_subnet().network_address} .*Hop limit", ended), ended
    pod.ip("link set eth0 mtu 1500")
    one.node.ip("link set cni0 mtu 1500", "link set pod1 mtu 1500")
    assert "mtu=1452" in pod.ping(six(two)[1], "-M", "do", "-s", "1420", "-W", "1").stdout
    assert pod.ping(six(two)[1], "-M", "do", "-s", "1404").returncode == 0


def test_pods_are_masqueraded_in_both_families(topology: MakeTopology, tmp_path: Path, registry: str) -> None:
    require_firewalls()
    made = topology(2)
    one, two = dual(made, tmp_path, registry, "--ip-masq")
    outside = add_outside(made)
    pod, address = six(one)
    assert source_of(pod, outside, OUTSIDE) == one.node.address
    assert source_of(pod, outside, OUTSIDE6) == one.node.address6
    assert source_of(pod, six(two)[0], six(two)[1]) == address
    assert source_of(one.node, six(two)[0], six(two)[1], bind=one.node.address6) == one.ipv6_subnet().network_address


@pytest.mark.parametrize(("dad", "registry"), [(0, "udp"), (1, "udp"), (1, "vxlan")], indirect=["registry"])
def test_another_ipv6_address_of_the_interface(pair: list[Daemon], dad: int) -> None:
    """Usable at once, or only when it was probed for duplicates."""
    one, two = pair
    one.node.run("sysctl", "-qw", f"net.ipv6.conf.eth0.accept_dad={dad}")
    subnets, devices = (one.subnet(), one.ipv6_subnet()), one.status()["devices"]
    one.node.ip(f"addr del {one.node.address6}/64 dev eth0", f"addr add {OTHER6}/64 dev eth0")
    wait_until(lambda: str(OTHER6) in {peer["underlay"] for peer in two.status()["peers"]}, "the peer follows")
    wait_until(lambda: reached6(one, two), "ping goes on")
    assert one.node.pods[0].ping(two.node.pods[0].address).returncode == 0
    assert ((one.subnet(), one.ipv6_subnet()), one.status()["devices"]) == (subnets, devices)
    assert one.status()["warnings"] == []
    assert "data path broken" not in one.log()


def test_ipv6_addresses_that_went_with_the_link_are_used_again(pair: list[Daemon]) -> None:
    """A link that goes down loses them and keeps those of IPv4."""
    one, two = pair
    one.node.ip("link set eth0 down", "link set eth0 up")
    wait_until(lambda: f"{one.node.address6} is no longer on this host" in str(one.status()["warnings"]), "it is said")
    wait_until(lambda: one.node.ping(two.node.pods[0].address, "-W", "1").returncode == 0, "IPv4 goes on")
    one.node.ip(f"addr add {one.node.address6}/64 dev eth0 nodad")
    default_route(one.node)
    wait_until(lambda: reached6(one, two) and not one.status()["warnings"], "IPv6 goes on")
    assert "external interface changed" not in one.log()
    assert "data path broken" not in one.log()


def test_lease_taken_by_another_moves_both_families(pair: list[Daemon], registry: str) -> None:
    one, two = pair
    before = one.subnet(), one.ipv6_subnet()
    with closing(open_registry(registry)) as opened:
        entry, = (entry for entry in opened.snapshot().entries if entry.key == subnet_key(*before))
        heir = b'{"PublicIP":"192.0.2.99","PublicIPv6":"2001:db8::99"}'
        opened.update(entry.key, heir, None, entry.revision)
    wait_until(lambda: one.subnet() != before[0] and one.ipv6_subnet() != before[1], "subnet.env tells others")
    assert [device["address"] for device in one.status()["devices"]] == [
        f"{one.subnet()[0]}/32", f"{one.ipv6_subnet()[0]}/128"]
    assert {str(subnet) for subnet in before} < {peer["subnet"] for peer in one.status()["peers"]}
    for subnet in (one.subnet(), one.ipv6_subnet()):
        wait_until(lambda subnet=subnet: two.node.ping(subnet[0], "-W", "1").returncode == 0, "it is reached")  # type: ignore[misc]
    assert "data path broken" not in one.log()


def test_a_deleted_device_of_one_family_comes_back(pair: list[Daemon]) -> None:
    one, two = pair
    one.node.ip("link del flannel-v6-0")
    wait_until(lambda: 'event="data path mended" device=flannel-v6-0' in one.log(), "it is made again")
    wait_until(lambda: reached6(one, two), "pods reach each other again")
    answered = two.node.ping(one.ipv6_subnet()[0])  # the bridge has the same address, as anycast (RFC 4291, 2.6.1)
    assert answered.returncode == 0
    assert "DIFFERENT" not in answered.stdout
    assert "family=IPv4" not in one.log()


def start_etcd(node: Node, folder: Path, address: IPv4Address | IPv6Address) -> str:
    """etcd on this address of the node; its endpoint."""
    endpoint = f"http://[{address}]:2379" if address.version == 6 else f"http://{address}:2379"
    with (folder / "etcd.log").open("a") as log:
        node.start(program("3.7"), "--data-dir", f"{folder}/etcd", "--listen-client-urls", endpoint,
                   "--advertise-client-urls", endpoint, "--listen-peer-urls", "http://127.0.0.1:2380", output=log)
    return endpoint


def command(node: Node, *words: str) -> str:
    done = node.run(sys.executable, "-P", "-m", "flannel_udp.cli", *words, check=False)
    return done.stdout if done.returncode == 0 else ""


def test_dual_stack_over_etcd(topology: MakeTopology, tmp_path: Path) -> None:
    require_tun()
    nodes = topology(2).nodes
    place = "--etcd-endpoints", start_etcd(nodes[0], tmp_path, nodes[0].address)
    wait_until(lambda: command(nodes[0], "config", "set", *place, DUAL), "etcd takes the configuration")
    one, two = started(nodes, tmp_path, "", *place)
    for daemon in (one, two):
        daemon.node.add_dual_pod(daemon.subnet(), daemon.ipv6_subnet())
    known([one, two], 2)
    assert reached6(one, two)
    assert one.node.pods[0].ping(two.node.pods[0].address).returncode == 0
    leases = json.loads(command(two.node, "leases", "--json", *place))["leases"]
    assert {(lease["subnet"], lease["ipv6_subnet"], lease["public_ip"], lease["public_ipv6"]) for lease in leases} == {
        (str(daemon.subnet()), str(daemon.ipv6_subnet()), str(daemon.node.address), str(daemon.node.address6))
        for daemon in (one, two)}


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_hosts_that_have_ipv6_alone_over_etcd(topology: MakeTopology, tmp_path: Path, backend: str) -> None:
    """Each takes a lease of its own, which flannel's nodes cannot, and the same again after a restart."""
    require_tun()
    nodes = topology(2).nodes
    for node in nodes:
        node.ip(f"addr del {node.address}/24 dev eth0")
    place = "--etcd-endpoints", start_etcd(nodes[0], tmp_path, nodes[0].address6)
    config = SIX.replace("udp", backend)
    wait_until(lambda: command(nodes[0], "config", "set", *place, config), "etcd takes the configuration")
    one, two = started(nodes, tmp_path, "", *place)
    subnets = [daemon.ipv6_subnet() for daemon in (one, two)]
    assert subnets[0] != subnets[1]
    for daemon in (one, two):
        daemon.node.add_pod(daemon.ipv6_subnet(), 1430)
    known([one, two], 1)
    here, there = (daemon.node.pods[0] for daemon in (one, two))
    assert here.ping(there.address).returncode == 0
    transfer(here, there, there.address, SIZE)
    one.end(signal.SIGTERM)
    (one.home / "subnet.env").unlink()
    (one.home / "state" / "subnet.env").unlink()  # so that the address alone says whose lease it is
    one.start()
    wait_until(one.ready, "it is ready again")
    assert one.ipv6_subnet() == subnets[0]
    wait_until(lambda: there.ping(here.address, "-W", "1").returncode == 0, "packets pass again")
    assert "FLANNEL_SUBNET" not in (one.home / "subnet.env").read_text()
    assert {lease["public_ipv6"] for lease in json.loads(command(two.node, "leases", "--json", *place))["leases"]} == {
        str(node.address6) for node in nodes}
    for daemon in (one, two):
        wait_until(daemon.law_holds, "the counters' law holds")


def test_a_node_of_flannels_keeps_to_ipv4_and_leaves_the_rest_alone(topology: MakeTopology, tmp_path: Path) -> None:
    """flannel's udp backend leases an IPv6 subnet and tells no address for it."""
    require_tun()
    made = topology(3)
    Keeper(made, tmp_path).configure(json.loads(DUAL))
    flannel = Flanneld(made.nodes[0], tmp_path, dual=True)
    one, two = ours = started(made.nodes[1:], tmp_path, "", "--etcd-endpoints", URL)
    known(ours, 3)  # flannel's subnet, and both of the other one
    for daemon in ours:
        skipped, = daemon.status()["skipped_peers"]
        assert skipped["lease"].startswith(f"{flannel.subnet()}&".replace("/", "-"))
        assert skipped["reason"] == "tells no PublicIPv6"
        assert daemon.status()["warnings"] == []
        wait_until(lambda daemon=daemon: daemon.node.ping(flannel.subnet()[0], "-W", "1").returncode == 0,  # type: ignore[misc]
                   "ours reach flannel's node")
        assert flannel.node.ping(daemon.subnet()[0]).returncode == 0
    assert one.node.ping(two.ipv6_subnet().network_address).returncode == 0
    theirs, = parse_subnet_key(one.status()["skipped_peers"][0]["lease"])[1:]
    assert theirs
    assert re.search(f"From {one.ipv6_subnet()[0]} .*No route", one.node.ping(theirs[0], "-W", "1").stdout)


def test_hosts_where_new_devices_have_no_ipv6(topology: MakeTopology, tmp_path: Path, registry: str) -> None:
    """As in containers whose own network has none: it is switched on for the device, and for it alone."""
    made = topology(2)
    for node in made.nodes:
        node.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    one, two = started(made.nodes, tmp_path, registry)
    known([one, two], 2)
    assert one.node.ping(two.ipv6_subnet().network_address).returncode == 0
    assert one.node.run("cat", "/proc/sys/net/ipv6/conf/flannel0/disable_ipv6").stdout == "1\n"
