"""The rules as data: which packets keep their source, which are masqueraded, and what each daemon's rules are called.

Masquerading has the meaning of flannel's iptables rules, one after the other, the first match decides:

    1  marked by kube-proxy                  stays   (kube-proxy masquerades it; twice is a bug of some kernels)
    2  own subnet   -> network               stays   pod to pod
    3  network      -> own subnet            stays   pod to pod, as it arrives
    4  elsewhere    -> own subnet            stays   an external client keeps its address towards a local pod
    5  network      -> not multicast         masq    pod to outside
    6  elsewhere    -> network               masq    this host to a remote pod, with an address that is routed back
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

from flannel_udp.link import Network
from flannel_udp.paths import DEFAULT_RUN_DIR

KUBE_PROXY_MARK = 0x4000  # specification: of kube-proxy, one bit of the mark (--iptables-masquerade-bit 14)
MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}
COMMENT = {"masquerade": "flannel-udp masq", "forward": "flannel-udp forward"}


@dataclass(frozen=True)
class Overlay:
    """What the rules of one family are about."""

    network: Network
    subnet: Network
    """This node's own."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.network.version


@dataclass(frozen=True)
class Rules:
    """What the daemon wants of the firewall."""

    overlays: tuple[Overlay, ...] = ()
    masquerade: bool = False
    forward: bool = False
    """Accept in FORWARD what comes from the network or goes to it."""
    fully_random: bool = True

    def networks(self) -> tuple[Network, ...]:
        """The overlay networks."""
        return tuple(overlay.network for overlay in self.overlays)


@dataclass(frozen=True)
class End:
    """One end of a packet: inside a network, or anywhere but there."""

    network: Network
    inside: bool = True


@dataclass(frozen=True)
class MasqueradeRule:
    """Packets from here to there: masqueraded, or left as they are. Without ends: those that kube-proxy marked."""

    masquerade: bool
    source: End | None = None
    destination: End | None = None


def masquerade_rules(overlay: Overlay) -> Iterator[MasqueradeRule]:
    """The six, in order."""
    network, subnet = End(overlay.network), End(overlay.subnet)
    elsewhere = End(overlay.network, inside=False)
    yield MasqueradeRule(False)
    yield MasqueradeRule(False, subnet, network)
    yield MasqueradeRule(False, network, subnet)
    yield MasqueradeRule(False, elsewhere, subnet)
    yield MasqueradeRule(True, network, End(MULTICAST[overlay.version], inside=False))
    yield MasqueradeRule(True, elsewhere, network)


@dataclass(frozen=True)
class Names:
    """What the rules of one daemon are called, so that two on one host, and we and others, never meet."""

    table: str = "flannel_udp"
    """nft."""
    postrouting: str = "FLANNEL-UDP-POSTRTG"
    """iptables, which allows 28 characters."""
    forward: str = "FLANNEL-UDP-FWD"


def names_of(run_dir: Path) -> Names:
    """The names of the daemon with this run directory, which is what two on one host never share."""
    if run_dir == DEFAULT_RUN_DIR:
        return Names()
    mark = sha256(str(run_dir.absolute()).encode()).hexdigest()[:6]
    return Names(f"flannel_udp_{mark}", f"FLANNEL-UDP-POSTRTG-{mark}", f"FLANNEL-UDP-FWD-{mark}")
