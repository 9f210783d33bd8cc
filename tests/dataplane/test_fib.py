"""fib.pxd and the Builder's routes against longest-prefix matching by `ipaddress`, which is slow and plain."""

import random
from array import array
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest

from flannel_udp._dataplane import FIRST_PEER, NO_SLOT, OUTSIDE_SLOT, OWN_SLOT, Builder
from flannel_udp._probe import Node

from .packets import packed

Network = IPv4Network | IPv6Network
Routes = dict[Network, int]

# Network, length of its subnets, the shape that the table has.
SHAPES = {
    "ipv4": ("10.5.0.0/16", 24, "cells"),
    "ipv4 of one cell": ("10.5.0.0/24", 24, "cells"),
    "ipv4 at the upper end": ("255.255.0.0/16", 28, "cells"),
    "ipv4 everything": ("0.0.0.0/0", 16, "cells"),
    "ipv4 of single addresses": ("10.5.0.0/20", 32, "cells"),
    "ipv6 flat": ("fd05::/48", 64, "cells"),
    "ipv6 flat at the upper end": ("ffff:ffff:ffff::/48", 64, "cells"),
    "ipv6 hashed": ("fd05::/32", 64, "hash"),
    "ipv6 hashed, all bits": ("fd05::/64", 128, "hash"),
}


def builder_of(shape: str) -> tuple[Builder, Network, int]:
    text, length, wanted = SHAPES[shape]
    network = ip_network(text)
    builder = Builder(network.network_address.packed, network.prefixlen, length)
    assert builder.status()["shape"] == wanted
    return builder, network, length


def set_route(builder: Builder, subnet: Network, slot: int) -> None:
    builder.set_route(subnet.network_address.packed, subnet.prefixlen, slot)


def delete_route(builder: Builder, subnet: Network) -> None:
    builder.delete_route(subnet.network_address.packed, subnet.prefixlen)


def oracle(network: Network, routes: Routes, address: IPv4Address | IPv6Address) -> int:
    """Longest prefix first; inside the network but unleased; outside."""
    if address not in network:
        return OUTSIDE_SLOT
    covering = [subnet for subnet in routes if address in subnet]
    return routes[max(covering, key=lambda subnet: subnet.prefixlen)] if covering else NO_SLOT


def addresses_of(network: Network, routes: Routes, dice: random.Random) -> Iterator[IPv4Address | IPv6Address]:
    """Both sides of every boundary, and random ones: in the subnets, in the network, anywhere."""
    family = type(network.network_address)
    last = 2**network.max_prefixlen - 1
    for subnet in (network, *routes):
        first, end = int(subnet.network_address), int(subnet.broadcast_address)
        for number in (first - 1, first, first + 1, dice.randint(first, end), end - 1, end, end + 1):
            yield family(number & last)
    for _ in range(100):
        yield network[dice.randrange(network.num_addresses)]
        yield family(dice.randint(0, last))


def check(builder: Builder, network: Network, routes: Routes, dice: random.Random) -> None:
    for address in addresses_of(network, routes, dice):
        assert builder.lookup(address.packed) == oracle(network, routes, address), address


def random_subnet(network: Network, length: int, dice: random.Random) -> Network:
    step = network.max_prefixlen - length
    cell = dice.randrange(1 << (length - network.prefixlen))
    return type(network)((int(network.network_address) + (cell << step), length))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_random_tables_against_ipaddress(shape: str, seed: int) -> None:
    """Leases come, nested and overlapping where the shape allows it, move, come again and go."""
    dice = random.Random(f"{shape} {seed}")
    builder, network, length = builder_of(shape)
    shortest = length if SHAPES[shape][2] == "hash" else max(network.prefixlen, length - 8)
    routes: Routes = {}
    for turn in range(150):
        if routes and dice.random() < 0.35:
            gone = dice.choice(list(routes))
            del routes[gone]
            delete_route(builder, gone)
        else:
            prefix = length if dice.random() < 0.7 else dice.randint(shortest, length)
            subnet = dice.choice(list(routes)) if routes and dice.random() < 0.1 else random_subnet(
                network, prefix, dice)
            routes[subnet] = OWN_SLOT if turn == 20 else FIRST_PEER + turn
            set_route(builder, subnet, routes[subnet])
        if turn % 30 == 29:
            check(builder, network, routes, dice)
    assert builder.status()["routes"] == len(routes)
    for subnet in list(routes):
        delete_route(builder, subnet)
    check(builder, network, {}, dice)


def test_nested_leases_fall_back_one_by_one() -> None:
    builder, _, _ = builder_of("ipv4")
    nested = [ip_network(f"10.5.0.0/{length}") for length in (16, 18, 20, 22, 24)]
    for slot, subnet in enumerate(nested, FIRST_PEER):
        set_route(builder, subnet, slot)
    for slot, subnet in reversed(list(enumerate(nested, FIRST_PEER))):
        assert builder.lookup(packed("10.5.0.9")) == slot
        delete_route(builder, subnet)
    assert builder.lookup(packed("10.5.0.9")) == NO_SLOT


