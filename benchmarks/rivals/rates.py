"""The highest rate of datagrams at which less than one in a thousand is lost: a bounded search over offered rates."""

import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.rivals.contenders import Contender
from benchmarks.rivals.contenders.base import ask
from benchmarks.rivals.datagrams import PORT, role
from benchmarks.rivals.places import cpu_seconds
from benchmarks.rivals.sample import Failed, Sample

ALLOWED = 0.001
# Steps of the search, and of the confirmation that follows it, each of which goes back so far.
STEPS, CONFIRMATIONS, BACK = 9, 8, 0.85
# The search ends when the lowest rate known to lose too much is no further above the best one.
CLOSE = 1.05
# Seconds: below, the rate at which one in a thousand is lost cannot be told from chance.
SHORTEST = 0.2
LIFETIME = 120.0


@dataclass(frozen=True)
class Trial:
    """What came of one offered rate: datagrams a second, and the part of them that was lost."""

    sent_pps: float
    pps: float
    lost: float

    @property
    def passed(self) -> bool:
        return self.lost < ALLOWED


def search(attempt: Callable[[float], Trial]) -> Trial:
    """Return the best trial that passed; attempt(0) is to send as fast as it can."""
    top = attempt(0)
    if top.passed:
        return top
    best, high, offered = None, top.sent_pps, top.pps
    for _ in range(STEPS):
        trial = attempt(offered)
        if trial.passed and (best is None or trial.sent_pps > best.sent_pps):
            best = trial
        elif not trial.passed:
            high = min(high, offered)
        if best and high <= best.sent_pps * CLOSE:
            break
        offered = math.sqrt(best.sent_pps * high) if best else offered * 0.6
    if best is None:
        raise Failed(f"{offered / 0.6:.0f} datagrams a second, the fewest tried, still lost more than {ALLOWED:.1%}")
    return best


def confirm(attempt: Callable[[float], Trial], found: Trial) -> Trial:
    """Offer the found rate once more, for longer; if that fails lower ones, step by step."""
    offered = found.sent_pps
    for _ in range(CONFIRMATIONS):
        trial = attempt(offered)
        if trial.passed:
            return trial
        offered *= BACK
    raise Failed(f"no rate from {found.sent_pps:.0f} down to {offered / BACK:.0f} a second held for longer")


class Line:
    """A paced sender on node 1, a counting receiver on node 2."""

    def __init__(self, contender: Contender, size: int) -> None:
        options = (f"{contender.target}", f"{PORT}", f"{size}", f"{LIFETIME}")
        self._receiver = role(contender.cable.two, "tally", *options)
        try:
            self._sender = role(contender.cable.one, "pace", *options)
        except Failed:
            self._end(self._receiver)
            raise

    def attempt(self, rate: float, seconds: float) -> Trial:
        """Offer a rate, and wait until the traffic rests."""
        before = self._received()
        sent = json.loads(ask(self._sender, f"{rate} {seconds}\n"))
        received = self._at_rest(before + sent["sent"]) - before
        lost = 1 - received / sent["sent"] if sent["sent"] else 1.0
        return Trial(sent["sent"] / sent["seconds"], received / sent["seconds"], max(0.0, lost))

    def _received(self) -> int:
        return int(json.loads(ask(self._receiver, "\n"))["received"])

    def _at_rest(self, all_of_them: int) -> int:
        """Return the receiver's count once all are there, or it has not changed for three looks."""
        seen, same = self._received(), 0
        while seen < all_of_them and same < 3:
            time.sleep(0.02)
            now = self._received()
            same = same + 1 if now == seen else 0
            seen = now
        return seen

    def close(self) -> None:
        for process in (self._sender, self._receiver):
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        with process:
            pass


def rate(contender: Contender, seconds: float, size: int) -> Sample:
    """Search with short trials, then confirm with one of a third of the time, whose figures count."""
    line = Line(contender, size)
    try:
        found = search(lambda offered: line.attempt(offered, max(SHORTEST, seconds / 12)))
        length = max(SHORTEST, seconds / 3)
        cpu: list[tuple[float, float]] = []

        def attempt(offered: float) -> Trial:
            cpu[:] = [cpu_seconds()]
            trial = line.attempt(offered, length)
            cpu.append(cpu_seconds())
            return trial

        held = confirm(attempt, found)
    finally:
        line.close()
    (busy, steal), (busy_after, steal_after) = cpu
    return {"pps": held.pps, "sent_pps": held.sent_pps, "lost": held.lost, "packets": held.pps * length,
            "cpu": busy_after - busy, "steal": steal_after - steal}  # fmt: skip
