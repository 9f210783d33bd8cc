"""A coat put on, checked and taken off, none as of udp and 22 bytes as of vxlan; and datagrams joined to runs."""

import pytest

from benchmarks.micro.timed import Timed
from flannel_udp import _timing

REPEATS = 100_000
SIZE = 1400


@pytest.mark.parametrize("coat", [0, 22])
@pytest.mark.benchmark(group="encap")
def test_coat(timed: Timed, coat: int) -> None:
    assert timed(_timing.encap, coat, SIZE, REPEATS, packets=REPEATS, size=SIZE) == REPEATS


@pytest.mark.parametrize("most", [1, 44, 127])
@pytest.mark.benchmark(group="run")
def test_run(timed: Timed, most: int) -> None:
    packets, size = 4 * most, 64
    repeats = REPEATS // packets
    assert timed(_timing.run, size, packets, most, repeats, packets=repeats * packets, size=size) == 4 * repeats
