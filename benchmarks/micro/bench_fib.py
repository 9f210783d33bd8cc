"""FIB look-ups, with 16 leases and with 65,536: one load each, so the number of leases must not matter.

Every round looks up a million random destinations, all of them leased, one after the other without the GIL.
`ns` is the median per look-up.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network

import numpy as np
import pytest

from benchmarks.micro.timed import Timed
from flannel_udp._dataplane import FIRST_PEER, SOURCE_CHECKS
from flannel_udp._probe import Node

LOOKUPS = 1_000_000
NETWORKS = {
    "ipv4-16": ("10.0.0.0/20", 24),
    "ipv4-65536": ("10.0.0.0/8", 24),
    "ipv6-16": ("fd00:12:13::/60", 64),
    "ipv6-65536": ("fd00:12:13::/48", 64),
    "ipv6-hash-65536": ("fd00::/16", 64),
}


def leased(network: IPv4Network | IPv6Network, subnet_len: int) -> list[bytes]:
    """Return the packed addresses of all subnets of a network, or of 65,536 spread over one too large for cells."""
    step = 1 << (network.max_prefixlen - subnet_len)
    count = 1 << (subnet_len - network.prefixlen)
    stride = step * max(1, count >> 16)
    width = network.max_prefixlen // 8
    first = int(network.network_address)
    return [(first + i * stride).to_bytes(width, "big") for i in range(min(count, 1 << 16))]


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.benchmark(group="fib")
def test_lookups(timed: Timed, case: str) -> None:
    text, subnet_len = NETWORKS[case]
    network = ip_network(text)
    subnets = leased(network, subnet_len)
    first, off = network.network_address.packed, SOURCE_CHECKS["off"]
    node = Node(first, network.prefixlen, subnet_len, source_check=off, buckets=1 << 17)
    for number, subnet in enumerate(subnets):
        node.set_subnet(subnet, FIRST_PEER + number)
    table = np.frombuffer(b"".join(subnets), dtype=np.uint8).reshape(len(subnets), -1)
    chosen = np.random.default_rng(1).integers(len(subnets), size=LOOKUPS)
    addresses = np.ascontiguousarray(table[chosen]).reshape(-1)
    slots = np.zeros(LOOKUPS, dtype=np.uint32)
    timed(node.lookups, addresses, slots, packets=LOOKUPS)
    assert (slots == chosen + FIRST_PEER).all()
