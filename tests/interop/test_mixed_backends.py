"""A mixed cluster by the backends vxlan and host-gw: to flannel's kernels our nodes are as their own.

Each kind of cluster has two nodes of flannel's own packages and two of ours, and every ordered pair of their pods
exchanges all sorts of packets. With DirectRouting one of either sort sits behind a router, so that each has a peer of
either sort on its link and beyond it.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flannel_udp._dataplane import VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6

from ..conftest import wait_until
from ..netns.ethtool import offloads_off
from ..netns.node_daemon import Daemon
from ..netns.transfer import bad_checksums, conversation, datagrams, transfer
from .mixed import FAR_MTU, Agent, Mixed, add_pod, mixed_cluster, narrow_ipv6, subnets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from ..netns.topology import Node, Place, Pod
    from .mixed import Network

    Container = tuple[Pod, list[IPv4Address | IPv6Address]]

_IPV4 = {"Network": "10.5.0.0/16"}
_BOTH = {**_IPV4, "EnableIPv6": True, "IPv6Network": "fd05::/48"}
_VXLAN: dict[str, Any] = {"Backend": {"Type": "vxlan"}}
_DIRECT: dict[str, Any] = {"Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": True}}
_HOST_GW: dict[str, Any] = {"Backend": {"Type": "host-gw"}}
_KINDS = {"vxlan": {**_IPV4, **_VXLAN}, "vxlan-dual": {**_BOTH, **_VXLAN}, "direct-dual": {**_BOTH, **_DIRECT},
          "host-gw-dual": {**_BOTH, **_HOST_GW}}
_LINK_MTU = 1500
_TUNNEL_MTU = {4: _LINK_MTU - VXLAN_OVERHEAD_V4, 6: _LINK_MTU - VXLAN_OVERHEAD_V6}
_ICMP = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and ICMP headers before what ping sends."""
_PASSED = {"sent", "delivered", "neighbour_told"}


@pytest.fixture
def mixed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mixed]:
    kind: str = request.param
    with mixed_cluster(tmp_path, _KINDS[kind], far="direct" in kind, end=int("host-gw" in kind)) as made:
        yield made


every_kind = pytest.mark.parametrize("mixed", list(_KINDS), indirect=True)


def containers(mixed: Mixed) -> list[Container]:
    """A pod of each node, with the link's MTU and not the tunnel's: they have to discover that."""
    made = [add_pod(agent, _LINK_MTU) for agent in mixed.agents]
    mixed.await_all()
    return made


def tunnelled(one: Agent, two: Agent) -> bool:
    """Whether packets to a node go through the tunnel, by its kernel's own routes."""
    route = one.node.run("ip", "route", "get", f"{subnets(two)[0][2]}").stdout
    assert ("dev eth0" in route) != ("dev flannel" in route), route
    return "dev flannel" in route


def exchange(one: Container, two: Container, size: int, mtus: dict[int, int]) -> None:
    """All sorts of packets between two pods, by each family."""
    client, server = one[0], two[0]
    for address in two[1]:
        longest = mtus[address.version] - _ICMP[address.version]
        assert client.ping(address, "-M", "do", "-s", f"{longest}").returncode == 0, f"{client.name} to {address}"
        transfer(client, server, address, size)
        datagrams(client, server, address, [*range(1, 1401, 100), 9000])
        datagrams(client, server, address, [1200] * 2, segment=1200)
        datagrams(client, server, address, [1200] * 20 + [7], segment=1200)


def discover(one: Container, two: Container, mtus: dict[int, int]) -> None:
    """Have a pod learn what the path to another carries."""
    for address in two[1]:
        mtu = mtus[address.version]
        told = one[0].ping(address, "-M", "do", "-s", f"{mtu + 1 - _ICMP[address.version]}").stdout
        assert re.search(rf"mtu ?[=:] ?{mtu}\b", told), f"{one[0].name} to {address}: {told}"


