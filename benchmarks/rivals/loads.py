"""The loads: each puts traffic through one contender for some seconds and returns what was measured.

Every result has `cpu` (seconds that all processors worked, from /proc/stat) and `steal`; the rest is by kind:
TCP `gbps` and `retransmits`, UDP `pps`, `sent_pps` and `lost` (a part of 1), request-response `p50`, `p99` and `p999`
in microseconds.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rivals.contenders import Contender, wait_until
from benchmarks.rivals.places import Cable, cpu_seconds
from tests.netns.topology import Node

TRAFFIC = Path(__file__).with_name("traffic.py")
IPERF_PORT, PORT = 5201, 5300
TRIES = 10
Sample = dict[str, Any]


class Failed(Exception):
    """A load did not run; the round goes on without it, and the report says so."""


def start_server(cable: Cable) -> None:
    """Start the iperf3 server that all TCP loads talk to, on node 2."""
    cable.two.start("iperf3", "--server", "--port", f"{IPERF_PORT}", output=subprocess.DEVNULL)
    listening = f":{IPERF_PORT} "
    wait_until(lambda: listening in cable.two.run("ss", "-Hltn").stdout, "iperf3 listens")


def tcp(contender: Contender, seconds: float, flows: int, direction: str) -> Sample:
    """Bulk TCP from node 1 to node 2 ("out"), back ("in") or both ways at once ("both")."""
    how = {"out": [], "in": ["--reverse"], "both": ["--bidir"]}[direction]
    command = ["iperf3", "--client", f"{contender.target}", "--port", f"{IPERF_PORT}", "--json", *how]
    command += ["--time", f"{max(1, round(seconds))}", "--parallel", f"{flows}"]
    for _ in range(TRIES):
        done = contender.cable.one.run(*command, check=False, deadline=seconds + 30)
        if "server is busy" not in done.stdout:  # with the end of the measurement before
            break
        time.sleep(0.2)
    try:
        end = json.loads(done.stdout)["end"]
        received = [end["sum_received"], *([end["sum_received_bidir_reverse"]] if direction == "both" else [])]
        sent = end["sum_sent"]
    except (KeyError, ValueError) as error:
        raise Failed(f"iperf3: {done.stdout[-200:]} {done.stderr}") from error
    bits = sum(one["bytes"] * 8 for one in received)
    return {"gbps": bits / received[0]["seconds"] / 1e9, "gigabits": bits / 1e9, "retransmits": sent["retransmits"]}


def udp(contender: Contender, seconds: float, size: int) -> Sample:
    """Datagrams of `size` bytes, sent as fast as the socket takes them, counted where they arrive."""
    told, sent = _pair(contender, "sink", "flood", size, seconds)
    pps = told["received"] / told["seconds"]
    sent_pps = sent["sent"] / sent["seconds"]
    return {"pps": pps, "sent_pps": sent_pps, "lost": max(0.0, 1 - pps / sent_pps), "packets": pps * seconds}


def ask(contender: Contender, seconds: float, size: int, *, apart: bool) -> Sample:
    """One datagram there, one back, and the next; `apart`: the two ends on different processors, as on two hosts."""
    _, told = _pair(contender, "echo", "ask", size, seconds, _two_processors() if apart else [])
    if "p50" not in told:
        raise Failed("no answer came")
    return told


def _two_processors() -> list[str]:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Failed("two processors are needed")
    return [f"{usable[0]}", f"{usable[1]}"]


def _pair(
    contender: Contender, there: str, here: str, size: int, seconds: float, pinned: Sequence[str] = ()
) -> tuple[Sample, Sample]:
    """Run the two roles of traffic.py at the two nodes, each on its processor; return what each told."""
    options = (f"{contender.target}", f"{PORT}", f"{size}")
    cable = contender.cable
    first = _start(cable.two, there, *options, f"{seconds}", *pinned[:1])
    longer = 0.5 if there == "sink" else 0.0
    second = _start(cable.one, here, *options, f"{seconds + longer}", *pinned[1:])
    try:
        told = [json.loads(process.communicate(timeout=seconds + 20)[0]) for process in (first, second)]
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{there}/{here} through {contender.name}: {error}") from error
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    return told[0], told[1]


def _start(node: Node, *options: str) -> subprocess.Popen[str]:
    process = node.start(sys.executable, "-I", f"{TRAFFIC}", *options, output=subprocess.PIPE)
    assert process.stdout
    if process.stdout.readline() != "ready\n":
        raise Failed(f"{node.name}: {options[0]} did not start")
    return process


LOADS: dict[str, Callable[[Contender, float], Sample]] = {
    **{
        f"tcp-{flows}" + ("" if direction == "out" else f"-{direction}"): partial(tcp, flows=flows, direction=direction)
        for direction in ("out", "in", "both")
        for flows in (1, 4, 16)
    },
    **{f"udp-{size}": partial(udp, size=size) for size in (64, 512, 1400)},
    "ask": partial(ask, size=64, apart=False),
    "ask-apart": partial(ask, size=64, apart=True),
}


def measure(load: str, contender: Contender, seconds: float) -> Sample:
    """Run one load; add the CPU of the whole machine and the contender's own counters."""
    before, (cpu, steal) = contender.counters(), cpu_seconds()
    sample = LOADS[load](contender, seconds)
    cpu_after, steal_after = cpu_seconds()
    sample |= {"cpu": cpu_after - cpu, "steal": steal_after - steal}
    if "gigabits" in sample:
        sample["cpu_per_gb"] = sample["cpu"] / sample["gigabits"]
    if "packets" in sample:
        sample["cpu_per_mpps"] = sample["cpu"] / (sample["packets"] / 1e6)
    return sample | _own(before, contender.counters())


def _own(before: Sample, after: Sample) -> Sample:
    """Return datagrams per message out of node 1, packets per frame into node 2, and what else was counted."""
    if not after:
        return {}
    grown = {
        (node, way): {name: after[node][way][name] - before[node][way].get(name, 0) for name in after[node][way]}
        for node in after
        for way in ("out", "in")
    }
    out, into = grown["node1", "out"], grown["node2", "in"]
    usual = {"packets", "sent", "delivered", "frames", "messages", "super_packets", "batches", "wake_ups"}
    others = {f"{node} {way} {name}": count for (node, way), counts in grown.items() for name, count in counts.items()
              if count and name not in usual}  # fmt: skip
    return {
        "datagrams_per_message": out.get("sent", 0) / max(1, out.get("messages", 0)),
        "packets_per_frame": into.get("delivered", 0) / max(1, into.get("frames", 0)),
        "other_counters": others,
    }
