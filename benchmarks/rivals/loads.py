"""The loads: each puts traffic through one contender for some seconds and returns what was measured.

Every result has `cpu` (seconds that all processors worked, from /proc/stat) and `steal`; the rest is by kind, in units
without prefixes but for times in microseconds:

  tcp, bulk.py          gbps, retransmits
  udp, datagrams.py     pps, sent_pps, lost (a part of 1)
  flows, datagrams.py   the same, of 16 flows in turn
  rate, rates.py        the same, at the highest rate that loses less than one in a thousand
  ask, datagrams.py     p50, p99, p999
  start, footprint.py   start (seconds), memory in MiB; no traffic through the contender that stands
"""

from collections.abc import Callable
from functools import partial

from benchmarks.rivals import drops
from benchmarks.rivals.bulk import tcp
from benchmarks.rivals.contenders import Contender
from benchmarks.rivals.datagrams import ask, ask_under_load, fan, flood
from benchmarks.rivals.places import cpu_seconds
from benchmarks.rivals.rates import rate
from benchmarks.rivals.sample import Sample

SIZES = (64, 512, 1400)
LOADS: dict[str, Callable[[Contender, float], Sample]] = {
    **{
        f"tcp-{flows}" + ("" if direction == "out" else f"-{direction}"): partial(tcp, flows=flows, direction=direction)
        for direction in ("out", "in", "both")
        for flows in (1, 4, 16)
    },
    **{f"udp-{size}": partial(flood, size=size) for size in SIZES},
    **{f"flows-{size}": partial(fan, size=size) for size in SIZES},
    **{f"rate-{size}": partial(rate, size=size) for size in SIZES},
    "ask": ask,
    "ask-apart": partial(ask, apart=True),
    "ask-loaded": ask_under_load,
}


def measure(load: str, contender: Contender, seconds: float) -> Sample:
    """Run one load; add the CPU of the whole machine, what the kernel dropped, and the contender's own counters."""
    own, kernel, (cpu, steal) = contender.counters(), drops.counts(contender.cable), cpu_seconds()
    sample = LOADS[load](contender, seconds)
    cpu_after, steal_after = cpu_seconds()
    if "cpu" not in sample:  # a search tells it of its last trial, and what the trials before lost says nothing
        sample |= {"cpu": cpu_after - cpu, "steal": steal_after - steal}
        sample |= drops.between(kernel, drops.counts(contender.cable)) | _own(own, contender.counters())
    if "gigabits" in sample:
        sample["cpu_per_gb"] = sample["cpu"] / sample["gigabits"]
    if "packets" in sample:
        sample["cpu_per_mpps"] = sample["cpu"] / (sample["packets"] / 1e6)
    return sample


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