def exchange_all(mixed: Mixed, pods: list[Container]) -> None:
    """With the links' offloads, and without."""
    mtus = {(one.node, two.node): _TUNNEL_MTU if tunnelled(one, two) else {4: _LINK_MTU, 6: _LINK_MTU}
            for one, two in permutations(mixed.agents, 2)}
    pairs = [(client, server, mtus[one.node, two.node])
             for (one, client), (two, server) in permutations(zip(mixed.agents, pods, strict=True), 2)]
    for client, server, mtu in pairs:
        if mtu is _TUNNEL_MTU:
            discover(client, server, mtu)
        exchange(client, server, 16 << 20, mtu)
    for agent in mixed.agents:
        agent.node.call(offloads_off, "eth0")
    for client, server, mtu in pairs:
        exchange(client, server, 1 << 20, mtu)


@every_kind
def test_all_pairs_of_pods_exchange_everything(mixed: Mixed) -> None:
    pods = containers(mixed)
    devices = mixed.agents[3].node.run("ip", "-details", "link").stdout
    assert ("flannel" in devices) == ("type tap" in devices), "in each cluster with tunnels there is one by a TAP"
    exchange_all(mixed, pods)
    for router in mixed.topology.others:
        assert was_narrow(router, "IpFragCreates")
    assert_all_is_accounted_for(mixed, pods)


def assert_all_is_accounted_for(mixed: Mixed, pods: list[Container]) -> None:
    """No kernel found a wrong checksum or refused what came out of a tunnel; our counters know of every packet."""
    places = [*(agent.node for agent in mixed.agents), *(pod for pod, _ in pods)]
    assert {place.name: count for place in places if (count := bad_checksums(place))} == {}
    for agent in mixed.agents:
        assert refused(agent) == {}


def refused(agent: Agent) -> dict[str, int]:
    """What a node did not take: of ours by its counters, whose law holds; of theirs by the kernel's of its tunnels."""
    if isinstance(agent, Daemon):
        wait_until(lambda: all(total == sum(outcomes.values()) for total, outcomes in counted(agent)), "the law holds")
        found = sum((Counter(outcomes) for _, outcomes in counted(agent)), Counter[str]())
        # What a kernel says of itself to all on a link stays here, as flannel's nodes lose it in their devices.
        found["out_of_network"] -= min(found["out_of_network"], multicasts(agent))
        return {name: count for name, count in found.items() if count and name not in _PASSED}
    links = json.loads(agent.node.run("ip", "-json", "-statistics", "link").stdout)
    return {f"{link['ifname']} {name}": link["stats64"]["rx"][name] for link in links if "flannel" in link["ifname"]
            for name in ("errors", "dropped") if link["stats64"]["rx"][name]}


def multicasts(agent: Agent) -> int:
    """How many packets a node's kernel sent to groups through its IPv6 tunnel: reports and solicitations."""
    def read() -> int:
        tables = Path("/proc/thread-self/net/dev_snmp6").glob("flannel-v6.*")
        return sum(int(found[1]) for table in tables
                   if (found := re.search(r"^Ip6OutMcastPkts\s+(\d+)", table.read_text(), re.MULTILINE)))

    return agent.node.call(read)


def counted(daemon: Daemon) -> list[tuple[int, dict[str, int]]]:
    """For each direction the packets, and what became of them."""
    return [(told["packets"], {name: outcome["count"] for name, outcome in told["outcomes"].items()})
            for told in daemon.status()["counters"].values()]


@pytest.mark.parametrize("mixed", ["direct-dual"], indirect=True)
def test_direct_routes_lead_to_nodes_on_the_link_and_the_tunnel_to_others(mixed: Mixed) -> None:
    mixed.await_all()
    one, three, two, four = mixed.agents
    near = [{one.node.name, three.node.name}, {two.node.name, four.node.name}]
    for first, second in permutations(mixed.agents, 2):
        assert tunnelled(first, second) == ({first.node.name, second.node.name} not in near)


def was_narrow(router: Place, counter: str) -> bool:
    """Whether the router met packets larger than its way."""
    return router.run("nstat", "-asz", counter).stdout.split()[-2] != "0"


