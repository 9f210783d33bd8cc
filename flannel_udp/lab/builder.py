"""Builds a lab, in a child of its supervisor: the underlay, the nodes, and each node's pod when it has its lease.

It works in straight lines and waits for conditions, since the supervisor serves meanwhile and ends it with the lab.
What it makes it hands over at once. It hops between namespaces by itself: netlink sockets belong to the namespace
in which they were opened.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Interface, IPv4Network
from typing import TypeVar

from flannel_udp import control
from flannel_udp.errors import ControlError, LabError
from flannel_udp.lab import channel, layout, namespace
from flannel_udp.lab.namespace import Namespaces
from flannel_udp.link import Link
from flannel_udp.netlink import RTPROT_STATIC, Links
from flannel_udp.options import DEFAULT_RUN_DIR, DEFAULT_SUBNET_FILE
from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import SubnetEnv, read_subnet_env

# Our choices, generous: a daemon starts in a second where nothing else runs.
DEADLINE = 30.0
DEADLINE_PER_NODE = 3.0
POLL = 0.02

T = TypeVar("T")


def build(nodes: int, supervisor: socket.socket) -> None:
    """Build a whole lab; the supervisor is told of each part, and of the end."""
    _furnish_underlay()
    with contextlib.closing(open_registry(layout.REGISTRY_URL)) as registry:
        registry.write_config(layout.NETWORK_CONFIG)
    places = {}
    for number in range(1, nodes + 1):
        places[f"node{number}"] = _build_node(number, supervisor)
    deadline = time.monotonic() + DEADLINE + DEADLINE_PER_NODE * nodes
    for node, place in places.items():
        env = _wait(partial(_subnet_env, place), node, "get a lease", deadline)
        _build_pod(node, place, env, supervisor)
    for node, place in places.items():
        _wait(partial(_knows_peers, place, nodes - 1), node, "know its peers", deadline)
    channel.send(supervisor, {"kind": "ready"})


def _wait(condition: Callable[[], T | None], node: str, what: str, deadline: float) -> T:
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited in vain for {node} to {what}{layout.log_tail(node)}")
        time.sleep(POLL)
    return value


# Links.


def _furnish_underlay() -> None:
    """The bridge of the underlay in the lab's own network namespace, which is every node's default gateway."""
    namespace.sethostname("underlay")
    _forward()  # so that what leads nowhere is answered, not lost
    with Links() as links:
        _up(links, _link(links, "lo"))
        bridge = links.create_bridge(layout.UNDERLAY_BRIDGE)
        links.add_address(bridge.index, layout.ROUTER)
        _up(links, bridge)


def _build_node(number: int, supervisor: socket.socket) -> Namespaces:
    node, address = f"node{number}", layout.node_address(number)
    with namespace.created("mnt", "uts", "net") as place:
        namespace.sethostname(node)
        _furnish_run()
        _forward()
    _lay_cable(place, layout.UNDERLAY_BRIDGE, node, layout.UNDERLAY_MTU)
    _furnish_end(place, address, layout.ROUTER)
    message = {"kind": "node", "node": node, "address": str(address.ip)}
    channel.send(supervisor, message, list(place.descriptors.values()))
    return place


def _build_pod(node: str, place: Namespaces, env: SubnetEnv, supervisor: socket.socket) -> None:
    subnet = env.subnet
    assert subnet is not None
    assert env.mtu is not None
    gateway, address = (IPv4Interface(f"{subnet[host]}/{subnet.prefixlen}") for host in (1, 2))
    with namespace.created("uts", "net") as pod:
        namespace.sethostname(f"{node}-pod")
    with namespace.inside(place):
        with Links() as links:
            bridge = links.create_bridge(layout.POD_BRIDGE)
            links.set_link(bridge.index, mtu=env.mtu)
            links.add_address(bridge.index, gateway)
            _up(links, bridge)
        _lay_cable(pod, layout.POD_BRIDGE, "pod", env.mtu)
    _furnish_end(pod, address, gateway)
    message = {"kind": "pod", "node": node, "subnet": str(subnet), "pod": str(address.ip)}
    channel.send(supervisor, message, list(pod.descriptors.values()))
    pod.close()


def _lay_cable(place: Namespaces, bridge: str, port: str, mtu: int) -> None:
    """Connect eth0 in `place` to `port` of a bridge here."""
    with Links() as links:
        cable = links.create_veth(port, layout.EXTERNAL_INTERFACE, peer_namespace=place.descriptors["net"])
        links.set_link(cable.index, mtu=mtu, master=_link(links, bridge).index)
        _up(links, cable)
    with namespace.inside(place.only("net")), Links() as links:
        links.set_link(_link(links, layout.EXTERNAL_INTERFACE).index, mtu=mtu)


def _furnish_end(place: Namespaces, address: IPv4Interface, gateway: IPv4Interface) -> None:
    """Give eth0 in `place` its address, and the place its default route."""
    with namespace.inside(place.only("net")), Links() as links:
        _up(links, _link(links, "lo"))
        end = _link(links, layout.EXTERNAL_INTERFACE)
        links.add_address(end.index, address)
        _up(links, end)
        links.add_route(IPv4Network("0.0.0.0/0"), end.index, gateway.ip, RTPROT_STATIC)


def _forward() -> None:
    try:
        namespace.write_sysctl("net/ipv4/ip_forward", 1)
    except OSError as error:
        remedy = "in a container, run that with --privileged, or the lab outside"
        raise LabError(f"cannot let the lab's nodes forward packets: /proc/sys: {error.strerror}: {remedy}") from None


def _link(links: Links, name: str) -> Link:
    link = links.link(name)
    assert link is not None, f"{name} was made just now"
    return link


def _up(links: Links, link: Link) -> None:
    links.set_link(link.index, up=True)


# Files.


def _furnish_run() -> None:
    """A /run of the node's own, with the lab's shared directory in it."""
    shared = os.open(layout.SHARED, os.O_PATH | os.O_DIRECTORY)
    namespace.mount("tmpfs", "/run", "tmpfs", namespace.MS_NOSUID | namespace.MS_NODEV, "mode=0755")
    layout.SHARED.mkdir()
    os.fchdir(shared)  # the old directory has no name any more, but it is "."
    namespace.mount(".", str(layout.SHARED), flags=namespace.MS_BIND)
    os.chdir("/")
    os.close(shared)


def _subnet_env(place: Namespaces) -> SubnetEnv | None:
    with namespace.inside(place.only("mnt")):
        env = read_subnet_env(DEFAULT_SUBNET_FILE)
    return env if env.subnet and env.mtu else None


def _knows_peers(place: Namespaces, count: int) -> bool:
    """Whether the node's daemon answers, and forwards to so many peers."""
    try:
        with namespace.inside(place.only("mnt")):
            status = control.ask(control.socket_path(DEFAULT_RUN_DIR), {"command": "status"})
    except ControlError:
        return False
    return len(status["peers"]) == count