def test_a_wide_lease_does_not_paint_over_a_narrower_one() -> None:
    builder, _, _ = builder_of("ipv4")
    set_route(builder, ip_network("10.5.7.0/24"), 9)
    set_route(builder, ip_network("10.5.0.0/20"), 8)
    assert [builder.lookup(packed(f"10.5.{third}.1")) for third in (6, 7, 8, 16)] == [8, 9, 8, NO_SLOT]


def test_unknown_routes_may_be_deleted() -> None:
    builder, _, _ = builder_of("ipv4")
    set_route(builder, ip_network("10.5.7.0/24"), 9)
    for unknown in ("10.5.8.0/24", "10.5.0.0/20", "10.5.0.0/16"):
        delete_route(builder, ip_network(unknown))
    assert builder.lookup(packed("10.5.7.1")) == 9


@pytest.mark.parametrize(("network", "length", "subnet", "message"), [
    ("10.5.0.0/16", 24, "10.5.7.0/25", "smaller than a subnet"),
    ("10.5.0.0/16", 24, "10.6.0.0/24", "outside the network"),
    ("10.5.0.0/16", 24, "10.0.0.0/8", "outside the network"),
    ("fd05::/48", 64, "fd05:0:0:7::/80", "smaller than a subnet"),
    ("fd05::/48", 64, "fd05:0:1::/64", "outside the network"),
    ("fd05::/32", 64, "fd05:0:1::/48", "no /64"),
    ("fd05::/32", 64, "fd06::/64", "outside the network"),
])
def test_what_does_not_fit_is_refused_and_changes_nothing(
    network: str, length: int, subnet: str, message: str
) -> None:
    whole = ip_network(network)
    builder = Builder(whole.network_address.packed, whole.prefixlen, length)
    with pytest.raises(ValueError, match=message):
        set_route(builder, ip_network(subnet), FIRST_PEER)
    assert builder.status()["routes"] == 0
    assert builder.lookup(whole.network_address.packed) == NO_SLOT


def test_no_more_than_four_million_cells() -> None:
    with pytest.raises(ValueError, match=r"8388608 subnets are more than the FIB's 4194304 cells"):
        Builder(packed("10.0.0.0"), 8, 31)
    assert Builder(packed("10.0.0.0"), 8, 30).status()["cells"] == 1 << 22
    assert Builder(packed("fd05::"), 42, 64).status()["shape"] == "cells"
    assert Builder(packed("fd05::"), 41, 64).status()["shape"] == "hash"


@pytest.mark.parametrize(("prefix", "length"), [(24, 16), (0, 0), (24, 33), (-1, 8)])
def test_lengths_that_make_no_table_are_refused(prefix: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"subnets of /-?\d+ in a network of /-?\d+"):
        Builder(packed("10.5.0.0"), prefix, length)


def test_hash_grows_and_never_fills() -> None:
    builder, _, _ = builder_of("ipv6 hashed")
    dice = random.Random(5)
    numbers = dice.sample(range(1 << 32), 5000)
    subnets = {IPv6Network((int(IPv6Address("fd05::")) + (number << 64), 64)): slot
               for slot, number in enumerate(numbers, FIRST_PEER)}
    for subnet, slot in subnets.items():
        set_route(builder, subnet, slot)
    assert all(builder.lookup(subnet[9].packed) == slot for subnet, slot in subnets.items())
    for subnet in list(subnets)[::2]:
        delete_route(builder, subnet)
        del subnets[subnet]
    assert all(builder.lookup(subnet[9].packed) == slot for subnet, slot in subnets.items())
    assert builder.lookup(packed("fd05:0:5678:9abc::1")) == NO_SLOT


def test_hash_deletes_among_collisions() -> None:
    """A table of 16 buckets with up to 15 subnets: every probe runs into others, and across the end."""
    dice = random.Random(6)
    for _ in range(50):
        node = Node(packed("fd05::"), 32, 64, source_check=0, buckets=16)
        truth: dict[bytes, int] = {}
        for _ in range(60):
            subnet = packed(f"fd05:0:0:{dice.randrange(40):x}::")
            if subnet in truth and dice.random() < 0.6:
                del truth[subnet]
                node.set_subnet(subnet, 0)
            elif len(truth) < 15:
                truth[subnet] = dice.randrange(FIRST_PEER, 64)
                node.set_subnet(subnet, truth[subnet])
            assert all(node.lookup(subnet[:8] + dice.randbytes(8)) == slot for subnet, slot in truth.items())
            assert sum(node.lookup(packed(f"fd05:0:0:{n:x}::")) != NO_SLOT for n in range(40)) == len(truth)


@pytest.mark.parametrize("shape", ["ipv4", "ipv6 flat", "ipv6 hashed"])
def test_many_lookups_at_once_are_the_same(shape: str) -> None:
    text, length, _ = SHAPES[shape]
    network, dice = ip_network(text), random.Random(7)
    node = Node(network.network_address.packed, network.prefixlen, length, source_check=0)
    for slot in range(FIRST_PEER, 50):
        node.set_subnet(random_subnet(network, length, dice).network_address.packed, slot)
    addresses = [address.packed for address in addresses_of(network, {}, dice)]
    slots = array("I", bytes(4 * len(addresses)))
    node.lookups(b"".join(addresses), slots)
    assert list(slots) == [node.lookup(address) for address in addresses]
    with pytest.raises(ValueError, match="fewer addresses"):
        node.lookups(b"".join(addresses)[:-1], slots)
