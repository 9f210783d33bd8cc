"""Datagrams at full rate, and request-response: two roles of traffic.py, one at either node."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

from benchmarks.rivals import bulk
from benchmarks.rivals.contenders import Contender
from benchmarks.rivals.sample import Failed, Sample
from benchmarks.rivals.traffic import FLOWS
from tests.netns.topology import Node

TRAFFIC = Path(__file__).with_name("traffic.py")
PORT = 5300


def flood(contender: Contender, seconds: float, size: int) -> Sample:
    """Datagrams of `size` bytes, sent as fast as the socket takes them, counted where they arrive."""
    return _counted(pair(contender, "sink", "flood", size, seconds), seconds)


def _counted(both: tuple[Sample, Sample], seconds: float) -> Sample:
    """Return what came of datagrams at full rate, from what receiver and sender tell."""
    told, sent = both
    pps = told["received"] / told["seconds"]
    sent_pps = sent["sent"] / sent["seconds"]
    return {"pps": pps, "sent_pps": sent_pps, "lost": max(0.0, 1 - pps / sent_pps), "packets": pps * seconds}


def fan(contender: Contender, seconds: float, size: int) -> Sample:
    """The same in so many flows as traffic.py has, one datagram of each in turn, to addresses side by side."""
    anywhere = f"{ip_network((contender.target, 0), strict=False)[0]}"
    bits = contender.target.max_prefixlen
    several = ip_network((contender.target, bits - (FLOWS - 1).bit_length()))
    contender.cable.two.ip(f"route replace local {several} dev lo")
    try:
        return _counted(pair(contender, "sink", "fan", size, seconds, at=anywhere), seconds)
    finally:
        contender.cable.two.ip(f"route del local {several} dev lo")


def ask(contender: Contender, seconds: float, *, apart: bool = False, size: int = 64) -> Sample:
    """One datagram there, one back, and the next; `apart`: the two ends on different processors, as on two hosts."""
    _, told = pair(contender, "echo", "ask", size, seconds, _two_processors() if apart else [])
    if "p50" not in told:
        raise Failed("no answer came")
    return told


def ask_under_load(contender: Contender, seconds: float) -> Sample:
    """The same while one TCP flow goes the way of the questions as fast as it can."""
    with bulk.meanwhile(contender, seconds) as flow:
        told = ask(contender, seconds)
        return told | {"gbps": flow.result()["gbps"]}


def _two_processors() -> list[str]:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Failed("two processors are needed")
    return [f"{usable[0]}", f"{usable[1]}"]


def pair(
    contender: Contender, there: str, here: str, size: int, seconds: float, pinned: Sequence[str] = (), *, at: str = ""
) -> tuple[Sample, Sample]:
    """Run the two roles of traffic.py at the two nodes, each on its processor; return what each told.

    The one there listens `at` an address, the contender's target if none is given.
    """
    options = (f"{PORT}", f"{size}")
    cable = contender.cable
    longer = 0.5 if there == "sink" else 0.0
    processes = []
    try:
        processes.append(role(cable.two, there, at or f"{contender.target}", *options, f"{seconds}", *pinned[:1]))
        processes.append(role(cable.one, here, f"{contender.target}", *options, f"{seconds + longer}", *pinned[1:]))
        told = [json.loads(process.communicate(timeout=seconds + 20)[0]) for process in processes]
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{there}/{here} through {contender.name}: {error}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return told[0], told[1]


def role(node: Node, *options: str) -> subprocess.Popen[str]:
    """Start traffic.py in a role; it can be asked, and is ready."""
    with node.entered():
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-I", f"{TRAFFIC}", *options], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    assert process.stdout
    said = process.stdout.readline()
    if said != "ready\n":
        process.kill()
        raise Failed(f"{node.name}: {options[0]} did not start: {said}{process.communicate()[0]}")
    return process
