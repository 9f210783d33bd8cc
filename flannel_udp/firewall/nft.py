"""nftables: one table of our own, put in place by one transaction, so that no packet ever meets half of it.

It masquerades only. That a chain of ours accepts a packet would mean nothing: each table judges for itself, and one
that drops has the last word (forwarding.py).
"""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

from flannel_udp.firewall.command import answer, found, run
from flannel_udp.firewall.rules import KUBE_PROXY_MARK, End, Names, Rules, masquerade_rules

# Specification: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN, NFT_MSG_GETGEN, NFTA_GEN_ID = 10, 15, 16, 1
NETLINK_NETFILTER, NLM_F_REQUEST = 12, 1  # linux/netlink.h
WORDS = {4: "ip", 6: "ip6"}


class Nft:
    """The rules in the table `inet flannel_udp`."""

    name = "nft"

    def __init__(self, names: Names) -> None:
        self.place = f"table inet {names.table}"
        self._table = names.table

    def apply(self, rules: Rules) -> None:
        """Put the table in the place of what was there."""
        # `table` first: without it there may be nothing to delete, which would be an error.
        text = f"table inet {self._table}\ndelete table inet {self._table}\n"
        run("nft", "-f", "-", text=text + (self._body(rules) if rules.masquerade else ""))

    def state(self) -> list[str]:
        """The rules as they stand, to be compared; empty when there are none."""
        lines = answer("nft", "-s", "list", "table", "inet", self._table).splitlines()
        return [line for line in lines if any(word in line for word in ("hook", "return", "masquerade"))]

    def size(self, rules: Rules) -> int:
        """How many lines state() has when all stand."""
        return 1 + len(_lines(rules)) if rules.masquerade else 0

    def remove(self) -> list[str]:
        """Delete the table; what was deleted."""
        if self._table not in tables_of_ours():
            return []
        run("nft", "delete", "table", "inet", self._table)
        return [f"nft {self.place}"]

    def _body(self, rules: Rules) -> str:
        hook = "type nat hook postrouting priority srcnat; policy accept;"
        return f"table inet {self._table} {{\nchain postrouting {{\n{hook}\n" + "\n".join(_lines(rules)) + "\n}\n}\n"


def _lines(rules: Rules) -> list[str]:
    masquerade = "masquerade fully-random" if rules.fully_random else "masquerade"
    return list(dict.fromkeys(  # the mark's rule is the same for both families
        f"{_ends(rule.source, rule.destination)} {masquerade if rule.masquerade else 'return'}"
        for overlay in rules.overlays for rule in masquerade_rules(overlay)))


def _ends(source: End | None, destination: End | None) -> str:
    if source is None or destination is None:
        return f"meta mark & {KUBE_PROXY_MARK:#x} == {KUBE_PROXY_MARK:#x}"
    word = WORDS[source.network.version]
    return " ".join(f"{word} {field} {'' if end.inside else '!= '}{end.network}"
                    for field, end in (("saddr", source), ("daddr", destination)))


def available() -> bool:
    """Whether nft is here."""
    return found("nft")


def base_chains(hook: str) -> list[dict[str, Any]]:
    """The chains of all tables that the kernel calls at a hook, as nft's JSON describes them, without their rules."""
    said = json.loads(answer("nft", "-j", "list", "chains") or '{"nftables": []}')
    return [item["chain"] for item in said["nftables"] if item.get("chain", {}).get("hook") == hook]


def chain_rules(family: str, table: str, chain: str) -> Iterator[list[dict[str, Any]]]:
    """The rules of a chain, each as its list of JSON expressions."""
    said = json.loads(answer("nft", "-j", "list", "chain", family, table, chain) or '{"nftables": []}')
    return (item["rule"]["expr"] for item in said["nftables"] if "rule" in item)


def tables_of_ours() -> set[str]:
    """The names of the tables of all daemons of this kind that ever ran here."""
    lines = answer("nft", "list", "tables").splitlines()
    return {line.split()[2] for line in lines if line.startswith("table inet flannel_udp")}


def generation() -> int | None:
    """A number of the kernel's that changes with every change of any nft rule, iptables-nft's too; None if not told."""
    with contextlib.suppress(OSError, struct.error), \
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as asked:
        asked.settimeout(1.0)
        body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        asked.sendto(struct.pack("=IHHII", 16 + len(body), NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_REQUEST,
                                 1, 0) + body, (0, 0))
        reply = asked.recv(4096)
        kind, = struct.unpack_from("=H", reply, 4)
        length, attribute = struct.unpack_from("=HH", reply, 20)
        if (kind, attribute, length) == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN, NFTA_GEN_ID, 8):
            return int.from_bytes(reply[24:28], "big")
    return None
