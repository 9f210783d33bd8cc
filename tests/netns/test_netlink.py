"""Links and LinkMonitor against the kernel, inside namespaces; what they did is read back with `ip`."""

import json
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from flannel_udp.errors import Fault, NetlinkError
from flannel_udp.link import LinkEvent
from flannel_udp.netlink import ROUTE_PROTOCOL, LinkMonitor, Links

from ..conftest import DEADLINE
from .topology import Node, Topology

MakeTopology = Callable[..., Topology]


@pytest.fixture
def node(topology: MakeTopology) -> Iterator[Node]:
    """Be inside a node with eth0 on an underlay, and no default route."""
    one = topology(1).nodes[0]
    for family in ("-4", "-6"):
        one.run("ip", family, "route", "flush", "default")
    with one.entered():
        yield one


def shown(node: Node, *words: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(node.run("ip", "-json", "-details", *words).stdout or "[]")
    return told


def test_links_are_read(node: Node) -> None:
    with Links() as links:
        eth0 = links.link("eth0")
        assert eth0 is not None
        assert (eth0.mtu, eth0.up, eth0.kind) == (1500, True, "veth")
        assert eth0 == links.link(eth0.index)
        assert eth0 in links.links()
        assert links.link("none") is links.link(4711) is None
    assert shown(node, "link", "show", "eth0")[0]["address"] == eth0.mac


@pytest.mark.parametrize("local", ["192.0.2.1", "2001:db8::1"])
def test_a_vxlan_device_tells_its_number_and_port(node: Node, local: str) -> None:
    node.ip(f"link add flannel.7 address 0a:5e:00:53:00:01 type vxlan id 7 dev eth0 local {local} dstport 4789")
    with Links() as links:
        device = links.link("flannel.7")
        assert device is not None
        assert (device.kind, device.vni, device.port, device.mac) == ("vxlan", 7, 4789, "0a:5e:00:53:00:01")
        assert [(link.vni, link.port) for link in links.links() if link.kind != "vxlan"] == [(None, 0)] * 2


def test_links_are_made_changed_and_deleted(node: Node) -> None:
    with Links() as links:
        bridge = links.create_bridge("br0")
        port = links.create_veth("port", "other")
        links.set_link(port.index, master=bridge.index, mtu=1400, up=True, mac="02:00:00:00:00:01")
        told = shown(node, "link", "show", "port")[0]
        assert (told["master"], told["mtu"], told["address"]) == ("br0", 1400, "02:00:00:00:00:01")
        links.set_link(port.index, master=0, name="moved", up=False)
        after = links.link("moved")
        assert after is not None
        assert (after.master, after.up, after.index) == (None, False, port.index)
        assert links.delete_link(port.index)
        assert not links.delete_link(port.index)
        assert links.link("other") is None


def test_links_are_moved_to_other_namespaces(topology: MakeTopology) -> None:
    one, two = topology(2).nodes
    process = two.start("sleep", "100")
    fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
    try:
        with one.entered(), Links() as links:
            links.create_veth("a", "b", peer_namespace=fd)
            links.move_link(links.create_veth("c", "d").index, namespace=fd)
            links.move_link(links.create_veth("e", "f").index, pid=process.pid)
    finally:
        os.close(fd)
    assert {"b", "c", "e"} <= {link["ifname"] for link in shown(two, "link")}


def test_addresses(node: Node) -> None:
    v4, v6 = ip_interface("10.9.0.0/32"), ip_interface("fd00:9::1/64")
    with Links() as links:
        eth0 = links.link("eth0")
        assert eth0 is not None
        for interface in (v4, v6):
            assert links.add_address(eth0.index, interface)
            assert not links.add_address(eth0.index, interface)
        assert {v4, ip_interface(f"{node.address}/24")} == {one.interface for one in links.addresses(eth0.index, 4)}
        assert v6 in {one.interface for one in links.addresses(family=6) if one.permanent and not one.temporary}
        for interface in (v4, v6):
            assert links.delete_address(eth0.index, interface)
            assert not links.delete_address(eth0.index, interface)


@pytest.mark.parametrize(("network", "gateway", "inside"), [
    ("10.9.0.0/16", "192.0.2.77", "10.9.1.1"), ("fd00:9::/32", "2001:db8::77", "fd00:9::1")])
def test_routes(node: Node, network: str, gateway: str, inside: str) -> None:
    overlay, via, family = ip_network(network), ip_address(gateway), ip_network(network).version
    with Links() as links:
        index = next(link.index for link in links.links() if link.name == "eth0")
        assert links.add_route(overlay, index)
        assert not links.add_route(overlay, index)
        assert [route.index for route in links.routes(family) if route.network == overlay] == [index]
        links.replace_route(overlay, index, via)
        found = links.route_to(ip_address(inside))
        assert found is not None
        assert (found.index, found.gateway) == (index, via)
        assert found.source == (node.address if family == 4 else node.address6)
        assert links.delete_route(overlay, index, via)
        assert not links.delete_route(overlay, index)
        assert links.route_to(ip_address(inside)) is None
        assert links.add_route(IPv4Network("0.0.0.0/0") if family == 4 else IPv6Network("::/0"), index, via)
        assert any(route.network is None and route.gateway == via for route in links.routes(family))


def test_route_of_several_hops_has_its_first(node: Node) -> None:
    node.ip("route add default nexthop via 192.0.2.10 nexthop via 192.0.2.11")
    with Links() as links:
        route, = (route for route in links.routes() if route.network is None)
        assert route.gateway == ip_address("192.0.2.10")
        assert route.index == next(link.index for link in links.links() if link.name == "eth0")


def test_ipv4_option_is_the_sysctl(node: Node) -> None:
    with Links() as links:
        eth0 = links.link("eth0")
        assert eth0 is not None
        links.set_ipv4_option(eth0.index, 23, 1)
        with pytest.raises(NetlinkError, match="cannot set IPv4 option 23 of link 4711: No such device"):
            links.set_ipv4_option(4711, 23, 1)
    assert node.run("cat", "/proc/sys/net/ipv4/conf/eth0/accept_local").stdout == "1\n"


def test_refusal_is_one_line_that_names_the_deed(node: Node) -> None:
    del node
    with Links() as links:
        with pytest.raises(NetlinkError, match=r"cannot create bridge eth0: File exists"):
            links.create_bridge("eth0")
        with pytest.raises(NetlinkError, match=r"cannot set link 4711 mtu 1400: No such device"):
            links.set_link(4711, mtu=1400)
        eth0 = links.link("eth0")
        assert eth0 is not None
        with pytest.raises(NetlinkError, match=r"cannot add route 10.9.0.0/16 over eth0: .*gateway"):
            links.add_route(IPv4Network("10.9.0.0/16"), eth0.index, ip_address("203.0.113.1"))


def test_links_leave_no_descriptor(node: Node) -> None:
    del node
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with Links() as links:
            links.links()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Watched:
    """The events of a monitor that runs inside a node."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[LinkEvent] = SimpleQueue()
        self.monitor = LinkMonitor(self.post)

    def post(self, event: LinkEvent | Fault) -> None:
        assert isinstance(event, LinkEvent)
        self.queue.put(event)

    def expect(self, kind: str, name: str = "") -> LinkEvent:
        while True:
            event = self.queue.get(timeout=DEADLINE)
            if event.kind == kind and (not name or event.name == name):
                return event


@pytest.fixture
def watched(node: Node) -> Iterator[Watched]:
    del node
    watched = Watched()
    yield watched
    watched.monitor.close()


def test_monitor_tells_of_links_and_addresses(node: Node, watched: Watched) -> None:
    node.ip("link add br0 type bridge")
    index = watched.expect("link", "br0").index
    node.ip("addr add 10.9.0.1/24 dev br0")
    assert watched.expect("address").index == index
    node.ip("addr del 10.9.0.1/24 dev br0")
    assert watched.expect("address gone").index == index
    node.ip("link del br0")
    assert watched.expect("link gone", "br0").index == index


def test_monitor_tells_of_routes_of_the_main_table(node: Node, watched: Watched) -> None:
    node.ip("link add br0 type bridge", "link set br0 up", "route add 10.9.0.0/16 dev br0 table 7",
            "route add 10.9.0.0/16 dev br0", "route del 10.9.0.0/16 dev br0")
    index = watched.expect("link", "br0").index
    for _ in ("comes", "goes"):
        event = watched.expect("route")
        while event.network and event.network.version == 6:  # of br0's link-local address
            event = watched.expect("route")
        assert event == LinkEvent("route", index, network=IPv4Network("10.9.0.0/16"))
    node.ip("route add fd00:9::/64 dev br0")
    while watched.expect("route").network != IPv6Network("fd00:9::/64"):
        pass


@pytest.mark.parametrize("subnet", ["10.9.1.0/24", "fd00:9:0:1::/64"])
def test_blackhole_gives_way_to_a_bridges_route(node: Node, subnet: str) -> None:
    network = ip_network(subnet)
    with Links() as links:
        assert links.add_blackhole(network)
        assert not links.add_blackhole(network)
        assert [(route.network, route.blackhole) for route in links.our_routes(network.version)] == [(network, True)]
        assert links.route_to(network[5]) is None
        node.ip("link add br0 type bridge", "link set br0 up", f"addr add {network[1]}/{network.prefixlen} dev br0")
        found = links.route_to(network[5])
        assert found is not None
        assert (found.index, found.blackhole) == (links.link("br0").index, False)  # type: ignore[union-attr]
        assert links.delete_blackhole(network)
        assert not links.delete_blackhole(network)


def test_routes_of_ours_are_known_by_their_protocol(node: Node) -> None:
    overlay = ip_network("10.9.0.0/16")
    with Links() as links:
        eth0 = links.link("eth0")
        assert eth0
        node.ip("route add 10.8.0.0/16 dev eth0")
        links.add_route(overlay, eth0.index)
        assert [(route.network, route.protocol) for route in links.our_routes()] == [(overlay, ROUTE_PROTOCOL)]
        assert [route.protocol for route in links.routes() if route.network == ip_network("10.8.0.0/16")] == [3]
    assert shown(node, "route", "show", "proto", f"{ROUTE_PROTOCOL}")[0]["dst"] == "10.9.0.0/16"


@pytest.mark.parametrize(("subnet", "gateway"), [("10.9.1.0/24", "192.0.2.9"), ("fd00:9:0:1::/64", "2001:db8::9")])
def test_a_route_of_another_protocol_is_not_deleted(node: Node, subnet: str, gateway: str) -> None:
    network, hop = ip_network(subnet), ip_address(gateway)
    with Links() as links:
        eth0 = links.link("eth0")
        assert eth0
        node.ip(f"route add {subnet} via {gateway}")
        assert not links.delete_route(network, eth0.index, hop, ROUTE_PROTOCOL)
        links.replace_route(network, eth0.index, hop)  # in the place of what stands there
        route, = (route for route in links.routes(network.version) if route.network == network)
        assert route.protocol == ROUTE_PROTOCOL
        assert links.delete_route(network, eth0.index, hop, ROUTE_PROTOCOL)


def test_leaving_a_bridge_is_not_being_deleted(node: Node, watched: Watched) -> None:
    node.ip("link add br0 type bridge", "link set eth0 master br0", "link set eth0 nomaster", "link del br0")
    while (event := watched.queue.get(timeout=DEADLINE)) != LinkEvent("link gone", event.index, "br0"):
        assert event.kind != "link gone"


def test_monitor_says_when_it_missed_events(node: Node) -> None:
    """Told by the kernel's ENOBUFS, which a reader that does not come in time provokes."""
    watched = Watched()
    gate: SimpleQueue[None] = SimpleQueue()
    slow: SimpleQueue[LinkEvent] = SimpleQueue()

    def post(event: LinkEvent | Fault) -> None:
        assert isinstance(event, LinkEvent)
        if event.name == "stop":
            gate.get()
        slow.put(event)

    blocked = LinkMonitor(post)
    try:
        node.ip("link add stop type bridge")
        watched.expect("link", "stop")
        node.ip(*(f"link set stop mtu {1280 + number % 2}" for number in range(1500)))
        gate.put(None)
        for _ in range(1600):
            gate.put(None)
        kinds = {slow.get(timeout=DEADLINE).kind for _ in range(slow.qsize() or 1)}
        while "lost" not in kinds:
            kinds.add(slow.get(timeout=DEADLINE).kind)
    finally:
        blocked.close()
        watched.monitor.close()


def test_monitor_ends_when_told_and_leaves_nothing(node: Node) -> None:
    del node
    before = len(list(Path("/proc/self/fd").iterdir()))
    monitor = LinkMonitor(SimpleQueue[LinkEvent | Fault]().put)
    monitor.close()
    monitor.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
