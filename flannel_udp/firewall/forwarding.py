"""Who on this host has the last word on a forwarded packet: every base chain at the kernel's forward hook has it.

An accept ends the judgement of one chain only, a drop that of all. So rules of ours help against iptables' FORWARD
chain alone, which they can be put into. A table of somebody else's that drops is not ours to change: it is named, with
the remedy.
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flannel_udp.firewall import nft
from flannel_udp.firewall.command import answer
from flannel_udp.firewall.iptables import PREFIXES, Iptables, jumps_to
from flannel_udp.link import Network

# Rules without a condition, after which nothing passes.
END = re.compile(r'-A FORWARD (-m comment --comment ("[^"]*"|\S+) )?-j (DROP|REJECT\b.*)')
FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}


@dataclass(frozen=True)
class Gate:
    """A chain that drops what it does not accept before."""

    place: str
    versions: tuple[int, ...]
    reason: str
    accepted: str
    """The text in which an accept for our network would have to stand."""
    remedy: str
    """A command for either direction, with {side} and {network}."""
    iptables: Iptables | None = None
    """Whose FORWARD chain this is, where it is."""
    by_policy: bool = True

    def obstacle(self, network: Network, chain: str) -> str:
        """A line for the user if packets of this network end here; `chain` is ours in iptables."""
        if network.version not in self.versions:
            return ""
        for line in self.accepted.splitlines():
            if jumps_to(line, chain) or (str(network) in line and (self.iptables is None or "ACCEPT" in line)):
                return ""
        both = " and ".join(self.remedy.format(side=side, network=network, word=nft.WORDS[network.version])
                            for side in ("s", "d"))
        return f"{self.place} drops forwarded packets {self.reason}, those of {network} too: {both}"


def gates(iptables: Iterable[Iptables]) -> list[Gate]:
    """The chains of this host that drop, with or without exceptions."""
    known = list(iptables)
    seen = set() if all(one.legacy for one in known) else {("ip", "filter", "FORWARD"), ("ip6", "filter", "FORWARD")}
    return [*(gate for one in known for gate in _iptables_gates(one)), *_nft_gates(seen)]


def _iptables_gates(iptables: Iptables) -> Iterator[Gate]:
    for version, prefix in PREFIXES.items():
        lines = iptables.chain(version, "filter", "FORWARD")
        end = next((index for index, line in enumerate(lines) if END.fullmatch(line)), None)
        dropping = lines[:1] == ["-P FORWARD DROP"]
        if end is None and not dropping:
            continue
        program = iptables.name.replace("iptables", prefix)
        reason = "by its policy" if end is None else f'by the rule "{lines[end]}"'
        yield Gate(f"the FORWARD chain of {program}", (version,), reason, "\n".join(lines[:end]),
                   f"{program} -I FORWARD -{{side}} {{network}} -j ACCEPT", iptables, end is None)


def _nft_gates(seen: Container[tuple[str, str, str]]) -> Iterator[Gate]:
    """Of all tables but those `seen` through iptables-nft, which keeps its rules in tables of nft's."""
    for chain in nft.base_chains("forward"):
        family, table, name = chain["family"], chain["table"], chain["name"]
        if family not in FAMILIES or (family, table, name) in seen:
            continue
        if chain.get("policy") == "drop":
            reason = "by its policy"
        elif _ends_with_drop(nft.chain_rules(family, table, name)):
            reason = "by its last rule"
        else:
            continue
        yield Gate(f"the chain {name} of nft's table {family} {table}", FAMILIES[family], reason,
                   answer("nft", "list", "table", family, table),
                   f"nft insert rule {family} {table} {name} {{word}} {{side}}addr {{network}} accept")


def _ends_with_drop(rules: Iterable[list[dict[str, Any]]]) -> bool:
    words = {word for expression in [[], *rules][-1] for word in expression}
    return bool(words & {"drop", "reject"}) and words <= {"drop", "reject", "counter", "log"}
