"""Builds a lab, in a child of its supervisor: the underlay, the nodes, and each node's pod when it has its lease.

It works in straight lines and waits for conditions, since the supervisor serves meanwhile and ends it with the lab.
What it makes it hands over at once. It hops between namespaces by itself: netlink sockets belong to the namespace
in which they were opened.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import TypeVar

from flannel_udp import control
from flannel_udp.errors import ControlError, LabError
from flannel_udp.lab import channel, layout, namespace, plug
from flannel_udp.lab.layout import Overlay
from flannel_udp.lab.namespace import Namespaces
from flannel_udp.link import Interface, Link, Network
from flannel_udp.netlink import RTPROT_STATIC, Links
from flannel_udp.paths import DEFAULT_RUN_DIR, DEFAULT_SUBNET_FILE
from flannel_udp.registry import open_registry
from flannel_udp.subnet_env import SubnetEnv, read_subnet_env

# Our choices, generous: a daemon starts in a second where nothing else runs.
DEADLINE = 30.0
DEADLINE_PER_NODE = 3.0
POLL = 0.02

# A kernel that forwards IPv6 asks for no neighbour before the link has probed its own address, for seconds.
NO_PROBES = ("net/ipv6/conf/default/accept_dad", 0)
SETTINGS = {
    4: [("net/ipv4/ip_forward", 1)],
    6: [("net/ipv6/conf/all/forwarding", 1), NO_PROBES],
}
ANYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

T = TypeVar("T")


def build(nodes: int, overlay: Overlay, supervisor: socket.socket) -> None:
    """Build a whole lab; the supervisor is told of each part, and of the end."""
    _furnish_underlay(overlay)
    with contextlib.closing(open_registry(layout.REGISTRY_URL)) as registry:
        registry.write_config(overlay.config())
    places = {}
    for number in range(1, nodes + 1):
        places[f"node{number}"] = _build_node(number, overlay, supervisor)
    deadline = time.monotonic() + DEADLINE + DEADLINE_PER_NODE * nodes
    for node, place in places.items():
        env = _wait(partial(_subnet_env, place), node, "get a lease", deadline)
        _build_pod(node, place, env, overlay, supervisor)
    rows = (nodes - 1) * len(overlay.families)
    for node, place in places.items():
        _wait(partial(_knows_peers, place, rows), node, "know its peers", deadline)
    channel.send(supervisor, {"kind": "ready"})


def _wait(condition: Callable[[], T | None], node: str, what: str, deadline: float) -> T:
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited in vain for {node} to {what}{layout.log_tail(node)}")
        time.sleep(POLL)
    return value


# Links.


def _furnish_underlay(overlay: Overlay) -> None:
    """The bridge of the underlay in the lab's own network namespace, which is every node's default gateway."""
    namespace.sethostname("underlay")
    _set_up(overlay)  # so that what leads nowhere is answered, not lost
    with Links() as links:
        _up(links, _link(links, "lo"))
        bridge = links.create_bridge(layout.UNDERLAY_BRIDGE)
        for family in overlay.families:
            links.add_address(bridge.index, layout.underlay_address(layout.ROUTER, family))
        _up(links, bridge)


def _build_node(number: int, overlay: Overlay, supervisor: socket.socket) -> Namespaces:
    node = f"node{number}"
    addresses, gateways = ([layout.underlay_address(host, family) for family in overlay.families]
                           for host in (number, layout.ROUTER))  # fmt: skip
    with namespace.created("mnt", "uts", "net") as place:
        namespace.sethostname(node)
        _furnish_run()
        _set_up(overlay)
    _lay_cable(place, layout.UNDERLAY_BRIDGE, node, layout.UNDERLAY_MTU)
    _furnish_end(place, addresses, gateways)
    message = {"kind": "node", "node": node, "addresses": [str(address.ip) for address in addresses]}
    channel.send(supervisor, message, list(place.descriptors.values()))
    return place


def _build_pod(node: str, place: Namespaces, env: SubnetEnv, overlay: Overlay, supervisor: socket.socket) -> None:
    subnets = [subnet for subnet in (env.subnet, env.ipv6_subnet) if subnet]
    with namespace.created("uts", "net") as pod:
        namespace.sethostname(f"{node}-pod")
    addresses = _plug_in(node, place, overlay, pod) if overlay.plugins else _connect(place, subnets, env.mtu, pod)
    message = {"kind": "pod", "node": node, "subnets": list(map(str, subnets)),
               "pods": [str(address.ip) for address in addresses]}  # fmt: skip
    channel.send(supervisor, message, list(pod.descriptors.values()))
    pod.close()


def _plug_in(node: str, place: Namespaces, overlay: Overlay, pod: Namespaces) -> list[Interface]:
    """Have the CNI plugin plug a pod in; the addresses that it gave."""
    with namespace.inside(pod.only("net")):
        if 6 in overlay.families:
            namespace.write_sysctl(*NO_PROBES)
        with Links() as links:
            _up(links, _link(links, "lo"))
    with namespace.inside(place):
        result = plug.plug(node, overlay.plugins, pod)
    return [ip_interface(ip["address"]) for ip in result["ips"]]


def _connect(place: Namespaces, subnets: Sequence[Network], mtu: int | None, pod: Namespaces) -> list[Interface]:
    """Connect a pod to a bridge of the node, as a CNI plugin would; the pod's addresses."""
    assert mtu is not None
    gateways, addresses = ([ip_interface(f"{subnet[host]}/{subnet.prefixlen}") for subnet in subnets]
                           for host in (1, 2))  # fmt: skip
    with namespace.inside(place):
        with Links() as links:
            bridge = links.create_bridge(layout.POD_BRIDGE)
            links.set_link(bridge.index, mtu=mtu)
            for gateway in gateways:
                links.add_address(bridge.index, gateway)
            _up(links, bridge)
        _lay_cable(pod, layout.POD_BRIDGE, "pod", mtu)
    _furnish_end(pod, addresses, gateways)
    return addresses


