"""What flannel left in the firewall: recognised by flannel's own names, and removed where it is about our network.

    iptables   chains FLANNEL-POSTRTG (nat) and FLANNEL-FWD (filter), and the rules that jump to them; before there were
               such chains, rules of POSTROUTING and FORWARD with the comments "flanneld masq" and "flanneld forward"
    nft        tables `ip flannel-ipv4` and `ip6 flannel-ipv6`

flannel does not remove them when it ends. Rules about other networks belong to another flanneld on this host, and stay.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

from flannel_udp.firewall import nft
from flannel_udp.firewall.command import answer, run
from flannel_udp.firewall.iptables import PREFIXES, Iptables, deleting, dropping, jumps_to
from flannel_udp.firewall.rules import MULTICAST
from flannel_udp.link import Network

# Specification: flannel, pkg/trafficmngr.
CHAINS = (("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
          ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"))
TABLES = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
ADDRESS = re.compile(r"(?<![\w.:])[0-9a-fA-F.:]*[.:][0-9a-fA-F.:]+/\d+")


@dataclass(frozen=True)
class Leftover:
    """Something of flannel's, and how it is removed."""

    what: str
    remove: Callable[[], object]


def leftovers(networks: Iterable[Network], iptables: Iterable[Iptables]) -> list[Leftover]:
    """Flannel's rules that act on these networks."""
    ours = tuple(networks)
    found = [one for engine in iptables for version in PREFIXES for one in _of_iptables(engine, version, ours)]
    return found + (list(_of_nft(ours)) if nft.available() else [])


def _of_iptables(iptables: Iptables, version: int, ours: tuple[Network, ...]) -> Iterator[Leftover]:
    for table, parent, chain, comment in CHAINS:
        exists, rules = bool(lines := iptables.chain(version, table, chain)), lines[1:]
        outside = [line for line in iptables.chain(version, table, parent)
                   if jumps_to(line, chain) or (f'"{comment}"' in line and _about(line, ours))]
        others = [line for line in rules if _networks(line) and not _about(line, ours)]
        name = f"{iptables.name.replace('iptables', PREFIXES[version])} chain {chain}"
        if exists and not others:
            yield Leftover(name, partial(iptables.restore, version, dropping(table, chain, outside)))
            continue
        about = [line for line in (*rules, *outside) if _about(line, ours)]
        if about:
            yield Leftover(f"{name}: {len(about)} rules of {table}" if exists else f"{len(about)} rules of {parent}",
                           partial(iptables.restore, version, deleting(table, about)))


def _of_nft(ours: tuple[Network, ...]) -> Iterator[Leftover]:
    for family, table in TABLES:
        text = answer("nft", "-s", "list", "table", family, table)
        # One that has no rule is flannel's too: it makes both tables, and fills that of the family it has.
        if text and (_about(text, ours) or not _networks(text)):
            yield Leftover(f"nft table {family} {table}", partial(run, "nft", "delete", "table", family, table))


def _networks(text: str) -> list[Network]:
    """The networks that rules name, those of multicast left out."""
    named = (ip_network(word, strict=False) for word in ADDRESS.findall(text))
    return [network for network in named if network not in MULTICAST.values()]


def _about(text: str, ours: tuple[Network, ...]) -> bool:
    return any(one.version == other.version and one.overlaps(other)
               for one in _networks(text) for other in ours)
