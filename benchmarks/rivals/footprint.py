"""What a contender's programs weigh, and how long they take from their start to the first packet.

Each sample sets the contender up anew, between two nodes of its own, so that starts can be compared round by round.
"""

from pathlib import Path

from benchmarks.rivals import bulk
from benchmarks.rivals.contenders import Contender, make
from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed, Sample

LOAD = "start"
MIB = 1024.0


def measure(name: str, seconds: float) -> Sample:
    """Start it, weigh it idle, send bulk TCP through it, weigh it again; memory is MiB of one node."""
    cable = Cable()
    try:
        contender = make(name, cable, 0)
        try:
            if not contender.processes:
                raise Failed("it runs no program of its own")
            idle = weigh(contender)
            bulk.start_server(cable)
            bulk.tcp(contender, seconds)
            loaded = weigh(contender)
        finally:
            contender.close()
    finally:
        cable.close()
    told = {"start": contender.seconds_to_packet}
    for when, (rss, pss) in (("idle", idle), ("loaded", loaded)):
        told |= {f"{when}_rss": rss, f"{when}_pss": pss}
    return told


def weigh(contender: Contender) -> tuple[float, float]:
    """Return resident and proportional memory of its processes, the mean of the two nodes."""
    rss = pss = 0.0
    for process in contender.processes:
        for pid in _family(process.pid):
            told = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in told}
            rss, pss = rss + sizes["Rss"] / MIB, pss + sizes["Pss"] / MIB
    return rss / len(contender.cable.nodes), pss / len(contender.cable.nodes)


def _family(pid: int) -> list[int]:
    """Return a process and what it started."""
    children = [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
                for word in (task / "children").read_text().split()]  # fmt: skip
    return [pid, *(one for child in children for one in _family(child))]
