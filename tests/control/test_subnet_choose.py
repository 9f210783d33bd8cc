"""Choosing a subnet, against a slow oracle that tries every subnet with `ipaddress`."""

import random
import time
from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import OutOfSubnets
from flannel_udp.subnet.choose import CANDIDATES, choose, fits, free_starts

CONFIG = parse_network_config('{"Network":"10.5.0.0/16"}')
DUAL = parse_network_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
V6 = parse_network_config(
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}'
)


def v4(text: str) -> tuple[IPv4Network, None]:
    return IPv4Network(text), None


def oracle(config: NetworkConfig, taken: list[IPv4Network]) -> list[int]:
    """The starts of the first hundred free subnets, found by trying one after the other."""
    assert config.network is not None
    assert config.subnet_min is not None
    assert config.subnet_max is not None
    free = []
    for subnet in config.network.subnets(new_prefix=config.subnet_len):
        inside = config.subnet_min <= subnet.network_address <= config.subnet_max
        if inside and not any(subnet.overlaps(other) for other in taken):
            free.append(int(subnet.network_address))
    return free[:CANDIDATES]


@pytest.mark.parametrize("seed", range(60))
def test_free_subnets_are_the_oracles(seed: int) -> None:
    rng = random.Random(seed)
    config = parse_network_config(f'{{"Network":"10.5.0.0/{rng.randint(16, 22)}","SubnetLen":{rng.randint(24, 27)}}}')
    assert config.network is not None
    base, size = int(config.network.network_address), config.network.num_addresses
    taken = [
        IPv4Network(
            (base + rng.randrange(-size // 4, size + size // 4), rng.choice([20, 23, 24, 25, 26, 28, 31])), False
        )
        for _ in range(rng.randint(0, 200))
    ]
    spans = [(int(net.network_address), int(net.broadcast_address)) for net in taken]
    low, high = int(config.subnet_min or 0), int(config.subnet_max or 0)
    assert free_starts(low, high, 32 - config.subnet_len, spans, CANDIDATES) == oracle(config, taken)


def test_the_choice_is_random_among_the_first_hundred_free_ones() -> None:
    taken = [v4("10.5.1.0/24"), v4("10.5.4.0/22")]
    rng = random.Random(1)
    chosen = {choose(CONFIG, taken, (None, None), rng)[0] for _ in range(5000)}
    assert {int(net.network_address) for net in chosen if net} == set(oracle(CONFIG, [net for net, _ in taken]))
    assert len(chosen) == CANDIDATES


def test_the_preferred_subnet_is_taken_if_it_fits_and_is_free() -> None:
    rng = random.Random(1)
    assert choose(CONFIG, [], v4("10.5.200.0/24"), rng) == v4("10.5.200.0/24")
    for unfit in ("10.5.0.0/24", "10.6.1.0/24", "10.5.200.0/25", "10.5.192.0/20"):
        assert choose(CONFIG, [], v4(unfit), rng) != v4(unfit)
    for other in ("10.5.200.0/24", "10.5.200.128/25", "10.5.192.0/20", "10.0.0.0/8"):
        if other == "10.0.0.0/8":
            with pytest.raises(OutOfSubnets):
                choose(CONFIG, [v4(other)], v4("10.5.200.0/24"), rng)
        else:
            assert choose(CONFIG, [v4(other)], v4("10.5.200.0/24"), rng) != v4("10.5.200.0/24")


def test_each_family_is_chosen_for_itself() -> None:
    rng = random.Random(1)
    preferred = IPv4Network("10.5.7.0/24"), IPv6Network("fd00:5:0:7::/64")
    assert choose(DUAL, [], preferred, rng) == preferred
    assert choose(CONFIG, [], preferred, rng) == (preferred[0], None)
    assert choose(V6, [], preferred, rng) == (None, preferred[1])
    taken = [(IPv4Network("10.5.7.0/24"), IPv6Network("fd00:5:0:9::/64"))]
    chosen = choose(DUAL, taken, preferred, rng)
    assert chosen[0] != preferred[0]
    assert chosen[1] == preferred[1]


def test_the_last_subnet_is_found_and_then_none() -> None:
    config = parse_network_config('{"Network":"10.5.0.0/28"}')
    taken = [v4("10.5.0.4/30"), v4("10.5.0.12/30")]
    assert choose(config, taken, (None, None), random.Random(1)) == v4("10.5.0.8/30")
    with pytest.raises(OutOfSubnets, match="3"):
        choose(config, [*taken, v4("10.5.0.8/31")], (None, None), random.Random(1))


def test_a_full_network_is_searched_in_one_pass() -> None:
    config = parse_network_config('{"Network":"10.0.0.0/8"}')
    taken = [v4(str(net)) for net in IPv4Network("10.0.0.0/8").subnets(new_prefix=24)][:-1]
    random.Random(1).shuffle(taken)
    began = time.monotonic()
    assert choose(config, taken, (None, None), random.Random(1)) == v4("10.255.255.0/24")
    assert time.monotonic() - began < 10  # trying each subnet against each lease would take half an hour


@pytest.mark.parametrize(
    ("config", "subnet", "ipv6_subnet", "expected"),
    [
        (CONFIG, "10.5.1.0/24", None, True),
        (CONFIG, "10.5.255.0/24", None, True),
        (CONFIG, "10.5.0.0/24", None, False),
        (CONFIG, "10.6.0.0/24", None, False),
        (CONFIG, "10.5.1.0/25", None, False),
        (CONFIG, "10.5.1.0/24", "fd00:5:0:1::/64", False),
        (CONFIG, None, None, False),
        (DUAL, "10.5.1.0/24", "fd00:5:0:1::/64", True),
        (DUAL, "10.5.1.0/24", None, False),
        (DUAL, "10.5.1.0/24", "fd00:5::/64", False),
        (V6, None, "fd00:5:0:1::/64", True),
        (V6, "10.5.1.0/24", "fd00:5:0:1::/64", False),
    ],
)
def test_fits(config: NetworkConfig, subnet: str | None, ipv6_subnet: str | None, expected: bool) -> None:
    pair = (IPv4Network(subnet) if subnet else None), (IPv6Network(ipv6_subnet) if ipv6_subnet else None)
    assert fits(config, pair) == expected
