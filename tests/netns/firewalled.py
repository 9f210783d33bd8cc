"""Nodes with daemons, pods and a host outside, and who is seen as the source of a packet at its destination."""

import json
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from ..conftest import require_commands, wait_until
from .node_daemon import Daemon
from .topology import UNDERLAY, UNDERLAY6, Place, Topology, join

OUTSIDE = UNDERLAY[100]
OUTSIDE6 = UNDERLAY6[100]
Address = IPv4Address | IPv6Address

# How a host comes to need one engine or the other.
HOSTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nft": (),
    "iptables": (("iptables", "-P", "FORWARD", "DROP"), ("ip6tables", "-P", "FORWARD", "DROP")),
    "iptables-legacy": (("iptables-legacy", "-P", "FORWARD", "DROP"), ("ip6tables-legacy", "-P", "FORWARD", "DROP")),
}


def require_firewalls() -> None:
    """Require nft and both kinds of iptables."""
    require_commands("nft", "iptables", "ip6tables", "iptables-legacy", package="nftables, iptables")


def add_outside(topology: Topology) -> Place:
    """A host on the underlay that is no node; it knows the way to node1's pods."""
    outside = Place("outside")
    join(outside, "eth0", topology.underlay, "underlay", "outside", 1500)
    outside.ip(f"addr add {OUTSIDE}/24 dev eth0", f"addr add {OUTSIDE6}/64 dev eth0 nodad")
    topology.others.append(outside)
    return outside


def knows_way(outside: Place, daemon: Daemon) -> None:
    """Route the daemon's pods by its node."""
    outside.ip(f"route replace {daemon.subnet()} via {daemon.node.address}")


def source_of(client: Place, server: Place, address: Address, *, bind: Address | None = None, mark: int = 0,
              patience: float = 5.0) -> Address | None:
    """The source of a datagram as the server sees it, if its answer finds back to the client; else None."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with server.entered():
        listening = socket.socket(family, socket.SOCK_DGRAM)
    with client.entered():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    with listening, asking:
        for one in (listening, asking):
            one.settimeout(patience)
        listening.bind((str(address), 0))
        if bind:
            asking.bind((str(bind), 0))
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        asking.connect((str(address), listening.getsockname()[1]))
        try:
            asking.send(b"question")
            _, source = listening.recvfrom(100)
            listening.sendto(b"answer", source)
            assert asking.recv(100) == b"answer"
        except OSError:  # no route, no answer in time
            return None
    return ip_address(source[0])


def chains(place: Place, *program: str) -> str:
    """The rules of iptables, as its save program shows them."""
    return place.run(f"{program[0]}-save").stdout


def table(place: Place, name: str = "inet flannel_udp") -> str:
    """An nft table; empty where there is none."""
    return place.run("nft", "-s", "list", "table", *name.split(), check=False).stdout


def rules_of(daemon: Daemon) -> str:
    """All rules of the daemon that stand in its engine."""
    firewall = daemon.status()["firewall"]
    if firewall["engine"] == "nft":
        return table(daemon.node, firewall["place"].removeprefix("table "))
    lines = chains(daemon.node, firewall["engine"]).splitlines()
    return "\n".join(line for line in lines if "FLANNEL-UDP" in line)


def ready(daemon: Daemon) -> None:
    """Wait until it is."""
    wait_until(daemon.ready, "it is ready")


def warned(daemon: Daemon, words: str) -> bool:
    """Whether the status warns of this."""
    return words in json.dumps(daemon.status()["warnings"])


def routes(place: Place, *words: str) -> list[dict[str, Any]]:
    """Routes as `ip` tells them."""
    told: list[dict[str, Any]] = json.loads(place.run("ip", "-json", *words).stdout or "[]")
    return told
