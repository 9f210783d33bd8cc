"""What a lab looks like: names, addresses and paths that its supervisor, builder and clients agree on.

underlay 192.0.2.0/24: bridge "underlay" (.254) in the lab's own network namespace
    node1  eth0 .1   flannel0   cni0 = first address of the leased subnet ── pod: eth0 = second address
    node2  eth0 .2   ...
The same over IPv6 in 2001:db8::/64, instead or besides.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path

from flannel_udp.errors import LabError
from flannel_udp.link import Interface

# Our choices.
UNDERLAY = {4: ip_network("192.0.2.0/24"), 6: ip_network("2001:db8::/64")}  # RFC 5737, 3849: never somebody's
UNDERLAY_BRIDGE = "underlay"
UNDERLAY_MTU = 1500
ROUTER = 254
EXTERNAL_INTERFACE = "eth0"
POD_BRIDGE = "cni0"
MOST_NODES = 100  # five namespaces each: below the usual limit of 1024 open files
NETWORKS = {4: "10.5.0.0/16", 6: "fd00:5::/48"}

SHARED = Path("/run/lab")
"""The one directory that all nodes of a lab see; each node's /run is its own otherwise."""

REGISTRY_URL = f"sqlite://{SHARED}/registry.db"
STATE_DIR = Path("/run/flannel-udp-state")


@dataclass(frozen=True)
class Overlay:
    """What a lab is to show: a backend, the address families of overlay and underlay, in order, who plugs pods in."""

    backend: str = "udp"
    families: tuple[int, ...] = (4,)
    plugins: str = ""
    """Folders of CNI plugins, with colons between, where the CNI plugin is to do it; else the lab does."""

    def config(self) -> str:
        """The network configuration, as the registry is to hold it."""
        config: dict[str, object] = {"Network": NETWORKS[4]} if 4 in self.families else {"EnableIPv4": False}
        if 6 in self.families:
            config |= {"EnableIPv6": True, "IPv6Network": NETWORKS[6]}
        return json.dumps(config | {"Backend": {"Type": self.backend}})

    def words(self) -> list[str]:
        """For the command line of the supervisor."""
        return [self.backend, "".join(map(str, self.families)), self.plugins]

    @classmethod
    def read(cls, backend: str, families: str, plugins: str) -> "Overlay":
        """What words() made."""
        return cls(backend, tuple(map(int, families)), plugins)

    def by_family(self, name: str, values: Sequence[object]) -> dict[str, str]:
        """Name a value of each family for a status: the second family's by ipv6_, which nobody has alone."""
        names = [name, f"ipv6_{name}"][: len(self.families)]
        return dict(zip(names, map(str, values or [""] * len(names)), strict=True))


def check_name(name: str) -> str:
    """Return a lab's name, or say what names may look like."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
        raise LabError(f"lab name {name!r}: up to 40 letters, digits, dots, dashes and underscores, please")
    return name


def check_nodes(nodes: int) -> int:
    """Return a number of nodes, or say how many there may be."""
    if not 1 <= nodes <= MOST_NODES:
        raise LabError(f"{nodes} nodes: a lab has 1 to {MOST_NODES}")
    return nodes


def node_name(word: str) -> str:
    """Return the name of a node that the user called by name or by number."""
    return f"node{int(word)}" if word.isascii() and word.isdigit() else word


def underlay_address(number: int, family: int) -> Interface:
    """Return the address of a node, or of the ROUTER, on the underlay."""
    return ip_interface(f"{UNDERLAY[family][number]}/{UNDERLAY[family].prefixlen}")


def environment() -> dict[str, str]:
    """The caller's environment as it is to be inside a lab: nothing of a daemon outside, and the lab's registry."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}
    return {**inherited, "FLANNELD_REGISTRY": REGISTRY_URL}


def log_path(node: str) -> Path:
    """Where a node's daemon logs to."""
    return SHARED / f"{node}.log"


def log_tail(node: str, lines: int = 8) -> str:
    """Return the end of a node's log, ready to be put behind a message; to be called inside the lab."""
    try:
        text = log_path(node).read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        text = []
    return "; its log ends:\n" + "\n".join(f"    {line}" for line in text) if text else "; it logged nothing"
