"""What a look-up in the FIB costs by the number of leases: a million random leased destinations, one by one."""

import time

import numpy as np

from benchmarks.rivals.sample import Failed
from benchmarks.scale.leases import OVERLAY, SUBNET_LENGTH, subnet_of
from flannel_udp._dataplane import FIRST_PEER, SOURCE_CHECKS
from flannel_udp._probe import Node

LOOKUPS = 1_000_000
ROUNDS = 9


def lookups(counts: tuple[int, ...]) -> dict[int, list[float]]:
    """Return ns per look-up by number of leases, a figure per round; the rounds of all are interleaved."""
    tables = {count: _table(count) for count in counts}
    told: dict[int, list[float]] = {count: [] for count in counts}
    slots = np.zeros(LOOKUPS, dtype=np.uint32)
    for _ in range(ROUNDS):
        for count, (node, addresses, expected) in tables.items():
            begin = time.perf_counter()
            node.lookups(addresses.data, slots.data)
            told[count].append((time.perf_counter() - begin) / LOOKUPS * 1e9)
            if not (slots == expected).all():
                raise Failed(f"look-ups among {count} leases find other slots than were set")
    return told


def _table(count: int) -> tuple[Node, "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
                                "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"]:  # fmt: skip
    """A FIB with so many leases, addresses to look up, and what is to be found."""
    node = Node(OVERLAY.network_address.packed, OVERLAY.prefixlen, SUBNET_LENGTH, source_check=SOURCE_CHECKS["off"])
    subnets = [subnet_of(number).network_address.packed for number in range(count)]
    for number, subnet in enumerate(subnets):
        node.set_subnet(subnet, FIRST_PEER + number)
    chosen = np.random.default_rng(1).integers(count, size=LOOKUPS)
    table = np.frombuffer(b"".join(subnets), dtype=np.uint8).reshape(count, 4)
    return node, np.ascontiguousarray(table[chosen]).reshape(-1), chosen + FIRST_PEER
