"""A node behind a router, for backends to which that makes a difference; and daemons of a backend that the test names.

    node1 ──┐                     ┌─────────┐
            ├─ underlay ─ eth0 ─ router ─ far ─ eth0  node3  198.51.100.3, 2001:db8:f::3
    node2 ──┘        192.0.2.254, 2001:db8::fe
"""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

from flannel_udp.registry import open_registry

from ..conftest import wait_until
from .node_daemon import Daemon
from .topology import UNDERLAY, UNDERLAY6, Node, Place, Pod, Topology, join

ROUTER, ROUTER6 = UNDERLAY[254], UNDERLAY6[254]
FAR = IPv4Network("198.51.100.0/24")
NETWORK, NETWORK6 = "10.5.0.0/16", "fd00:5::/48"


def add_router(topology: Topology) -> Place:
    """Put a router where the nodes' default route leads, with a bridge "far" behind it."""
    router = Place("router")
    topology.others.append(router)
    join(router, "eth0", topology.underlay, "underlay", "router", 1500)
    router.ip(f"addr add {ROUTER}/24 dev eth0", f"addr add {ROUTER6}/64 dev eth0 nodad", "link add far type bridge",
              "link set far up", f"addr add {FAR[254]}/24 dev far", "addr add 2001:db8:f::fe/64 dev far nodad")
    for node in topology.nodes:
        node.ip(f"route add default via {ROUTER6}")
    return router


def add_far_node(topology: Topology, router: Place, number: int) -> Node:
    """A node behind the router."""
    node = Node(number)
    topology.others.append(node)
    node.address, node.address6 = IPv4Address(FAR[number]), IPv6Address(f"2001:db8:f::{number}")
    join(node, "eth0", router, "far", node.name, 1500)
    node.ip(f"addr add {node.address}/24 dev eth0", f"addr add {node.address6}/64 dev eth0 nodad",
            f"route add default via {FAR[254]}", "route add default via 2001:db8:f::fe")
    return node


class Overlay:
    """Daemons of one network on nodes, with leases in a file."""

    def __init__(self, root: Path, backend: dict[str, Any], *, dual: bool = False, ipv4: bool = True) -> None:
        self.root = root
        self.registry = f"sqlite://{root}/registry.db"
        families = {"EnableIPv4": ipv4, "EnableIPv6": True, "IPv6Network": NETWORK6} if dual else {}
        opened = open_registry(self.registry)
        opened.write_config(json.dumps({"Network": NETWORK, "Backend": backend, **families}))
        opened.close()

    def daemon(self, node: Node, *options: str) -> Daemon:
        """Start one, until it is ready."""
        daemon = Daemon(node, self.root, self.registry, "", *options)
        wait_until(daemon.ready, f"the daemon of {node.name} is ready")
        return daemon

    def pod(self, daemon: Daemon, mtu: int, *, dual: bool = False) -> Pod:
        """A pod of the daemon's node."""
        if dual:
            return daemon.node.add_dual_pod(daemon.subnet(), daemon.ipv6_subnet(), mtu)
        return daemon.node.add_pod(daemon.subnet(), mtu)


def direct(daemon: Daemon) -> dict[str, str]:
    """The kernel's routes by way of peers, as `ip` tells them: subnet to gateway."""
    told = [route for family in ("-4", "-6") for route in json.loads(
        daemon.node.run("ip", family, "-json", "route", "show", "proto", "82").stdout or "[]")]
    return {route["dst"]: route["gateway"] for route in told if "gateway" in route}
