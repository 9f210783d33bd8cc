"""The node's firewall: masquerade and forward rules, in nft or in iptables, whichever of them decides on this host.

    nft        one table of our own, wherever nothing else is asked for
    iptables   where its FORWARD chain drops by policy, so that only a rule in it lets packets pass; and without nft

Only rules with our names are ever made, changed or removed. What belongs to others and stands in the way is told.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from flannel_udp import logs
from flannel_udp.errors import FirewallError
from flannel_udp.firewall import nft
from flannel_udp.firewall.forwarding import Gate, gates
from flannel_udp.firewall.iptables import installed
from flannel_udp.firewall.rules import Overlay, Rules, names_of

__all__ = ["Firewall", "Overlay", "Rules", "State", "bridge_warning"]

_log = logs.get("firewall")
BRIDGE = {4: Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
          6: Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")}


class Engine(Protocol):
    """Where rules can live: nft.Nft, iptables.Iptables."""

    name: str
    place: str

    def apply(self, rules: Rules) -> None: ...
    def state(self) -> list[str]: ...
    def size(self, rules: Rules) -> int: ...
    def remove(self) -> list[str]: ...


@dataclass(frozen=True)
class State:
    """How the firewall stands."""

    engine: str = "none"
    place: str = ""
    reason: str = ""
    obstacles: tuple[str, ...] = ()
    """Chains of others that drop our packets, a line with the remedy each."""


class Firewall:
    """The rules of one daemon. Every method waits for programs to end; to be used by one thread at a time."""

    def __init__(self, run_dir: Path) -> None:
        self._names = names_of(run_dir)
        self.iptables = installed(self._names)
        self._nft = nft.Nft(self._names) if nft.available() else None
        self._rules: Rules | None = None
        self._engine: Engine | None = None
        self._standing: list[str] | None = []
        """What the engine showed when the rules were made; None where somebody changed them at that very moment."""
        self._seen: int | None = None
        self._refusal = ""
        """Of nft, which is then not asked again."""
        self.state = State()

    def check(self, rules: Rules) -> None:
        """Raise FirewallError if masquerading is wanted and nothing here can do it."""
        if rules.masquerade and not self._engines():
            raise FirewallError("--ip-masq needs nft or iptables, and there is neither: install one (Debian: "
                                "nftables), or start without --ip-masq")

    def assure(self, rules: Rules) -> State:
        """Make the rules stand, wherever this host needs them; cheap where nothing changed since the last time."""
        seen = None if any(one.legacy and one.tables(4) for one in self.iptables) else nft.generation()
        if rules == self._rules and seen is not None and seen == self._seen:
            return self.state
        found = gates(self.iptables)
        engine, reason = self._choose(rules, found)
        if (rules, engine) != (self._rules, self._engine) or (engine and engine.state() != self._standing):
            engine, reason = self._apply(rules, engine, reason)
            found = gates(self.iptables)
        obstacles = tuple(line for gate in found for network in rules.networks()
                          if rules.forward and (line := gate.obstacle(network, self._names.forward)))
        self.state = State(engine.name if engine else "none", engine.place if engine else "", reason, obstacles)
        self._rules, self._engine = rules, engine
        # Of before the look, so that what others changed meanwhile is looked at again; after a change of ours, too.
        self._seen = seen
        return self.state

    def remove(self) -> list[str]:
        """Remove all rules of ours, of this run or an earlier one; what was removed."""
        self._rules = None
        return [line for engine in self._engines() for line in engine.remove()]

    def _engines(self) -> list[Engine]:
        return [*([self._nft] if self._nft else []), *self.iptables]

    def _choose(self, rules: Rules, found: list[Gate]) -> tuple[Engine | None, str]:
        """The engine for these rules on this host, and why."""
        versions = {overlay.version for overlay in rules.overlays}
        if not (rules.masquerade or rules.forward):
            return None, "no rules are wanted"
        if not self._engines():
            return None, "neither nft nor iptables is installed, so forward rules are not set"
        if rules.forward:
            for gate in found:
                if gate.iptables and gate.by_policy and versions & set(gate.versions):
                    return gate.iptables, f"{gate.place} drops {gate.reason}"
        if self._nft is None or self._refusal:
            return self.iptables[0], self._refusal or "nft is not installed"
        if not rules.masquerade:
            return None, "no FORWARD chain of iptables drops, so no rule is needed"
        return self._nft, "no FORWARD chain of iptables asks for a rule" if rules.forward else "no forward rules wanted"

    def _apply(self, rules: Rules, engine: Engine | None, reason: str) -> tuple[Engine | None, str]:
        """Put the rules into the engine, or into iptables where nft refuses; then take them out of the others."""
        again = engine is not None and (rules, engine) == (self._rules, self._engine)
        try:
            self._put(rules, engine)
        except FirewallError as error:
            if engine is not self._nft or not self.iptables:
                raise
            self._refusal = reason = f"nft refuses: {error}"
            engine = self.iptables[0]
            self._put(rules, engine)
        for other in self._engines():
            if other is not engine:
                for line in other.remove():
                    _log.info("rules of an earlier time removed", rules=line)
        if again:
            _log.warning("firewall rules put back: somebody had removed or changed them", engine=engine and engine.name)
        else:
            _log.info("firewall rules", engine=engine.name if engine else "none", reason=reason,
                      place=engine.place if engine else "none", masquerade=rules.masquerade, forward=rules.forward)
        return engine, reason

    def _put(self, rules: Rules, engine: Engine | None) -> None:
        if engine is None:
            self._standing = []
            return
        try:
            engine.apply(rules)
        except FirewallError as error:
            if not (rules.masquerade and rules.fully_random):
                raise
            # iptables before 1.6.2 and old kernels do not know it; whatever else it was is told by the second try.
            engine.apply(replace(rules, fully_random=False))
            _log.info("ports are not chosen fully at random: refused", reason=error)
        state = engine.state()
        self._standing = state if len(state) == engine.size(rules) else None


def bridge_warning(state: State, version: int) -> str:
    """A line where rules live in iptables and packets between ports of one bridge do not meet it; empty otherwise."""
    if not state.engine.startswith("iptables"):
        return ""
    try:
        if int(BRIDGE[version].read_text()) == 1:
            return ""
        said = f"net.bridge.{BRIDGE[version].name} is 0"
    except (OSError, ValueError):
        said = "the module br_netfilter is not loaded"
    return (f"{said}, so packets between two pods on one bridge do not pass iptables, and Kubernetes' Services between "
            f"them fail: modprobe br_netfilter, and sysctl -w net.bridge.{BRIDGE[version].name}=1")
