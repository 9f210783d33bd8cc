"""Packets as they come off the wire into frames for the TUN: the mirror image, checksums verified before each merge."""

import pytest

from benchmarks.micro.timed import Timed
from flannel_udp import _timing
from tests.dataplane.super_packets import TIMESTAMPS, UDP4, Flow, text

REPEATS = 200
# What one receive call brings at most of one flow; and two flows in turn, where nothing can be merged.
CASES = {
    "tcp4": (Flow(options=TIMESTAMPS), 1420, 45, 1),
    "tcp6": (Flow(version=6, options=TIMESTAMPS), 1400, 45, 1),
    "udp4-small": (UDP4, 64, 64, 1),
    "udp4-in-turn": (UDP4, 64, 64, 64),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.benchmark(group="coalesce")
def test_coalesce(timed: Timed, case: str) -> None:
    flow, size, count, frames = CASES[case]
    packets = flow.segments(text(size * count), size)
    if frames > 1:
        other = Flow(protocol=flow.protocol, sport=flow.sport + 1).segments(text(size * count), size)
        packets = [one for pair in zip(packets, other, strict=True) for one in pair][:count]
    length = sum(map(len, packets)) // count
    made = timed(_timing.coalesce, packets, True, REPEATS, packets=REPEATS * count, size=length)
    assert made == REPEATS * frames
