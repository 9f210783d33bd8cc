"""iptables: two chains of our own and a jump to each, put in place by iptables-restore, one transaction per table.

There are two of it, which do not see each other's rules: iptables-nft keeps them in nftables, iptables-legacy in tables
of its own. The jumps are appended, as flannel's: what stands before them, such as a network policy's drop, still
decides.
"""

from pathlib import Path
from typing import Literal

from flannel_udp.firewall.command import answer, found, run
from flannel_udp.firewall.rules import COMMENT, KUBE_PROXY_MARK, End, Names, Rules, masquerade_rules

Variant = Literal["", "-nft", "-legacy"]
"""The word after `iptables` in the names of the programs; nothing is what the host chose as `iptables`."""

LOCK = "5"  # our choice, in seconds: how long another iptables is waited for
PREFIXES = {4: "iptables", 6: "ip6tables"}
# Tables that exist in this network namespace. To ask iptables-legacy itself would make them.
LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}


class Iptables:
    """The rules in chains of iptables and ip6tables."""

    def __init__(self, names: Names, variant: Variant, *, legacy: bool) -> None:
        self.name = f"iptables{variant}"
        self.place = f"chains {names.postrouting} and {names.forward}"
        self.legacy = legacy
        """Whether this one keeps its rules in tables of its own, which no nft shows."""
        self._variant = variant
        self._names = names

    def apply(self, rules: Rules) -> None:
        """Put the chains in the place of what was there, in each family; what is not wanted goes."""
        for version in PREFIXES:
            wanted = self._wanted(version, rules)
            if not wanted and not self.tables(version):
                continue
            text = "".join(self._section(version, table, wanted.get(table)) for table in ("nat", "filter"))
            if text:
                self.restore(version, text)

    def state(self) -> list[str]:
        """The rules as they stand, to be compared; empty when there are none."""
        return [line for version in PREFIXES for table in ("nat", "filter")
                for line in self._standing(version, table)]

    def size(self, rules: Rules) -> int:
        """How many lines state() has when all stand: the chain's making, its rules, the jump."""
        return sum(2 + len(lines) for version in PREFIXES for lines in self._wanted(version, rules).values())

    def remove(self) -> list[str]:
        """Delete chains and jumps; what was deleted."""
        gone = [f"{self._program(version)} chain {self._chains(table)[1]}" for version in PREFIXES
                for table in ("nat", "filter") if self._standing(version, table)]
        if gone:
            self.apply(Rules())
        return gone

    def tables(self, version: int) -> set[str]:
        """The tables of a family that may be asked for without being made by that."""
        if not found(self._program(version)):
            return set()
        if not self.legacy:
            return {"nat", "filter"}
        try:
            return set(LEGACY_TABLES[version].read_text().split())
        except OSError:
            return set()

    def chain(self, version: int, table: str, chain: str) -> list[str]:
        """A chain as `iptables -S` shows it, first its policy or its making; nothing where it does not exist."""
        if table not in self.tables(version):
            return []
        return answer(self._program(version), "-w", LOCK, "-t", table, "-S", chain).splitlines()

    def restore(self, version: int, text: str) -> None:
        """Change tables by lines of iptables-restore; rules that these do not name stay."""
        run(f"{self._program(version)}-restore", "--noflush", "-w", LOCK, text=text)

    def _program(self, version: int) -> str:
        return f"{PREFIXES[version]}{self._variant}"

    def _chains(self, table: str) -> tuple[str, str, str]:
        """The chain of the system that jumps, ours that it jumps to, and the comment of both."""
        if table == "nat":
            return "POSTROUTING", self._names.postrouting, COMMENT["masquerade"]
        return "FORWARD", self._names.forward, COMMENT["forward"]

    def _standing(self, version: int, table: str) -> list[str]:
        """What is there of ours in a table: the chain, and the jumps to it."""
        ours = self.chain(version, table, self._chains(table)[1])
        return [*ours, *self._jumps(version, table)] if ours else []

    def _jumps(self, version: int, table: str) -> list[str]:
        parent, chain, _ = self._chains(table)
        return [line for line in self.chain(version, table, parent) if jumps_to(line, chain)]

    def _wanted(self, version: int, rules: Rules) -> dict[str, list[str]]:
        """By table, the rules of our chain."""
        overlays = [overlay for overlay in rules.overlays if overlay.version == version]
        wanted = {}
        if overlays and rules.masquerade:
            verdict = "MASQUERADE --random-fully" if rules.fully_random else "MASQUERADE"
            wanted["nat"] = [f"{_ends(rule.source, rule.destination)} -j {verdict if rule.masquerade else 'RETURN'}"
                             for overlay in overlays for rule in masquerade_rules(overlay)]
        if overlays and rules.forward:
            wanted["filter"] = [f"{side} {overlay.network} -j ACCEPT" for overlay in overlays for side in ("-s", "-d")]
        return wanted

    def _section(self, version: int, table: str, wanted: list[str] | None) -> str:
        """One table's lines for iptables-restore; none where there is nothing to do."""
        parent, chain, comment = self._chains(table)
        jumps = self._jumps(version, table)
        if not wanted:
            return dropping(table, chain, jumps) if self.chain(version, table, chain) else ""
        said = f'-m comment --comment "{comment}"'
        # To name the chain makes it, or empties it. A jump that stands keeps its place among those of others.
        jump = [] if len(jumps) == 1 else [*map(_deletion, jumps), f"-A {parent} {said} -j {chain}"]
        return _transaction(table, [f":{chain} - [0:0]", *(f"-A {chain} {said} {rule}" for rule in wanted), *jump])


def dropping(table: str, chain: str, jumps: list[str]) -> str:
    """Lines for iptables-restore that delete a chain and the rules of other chains that belong to it."""
    return _transaction(table, [f":{chain} - [0:0]", *map(_deletion, jumps), f"-X {chain}"])


def deleting(table: str, rules: list[str]) -> str:
    """Lines for iptables-restore that delete single rules, given as `iptables -S` shows them."""
    return _transaction(table, list(map(_deletion, rules)))


def jumps_to(line: str, chain: str) -> bool:
    """Whether a rule as `iptables -S` shows it jumps to a chain."""
    return line.endswith(f" -j {chain}")


def _deletion(line: str) -> str:
    return f"-D{line.removeprefix('-A')}"


def _transaction(table: str, lines: list[str]) -> str:
    return "\n".join([f"*{table}", *lines, "COMMIT", ""])


def _ends(source: End | None, destination: End | None) -> str:
    if source is None or destination is None:
        return f"-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x}"
    return " ".join(f"{'' if end.inside else '! '}{flag} {end.network}"
                    for flag, end in (("-s", source), ("-d", destination)))


def installed(names: Names) -> list[Iptables]:
    """Those that can be used here: the host's own choice, and the other where its programs are installed too."""
    if not found("iptables", "iptables-restore"):
        return []
    legacy = "(legacy)" in answer("iptables", "--version")
    other: Variant = "-nft" if legacy else "-legacy"
    both = [Iptables(names, "", legacy=legacy), Iptables(names, other, legacy=not legacy)]
    return both if found(f"iptables{other}", f"iptables{other}-restore") else both[:1]
