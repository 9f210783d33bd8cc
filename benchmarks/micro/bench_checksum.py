"""The Internet checksum over packet sizes that matter; `GB/s` in extra_info, the copy into the probe included."""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flannel_udp._probe import checksum


@pytest.mark.parametrize("size", [64, 1400, 61_440])
@pytest.mark.benchmark(group="checksum")
def test_checksum(benchmark: BenchmarkFixture, size: int) -> None:
    data = os.urandom(size)
    benchmark(checksum, data)
    assert benchmark.stats is not None
    benchmark.extra_info["GB/s"] = round(size / benchmark.stats.stats.median / 1e9, 2)
