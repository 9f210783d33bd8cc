"""How a micro benchmark is timed, and what it tells: ns per packet and bytes per second."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

T = TypeVar("T")
ROUNDS, WARM_UP = 30, 3
LINES = pytest.StashKey[list[str]]()


class Timed:
    """Times a function, in rounds that are long against the clock."""

    def __init__(self, benchmark: BenchmarkFixture, node: pytest.Item) -> None:
        self._benchmark = benchmark
        self._node = node

    def __call__(self, function: Callable[..., T], *args: object, packets: int, size: int = 0) -> T:
        """Time a call that does `packets` packets, of `size` bytes each if that means something; return its result."""
        result: T = self._benchmark.pedantic(function, args=args, rounds=ROUNDS, warmup_rounds=WARM_UP)
        assert self._benchmark.stats is not None
        seconds = self._benchmark.stats.stats.median / packets
        self._benchmark.extra_info["ns"] = round(seconds * 1e9, 3)
        line = f"{self._node.name:40} {seconds * 1e9:12.2f} ns"
        if size:
            self._benchmark.extra_info["bytes/s"] = round(size / seconds)
            line += f" {size / seconds / 1e9:10.2f} GB/s"
        self._node.config.stash.setdefault(LINES, []).append(line)
        return result
