"""The one fixture for real devices: a topology of nodes, taken down after each test."""

from collections.abc import Callable, Iterator

import pytest

from ..conftest import require_commands, require_namespaces
from .topology import Topology


@pytest.fixture
def topology() -> Iterator[Callable[..., Topology]]:
    """Make topologies: topology(2) gives two nodes on an underlay, topology(3, mtu=1400) three on a smaller one."""
    require_commands("ip", "ping", "setpriv")
    require_namespaces()
    made: list[Topology] = []

    def make(nodes: int = 2, mtu: int = 1500) -> Topology:
        made.append(Topology(nodes, mtu))
        return made[-1]

    yield make
    for one in made:
        one.close()
