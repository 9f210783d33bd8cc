"""One super-packet into its segments: template and headers; the payload is read for its checksum, and not moved."""

import pytest

from benchmarks.micro.timed import Timed
from flannel_udp import _timing
from tests.dataplane.super_packets import BULK4, BULK6, TIMESTAMPS, UDP4, Flow, text

REPEATS = 200
# A stack's largest super-packet at the overlay's MTU of 1472; 64 datagrams of 64 bytes.
CASES = {
    "tcp4": (Flow(options=TIMESTAMPS), 1420, 45),
    "tcp6": (Flow(version=6, options=TIMESTAMPS), 1400, 45),
    "tcp4-plain": (BULK4, 1432, 45),
    "tcp6-two": (BULK6, 1412, 2),
    "udp4-small": (UDP4, 64, 64),
}

@pytest.mark.parametrize("case", CASES)
@pytest.mark.benchmark(group="segment")
def test_segment(timed: Timed, case: str) -> None:
    flow, size, count = CASES[case]
    packet, vnet = flow.super_packet(text(size * count), size)
    packets = REPEATS * count
    made = timed(_timing.segment, packet, vnet.packed(), REPEATS, packets=packets, size=len(packet) // count)
    assert made == packets