def _lay_cable(place: Namespaces, bridge: str, port: str, mtu: int) -> None:
    """Connect eth0 in `place` to `port` of a bridge here."""
    with Links() as links:
        cable = links.create_veth(port, layout.EXTERNAL_INTERFACE, peer_namespace=place.descriptors["net"])
        links.set_link(cable.index, mtu=mtu, master=_link(links, bridge).index)
        _up(links, cable)
    with namespace.inside(place.only("net")), Links() as links:
        links.set_link(_link(links, layout.EXTERNAL_INTERFACE).index, mtu=mtu)


def _furnish_end(place: Namespaces, addresses: Sequence[Interface], gateways: Sequence[Interface]) -> None:
    """Give eth0 in `place` its addresses, and the place its default routes, of each family one."""
    with namespace.inside(place.only("net")), Links() as links:
        _up(links, _link(links, "lo"))
        end = _link(links, layout.EXTERNAL_INTERFACE)
        for address in addresses:
            links.add_address(end.index, address)
        _up(links, end)
        for gateway in gateways:
            links.add_route(ANYWHERE[gateway.version], end.index, gateway.ip, RTPROT_STATIC)


def _set_up(overlay: Overlay) -> None:
    """Have the kernel of this namespace forward packets; to be called before there are links."""
    try:
        for family in overlay.families:
            for name, value in SETTINGS[family]:
                namespace.write_sysctl(name, value)
    except FileNotFoundError:
        raise LabError("this kernel has no IPv6: leave --ipv6 and --dual-stack out") from None
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
    return env if (env.subnet or env.ipv6_subnet) and env.mtu else None


def _knows_peers(place: Namespaces, count: int) -> bool:
    """Whether the node's daemon answers, and forwards to so many peers, those of each family counted."""
    try:
        with namespace.inside(place.only("mnt")):
            status = control.ask(control.socket_path(DEFAULT_RUN_DIR), {"command": "status"})
    except ControlError:
        return False
    return len(status["peers"]) == count
