"""What the kernel of a node counts while a load runs: what is dropped, and where; frames on the link.

Read as text from /proc, of the network namespace that the thread is in.
"""

from pathlib import Path

from benchmarks.rivals.places import INTERFACE, Cable

NET = Path("/proc/thread-self/net")
# Of /proc/net/dev, behind the name: receive bytes, packets, errs, drop, ... and from the ninth on the same for sending.
RX_DROP, TX_BYTES, TX_PACKETS, TX_DROP = 3, 8, 9, 11
UDP = {"RcvbufErrors": "socket full", "SndbufErrors": "send buffer full", "InCsumErrors": "bad checksum"}
Counts = dict[str, int]


def counts(cable: Cable) -> Counts:
    """Return all counters of both nodes by node, place and kind."""
    found: Counts = {}
    for node in cable.nodes:
        found |= {f"{node.name} {name}": count for name, count in node.call(_of_this_namespace).items()}
    return found


def _of_this_namespace() -> Counts:
    found: Counts = {}
    for line in (NET / "dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers, device = [int(word) for word in rest.split()], name.strip()
        found |= {f"{device} received and dropped": numbers[RX_DROP], f"{device} dropped before sending":
                  numbers[TX_DROP]}  # fmt: skip
        if device == INTERFACE:
            found |= {"link bytes": numbers[TX_BYTES], "link frames": numbers[TX_PACKETS]}
    names, values = (line.split()[1:] for line in (NET / "snmp").read_text().splitlines() if line.startswith("Udp:"))
    told = dict(zip(names, map(int, values), strict=True))
    return found | {f"UDP {what}": told[name] for name, what in UDP.items() if name in told}


def between(before: Counts, after: Counts) -> dict[str, object]:
    """Return what was dropped where, and the mean size of the frames that node 1 put on the link."""
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    frames = grown.get("node1 link frames", 0)
    dropped = {name: count for name, count in grown.items() if count > 0 and " link " not in name}
    told: dict[str, object] = {"drops": dropped, "dropped": sum(dropped.values())}
    if frames:
        told["bytes_per_frame"] = grown["node1 link bytes"] / frames
    return told
