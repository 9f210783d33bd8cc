"""One fault struck and measured; the table of many."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .kinds import Fault
    from .world import World


@dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    name: str
    limit: float
    seconds: float
    """From the strike until everything was as before."""
    sent: int
    lost: int
    applied: float
    """Seconds from the first write that etcd took until the last daemon had the route."""
    wrong: tuple[str, ...]
    doubles: int
    lines: int
    """Of the daemon that said most."""
    cpu: tuple[float, ...]
    """Parts of a core, of each daemon, while etcd was away."""


def strike(world: World, fault: Fault, seconds: float) -> Outcome:
    """Do it, let it last, mend it, and see that everything is as before."""
    print(f"{time.strftime('%T')} {world.kind}: {fault.name}", file=sys.stderr, flush=True)
    begin, sent, before = time.monotonic(), world.traffic.sent, [lines(world, n) for n in range(len(world.daemons))]
    world.cpu.clear()
    world.wrong.clear()
    fault.strike(world, seconds)
    applied = world.seconds_to_apply()
    world.settle()
    said = [lines(world, number) - start for number, start in enumerate(before)]
    lost, doubles = world.traffic.lost(), world.doubles()
    outcome = Outcome(fault.name, fault.limit, time.monotonic() - begin, world.traffic.sent - sent, lost, applied,
                      tuple(sorted(world.wrong)), doubles, max(said), tuple(world.cpu))
    print(outcome, file=sys.stderr, flush=True)
    return outcome


def lines(world: World, number: int) -> int:
    """What a daemon has said until now."""
    return world.daemons[number].log().count("\n")


@dataclass
class Row:
    """All outcomes of one kind of fault."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        of = self.outcomes
        applied = sorted(outcome.applied for outcome in of)
        cpu = [part for outcome in of for part in outcome.cpu]
        minutes = [max(1.0, outcome.seconds / 60) for outcome in of]
        return (
            self.name, f"{len(of)}", f"{sum(outcome.sent for outcome in of):,}", f"{sum(o.lost for o in of)}",
            f"{sum(len(o.wrong) for o in of)}", f"{sum(o.doubles for o in of)}",
            f"{applied[len(applied) // 2]:.2f}", f"{applied[-1]:.2f}", f"{max(outcome.limit for outcome in of):.0f}",
            f"{100 * sum(cpu) / len(cpu):.2f} / {100 * max(cpu):.2f}" if cpu else "-",
            f"{max(o.lines / minute for o, minute in zip(of, minutes, strict=True)):.0f}",
        )


HEAD = ("fault", "times", "sent", "lost", "wrong routes", "double subnets", "applied, median s", "most s", "limit s",
        "CPU %, mean / most", "log lines a minute")


def table(outcomes: Iterable[Outcome]) -> str:
    """A Markdown table: one row for each kind of fault, one for all."""
    rows: dict[str, Row] = {}
    everything = list(outcomes)
    for outcome in everything:
        rows.setdefault(outcome.name, Row(outcome.name)).outcomes.append(outcome)
    told = [HEAD, *(row.cells() for row in rows.values()), Row("all", everything).cells()]
    widths = [max(len(row[column]) for row in told) for column in range(len(HEAD))]
    drawn = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in told]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]])


def faults_of(outcomes: Iterable[Outcome], most_cpu: float = 0.01, most_lines: int = 10) -> list[str]:
    """What is not as it should be, a line for each. CPU counts by kind of fault: the kernel counts it in ticks."""
    found = []
    cpu: dict[str, list[float]] = {}
    for outcome in outcomes:
        cpu.setdefault(outcome.name, []).extend(outcome.cpu)
        checks = {
            f"{outcome.lost} of {outcome.sent} datagrams lost": outcome.lost,
            f"wrong routes: {', '.join(outcome.wrong)}": outcome.wrong,
            f"{outcome.doubles} subnets leased twice": outcome.doubles,
            f"a change was applied after {outcome.applied:.1f} s, not {outcome.limit:.0f}":
                outcome.applied > outcome.limit,
            f"{outcome.lines} lines in the log": outcome.lines > most_lines * max(1.0, outcome.seconds / 60),
        }
        found += [f"{outcome.name}: {text}" for text, bad in checks.items() if bad]
    means = {name: sum(parts) / len(parts) for name, parts in cpu.items() if parts}
    return found + [f"{name}: {100 * mean:.1f} % of a core without etcd" for name, mean in means.items()
                    if mean > most_cpu]