@pytest.mark.parametrize("mixed", ["direct-dual"], indirect=True)
def test_ipv6_passes_a_way_that_is_narrower_than_the_tunnel_supposes(mixed: Mixed) -> None:
    """TCP finds out, and what fits such a way passes."""
    pods, router = containers(mixed), mixed.topology.others[0]
    narrow_ipv6(router)
    longest = FAR_MTU - VXLAN_OVERHEAD_V6 - _ICMP[6]
    for (one, (client, _)), (two, (server, addresses)) in permutations(zip(mixed.agents, pods, strict=True), 2):
        if tunnelled(one, two):
            transfer(client, server, addresses[1], 1 << 20)
            assert client.ping(addresses[1], "-M", "do", "-s", f"{longest}").returncode == 0
    assert was_narrow(router, "Icmp6OutPktTooBigs")
    assert_all_is_accounted_for(mixed, pods)


def macs(mixed: Mixed, agent: Agent) -> list[str]:
    """The MAC addresses that a node's lease tells, of each family."""
    lease = json.loads(mixed.lease(agent)["value"])
    return [lease[key]["VtepMAC"] for key in ("BackendData", "BackendV6Data") if key in lease]


@every_kind
def test_either_restarts_and_takes_the_place_of_the_other(mixed: Mixed) -> None:
    """Subnets stay; MAC addresses stay where ours comes after flannel, whose device it finds; connections live on."""
    one, other, third, _ = containers(mixed)
    theirs, ours = mixed.agents[:2]
    before = [(subnets(agent), macs(mixed, agent)) for agent in (theirs, ours)]

    def replace(*makers: Callable[[Node], Agent]) -> list[tuple[list[Network], list[str]]]:
        nodes = [agent.node for agent in mixed.agents[:2]]
        for agent in mixed.agents[:2]:
            agent.end(signal.SIGTERM)
        mixed.agents[:2] = [make(node) for make, node in zip(makers, nodes, strict=True)]
        for go_on in spoken:
            go_on()
        mixed.await_all()
        return [(subnets(agent), macs(mixed, agent)) for agent in mixed.agents[:2]]

    with contextlib.ExitStack() as closing:
        spoken = [closing.enter_context(conversation(client, server, address))
                  for (client, _), (server, addresses) in permutations((one, other, third), 2) for address in addresses]
        assert replace(mixed.theirs, mixed.ours) == before
        swapped = replace(mixed.ours_otherwise, mixed.theirs)
        assert swapped[0] == before[0], "ours took over subnet and MAC"
        assert swapped[1][0] == before[1][0]
        back = replace(mixed.theirs, mixed.ours)
        assert [kept for kept, _ in back] == [kept for kept, _ in before]
        assert back[1] == swapped[1], "ours took over subnet and MAC"


@pytest.mark.parametrize("mixed", ["vxlan", "vxlan-dual", "host-gw-dual"], indirect=True)
def test_what_is_written_is_the_same_to_the_byte(mixed: Mixed) -> None:
    theirs, ours = mixed.agents[:2]

    def as_ours(written: bytes) -> bytes:
        """What flannel wrote, with our addresses, subnets and MACs in the place of its own."""
        for their, our in zip(names(theirs), names(ours), strict=True):
            written = written.replace(their.encode(), our.encode())
        return written

    def names(agent: Agent) -> list[str]:
        bridges = [f"{subnet[1]}/" for subnet in subnets(agent)]
        return [f"{agent.node.address}", f"{agent.node.address6}", *bridges, *macs(mixed, agent)]

    assert mixed.lease(ours)["value"] == as_ours(mixed.lease(theirs)["value"])
    files = [(agent.home / "subnet.env").read_bytes() for agent in (theirs, ours)]
    if len(subnets(ours)) == 2:  # flannel forgets that its IPv6 tunnel carries less; ours says what both carry
        files[0] = files[0].replace(b"FLANNEL_MTU=1450\n", b"FLANNEL_MTU=1430\n")
    assert files[1] == as_ours(files[0])
