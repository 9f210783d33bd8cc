"""The fixture `timed`, and a table at the end of what pytest-benchmark's own, one of whole rounds, leaves out."""

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

# Last, so that it shadows nothing: under -P this folder is not on the path, but packets of the tests are wanted.
sys.path.append(str(Path(__file__).parent.parent.parent))

from benchmarks.micro.timed import LINES, Timed


@pytest.fixture
def timed(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Timed:
    """The way to time."""
    return Timed(benchmark, request.node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(LINES, []):
        terminalreporter.section("per packet, medians")
        for line in lines:
            terminalreporter.write_line(line)
