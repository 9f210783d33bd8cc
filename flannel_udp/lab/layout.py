"""What a lab looks like: names, addresses and paths that its supervisor, builder and clients agree on.

underlay 192.0.2.0/24: bridge "underlay" (.254) in the lab's own network namespace
    node1  eth0 .1   flannel0   cni0 = first address of the leased subnet ── pod: eth0 = second address
    node2  eth0 .2   ...
"""

import os
import re
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from flannel_udp.errors import LabError

# Our choices.
UNDERLAY = IPv4Network("192.0.2.0/24")  # RFC 5737: for documentation, so never somebody's
UNDERLAY_BRIDGE = "underlay"
UNDERLAY_MTU = 1500
ROUTER = IPv4Interface(f"{UNDERLAY[254]}/{UNDERLAY.prefixlen}")
EXTERNAL_INTERFACE = "eth0"
TUN = "flannel0"  # what the daemon's pattern flannel%d gives first
POD_BRIDGE = "cni0"
MOST_NODES = 100  # five namespaces each: below the usual limit of 1024 open files
NETWORK_CONFIG = '{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}'

SHARED = Path("/run/lab")
"""The one directory that all nodes of a lab see; each node's /run is its own otherwise."""

REGISTRY_URL = f"sqlite://{SHARED}/registry.db"
STATE_DIR = Path("/run/flannel-udp-state")


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


def node_address(number: int) -> IPv4Interface:
    """Return the address of a node on the underlay."""
    return IPv4Interface(f"{UNDERLAY[number]}/{UNDERLAY.prefixlen}")


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
