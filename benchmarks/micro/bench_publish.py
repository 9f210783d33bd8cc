"""One lease changes: from the call of set_peer() to the pointer that the loops see, with 10,000 and 65,536 leases.

No loop runs: a publish waits for none. `median` is the whole change; its bytes are of a table, and of no packet.
"""

import itertools
from ipaddress import IPv4Address, IPv4Network

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flannel_udp._dataplane import UDP_OVERHEAD_V4, UDP_PORT
from flannel_udp.forwarder import Encapsulation, Forwarder

NETWORK = IPv4Network("10.0.0.0/8")
UNDERLAY = IPv4Address("198.18.0.0")


@pytest.mark.parametrize("leases", [10_000, 65_536])
@pytest.mark.benchmark(group="publish")
def test_one_change(benchmark: BenchmarkFixture, leases: int) -> None:
    forwarder = Forwarder(NETWORK, 24, Encapsulation(coat_length=0, ttl_step=1, overhead=UDP_OVERHEAD_V4))
    subnets = list(itertools.islice(NETWORK.subnets(new_prefix=24), leases))
    for number, subnet in enumerate(subnets):
        forwarder.set_peer(subnet, UNDERLAY + number, UDP_PORT)
    forwarder.publish()
    turn = itertools.count()

    def change() -> None:
        number = next(turn)
        forwarder.set_peer(subnets[number * 7919 % leases], UNDERLAY + (leases + number % 60_000), UDP_PORT)
        forwarder.publish()

    benchmark.pedantic(change, rounds=500, warmup_rounds=10)


@pytest.mark.parametrize("leases", [10_000, 65_536])
@pytest.mark.benchmark(group="first snapshot")
def test_first_snapshot(benchmark: BenchmarkFixture, leases: int) -> None:
    subnets = list(itertools.islice(NETWORK.subnets(new_prefix=24), leases))

    def fill() -> None:
        forwarder = Forwarder(NETWORK, 24, Encapsulation(coat_length=0, ttl_step=1, overhead=UDP_OVERHEAD_V4))
        for number, subnet in enumerate(subnets):
            forwarder.set_peer(subnet, UNDERLAY + number, UDP_PORT)
        forwarder.publish()

    benchmark.pedantic(fill, rounds=5, warmup_rounds=1)
