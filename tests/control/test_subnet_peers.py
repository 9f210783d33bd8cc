"""The table of peers: what it says is enough to keep routes right, also where keys have a subnet in common."""

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from flannel_udp.lease import LeaseAttrs, LeaseEvent, decode_lease, encode_attrs
from flannel_udp.subnet.peers import Difference, PeerTable

# Of the same subnets, in other words or beside another family's.
KEYS = ("10.5.1.0-24", "10.5.1.7-24", "10.5.1.0-24&fd00:1::-64", "10.5.2.0-24", "10.5.2.0-24&fd00:1::-64",
        "0.0.0.0-0&fd00:1::-64", "10.5.3.0-24")  # fmt: skip

Routes = dict[IPv4Network | IPv6Network, LeaseAttrs]


def put(key: str, address: int) -> LeaseEvent:
    value = encode_attrs(LeaseAttrs(IPv4Address("192.0.2.0") + address))
    return LeaseEvent("put", key, 1, decode_lease(key, value, 1, None))


def follow(routes: Routes, told: Difference) -> None:
    """Do what an owner of routes does."""
    for lease in told.deleted:
        for subnet in (lease.subnet, lease.ipv6_subnet):
            if subnet:
                routes.pop(subnet, None)
    for lease in told.put:
        for subnet in (lease.subnet, lease.ipv6_subnet):
            if subnet:
                routes[subnet] = lease.attrs


def test_routes_stand_for_exactly_the_leases_whatever_is_deleted() -> None:
    rng = random.Random(6)
    table, routes = PeerTable(), Routes()
    shared = 0
    for _ in range(3000):
        batch = [put(rng.choice(KEYS), rng.randrange(1, 5)) if rng.random() < 0.5 else
                 LeaseEvent("delete", rng.choice(KEYS), 1) for _ in range(rng.randrange(1, 4))]  # fmt: skip
        follow(routes, table.apply(batch))
        holders: dict[IPv4Network | IPv6Network, set[LeaseAttrs]] = {}
        for lease in table.leases.values():
            for subnet in (lease.subnet, lease.ipv6_subnet):
                if subnet:
                    holders.setdefault(subnet, set()).add(lease.attrs)
        assert routes.keys() == holders.keys()
        assert all(attrs in holders[subnet] for subnet, attrs in routes.items())
        shared += any(len(attrs) > 1 for attrs in holders.values())
    assert shared > 1000


def test_a_reset_leaves_nothing_behind() -> None:
    table = PeerTable()
    table.reset([put(key, 1) for key in KEYS])
    table.reset([])
    assert not table.leases
    assert table.apply([LeaseEvent("delete", key, 2) for key in KEYS]) == Difference((), (), ())
    assert [lease.subnet for lease in table.apply([put(KEYS[0], 2)]).put] == [IPv4Network("10.5.1.0/24")]
    assert not table.apply([LeaseEvent("delete", KEYS[0], 3)]).put
