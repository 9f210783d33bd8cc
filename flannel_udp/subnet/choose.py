"""Choosing a subnet: which one fits the configuration, which are free, which of them to take. Values in, values out.

Free is what overlaps no lease or reservation, whatever its length. As flannel does, one of the first hundred free ones
is taken at random, so that nodes that choose at the same moment seldom want the same.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final, TypeAlias

from flannel_udp.errors import OutOfSubnets

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address

    from flannel_udp.config import NetworkConfig

CANDIDATES: Final = 100  # specification: flannel's choice
Subnets: TypeAlias = "tuple[IPv4Network | None, IPv6Network | None]"


def fits(config: NetworkConfig, subnets: Subnets) -> bool:
    """Whether these are subnets that the configuration would give away: each family that it enables, and no other."""
    subnet, ipv6_subnet = subnets
    return (
        (subnet is not None) == config.enable_ipv4
        and (ipv6_subnet is not None) == config.enable_ipv6
        and (subnet is None or _in_range(subnet, config.subnet_len, config.subnet_min, config.subnet_max))
        and (
            ipv6_subnet is None
            or _in_range(ipv6_subnet, config.ipv6_subnet_len, config.ipv6_subnet_min, config.ipv6_subnet_max)
        )
    )


def choose(config: NetworkConfig, taken: Iterable[Subnets], preferred: Subnets, rng: random.Random) -> Subnets:
    """Choose a free subnet for each enabled family, the preferred one if it fits and is free; raises OutOfSubnets."""
    pairs = list(taken)
    chosen4: IPv4Network | None = None
    chosen6: IPv6Network | None = None
    if config.subnet_min is not None and config.subnet_max is not None:
        taken4 = [subnet for subnet, _ in pairs if subnet]
        low, high = _range(config.subnet_min, config.subnet_max)
        start = _pick(low, high, 32 - config.subnet_len, _spans(taken4), preferred[0], rng)
        chosen4 = IPv4Network((start, config.subnet_len))
    if config.ipv6_subnet_min is not None and config.ipv6_subnet_max is not None:
        taken6 = [subnet for _, subnet in pairs if subnet]
        low, high = _range(config.ipv6_subnet_min, config.ipv6_subnet_max)
        start = _pick(low, high, 128 - config.ipv6_subnet_len, _spans(taken6), preferred[1], rng)
        chosen6 = IPv6Network((start, config.ipv6_subnet_len))
    return chosen4, chosen6


def free_starts(low: int, high: int, host_bits: int, taken: Iterable[tuple[int, int]], limit: int) -> list[int]:
    """Return the first addresses of the first `limit` free subnets of 2^host_bits addresses that start in low..high.

    `taken` are spans of addresses, both ends included, in any order and perhaps overlapping. Steps over a taken span at
    once, however many subnets it covers.
    """
    size = 1 << host_bits
    spans = iter(sorted(taken))
    span = next(spans, None)
    free: list[int] = []
    start = low
    while start <= high and len(free) < limit:
        while span is not None and span[1] < start:
            span = next(spans, None)
        if span is not None and span[0] < start + size:
            start = (span[1] // size + 1) * size
        else:
            free.append(start)
            start += size
    return free


def _pick(
    low: int,
    high: int,
    host_bits: int,
    taken: list[tuple[int, int]],
    preferred: IPv4Network | IPv6Network | None,
    rng: random.Random,
) -> int:
    if preferred is not None and preferred.prefixlen == preferred.max_prefixlen - host_bits:
        wanted = int(preferred.network_address)
        if low <= wanted <= high and free_starts(wanted, wanted, host_bits, taken, 1):
            return wanted
    free = free_starts(low, high, host_bits, taken, CANDIDATES)
    if not free:
        count = ((high - low) >> host_bits) + 1
        raise OutOfSubnets(f"out of subnets: all {count} of the range are leased or reserved ({len(taken)} leases)")
    return rng.choice(free)


def _in_range(
    subnet: IPv4Network | IPv6Network,
    length: int,
    low: IPv4Address | IPv6Address | None,
    high: IPv4Address | IPv6Address | None,
) -> bool:
    if low is None or high is None or subnet.prefixlen != length:
        return False
    return int(low) <= int(subnet.network_address) <= int(high)


def _range(low: IPv4Address | IPv6Address, high: IPv4Address | IPv6Address) -> tuple[int, int]:
    return int(low), int(high)


def _spans(subnets: Iterable[IPv4Network | IPv6Network]) -> list[tuple[int, int]]:
    return [(int(subnet.network_address), int(subnet.broadcast_address)) for subnet in subnets]
