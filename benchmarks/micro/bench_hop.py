"""A hop taken from a TTL and its header's checksum patched; an ICMP error written about a packet too big."""

import pytest

from benchmarks.micro.timed import Timed
from flannel_udp import _timing
from tests.dataplane.packets import ipv4, packed

REPEATS = 20_000


@pytest.mark.benchmark(group="hop")
def test_hop(timed: Timed) -> None:
    assert timed(_timing.hop, ipv4(), REPEATS, packets=REPEATS) == REPEATS


@pytest.mark.parametrize("size", [64, 1400])
@pytest.mark.benchmark(group="icmp")
def test_icmp_error(timed: Timed, size: int) -> None:
    packet = ipv4(payload=bytes(size - 20))
    written = timed(_timing.icmp_error, packet, packed("10.5.1.1"), 3, 4, REPEATS, packets=REPEATS, size=size)
    assert written == REPEATS * min(size + 28, 576)
