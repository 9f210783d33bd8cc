"""The Internet checksum over packet sizes that matter."""

import os

import pytest

from benchmarks.micro.timed import Timed
from flannel_udp import _timing

REPEATS = 2_000


@pytest.mark.parametrize("size", [64, 1400, 61_440])
@pytest.mark.benchmark(group="checksum")
def test_checksum(timed: Timed, size: int) -> None:
    assert timed(_timing.checksum, os.urandom(size), REPEATS, packets=REPEATS, size=size) == REPEATS
