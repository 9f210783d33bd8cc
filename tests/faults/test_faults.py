"""A dozen faults of etcd under traffic, one of each sort; `make test-faults` strikes a hundred and shows figures."""

from __future__ import annotations

import contextlib
import random
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from ..conftest import require_commands, require_tun, wait_until
from ..interop.etcd_cluster import program
from ..netns.topology import Topology
from .figures import Outcome, faults_of, strike, table
from .kinds import FAULTS
from .world import SUBNETS, Kind, World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 1.5
DOZEN: dict[Kind, tuple[str, ...]] = {
    "one": ("etcd killed", "etcd frozen", "one node cut off", "history compacted while cut off",
            "space quota filled", "newcomer while away", "rubbish keys", "rubbish values", "rubbish on a nodes key",
            "leases over a nodes subnet"),
    "three": ("leader killed", "leader frozen"),
    "users": ("tokens forgotten",),
    "slow": ("proxy slow", "proxy loses answers"),
}


@pytest.mark.parametrize("kind", DOZEN)
def test_standing_routes_stand_whatever_becomes_of_etcd(kind: Kind, tmp_path: Path) -> None:
    with prepared(kind, tmp_path) as there:
        faults = {fault.name: fault for fault in FAULTS}
        outcomes = [strike(there, faults[name], SECONDS) for name in DOZEN[kind]]
    # Generous in what depends on how busy the machine is, exact in everything else.
    assert not faults_of([patient(outcome) for outcome in outcomes], most_cpu=0.2), table(outcomes)


def test_the_harness_sees_what_goes_wrong(tmp_path: Path) -> None:
    """Lost datagrams, routes that nobody ordered, addresses leased twice: what reads 0 above could read more."""
    with prepared("one", tmp_path) as there:
        assert there.traffic.lost() == 0
        deaf = there.daemons[0].node
        rules = ("add table ip deaf\n"
                 "add chain ip deaf in { type filter hook input priority 0; }\n"
                 "add rule ip deaf in udp dport 8285 drop\n")
        deaf.run("nft", "-f", "-", text=rules)
        wait_until(lambda: there.traffic.lost() > 0, "datagrams are missed")
        deaf.run("nft", "delete", "table", "ip", "deaf")

        there.settle()
        assert not there.wrong
        there.store.put(f"{SUBNETS}10.5.250.0-24", b'{"PublicIP":"192.0.2.99"}')
        wait_until(lambda: there.agree() and there.wrong, "a route to 192.0.2.99 is noticed")
        assert there.doubles() == 0
        there.put_stranger(f"{IPv4Network(next(iter(there.standing))).supernet()}")
        assert there.doubles() == 1


@contextlib.contextmanager
def prepared(kind: Kind, folder: Path) -> Iterator[World]:
    """A world, if this machine can have one."""
    require_commands("ip", "nft", "setpriv")
    require_tun()
    program("3.7")
    random.seed(7)
    topology = Topology(5)
    try:
        with world(topology, folder, kind) as there:
            yield there
    finally:
        topology.close()


def patient(outcome: Outcome) -> Outcome:
    return Outcome(**{**vars(outcome), "limit": 25.0})
