"""A mixed cluster: two nodes of flannel's own packages and two of ours share an overlay on a real etcd.

Neither sort may notice the other: traffic passes among all, leases look the same to the byte, and either takes the
other's place on a host.
"""

from __future__ import annotations

import signal
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import pytest

from ..conftest import DEADLINE, wait_until
from ..netns.node_daemon import Daemon
from ..netns.transfer import transfer
from .etcd_host import PREFIX
from .mixed import Mixed, Theirs, mixed_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SIZE = 4 << 20


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    with mixed_cluster(tmp_path) as made:
        made.await_all()
        yield made


def test_all_pairs_of_pods_ping_and_transfer_both_ways(mixed: Mixed) -> None:
    pods = [agent.node.add_pod(agent.subnet()) for agent in mixed.agents]
    for one, two in permutations(pods, 2):
        assert one.ping(two.address, "-s", "1400").returncode == 0, f"{one.name} to {two.name}"
        transfer(one, two, two.address, _SIZE)


def test_what_is_written_is_the_same_to_the_byte(mixed: Mixed) -> None:
    theirs, ours = mixed.agents[:2]

    def as_ours(written: bytes) -> bytes:
        """What flannel wrote, with our address and subnet in the place of its own."""
        text = written.replace(f"{theirs.node.address}".encode(), f"{ours.node.address}".encode())
        return text.replace(f"{theirs.subnet()[1]}/".encode(), f"{ours.subnet()[1]}/".encode())

    value, their_value = mixed.lease(ours)["value"], mixed.lease(theirs)["value"]
    assert value == as_ours(their_value)
    subnets = {f"{agent.subnet()}".replace("/", "-") for agent in mixed.agents}
    assert {key.rpartition("/")[2] for key in mixed.store.stored(f"{PREFIX}/")} == {"config", *subnets}
    assert all(other.subnet().prefixlen == 24 and not one.subnet().overlaps(other.subnet())
               for one, other in combinations(mixed.agents, 2))
    lives = [mixed.store.call("lease/timetolive", ID=mixed.lease(agent)["lease"])["grantedTTL"]
             for agent in (theirs, ours)]
    assert lives[0] == lives[1]
    files = [(agent.home / "subnet.env").read_bytes() for agent in (theirs, ours)]
    assert files[1] == as_ours(files[0])


def test_leases_are_renewed_by_either_side(mixed: Mixed) -> None:
    """Ours by its timer; theirs, whose timer is an hour at least, by a start, which writes the same."""
    theirs, ours = mixed.agents[:2]
    ours.end(signal.SIGTERM)
    mixed.agents[1] = ours = mixed.ours(ours.node, "--lease-ttl", "4")
    before = mixed.lease(ours)
    for _ in range(2):
        written = mixed.lease(ours)["mod_revision"]
        wait_until(lambda written=written: mixed.lease(ours)["mod_revision"] > written, "it renews")  # type: ignore[misc]
    assert mixed.lease(ours)["create_revision"] == before["create_revision"]
    assert mixed.lease(ours)["value"] == before["value"]
    mixed.await_all()

    subnet, written = theirs.subnet(), mixed.lease(theirs)["mod_revision"]
    theirs.end(signal.SIGTERM)
    mixed.agents[0] = theirs = mixed.theirs(theirs.node)
    assert (theirs.subnet(), mixed.lease(theirs)["mod_revision"] > written) == (subnet, True)
    mixed.await_all()


def test_leases_are_revoked_and_created_anew_on_either_side(mixed: Mixed) -> None:
    theirs, ours, _, other = mixed.agents
    assert isinstance(other, Daemon)
    subnet, before = ours.subnet(), mixed.lease(ours)
    mixed.revoke(ours)
    wait_until(lambda: mixed.key(ours) in mixed.store.stored(mixed.key(ours)), "ours takes it again")
    assert (ours.subnet(), mixed.lease(ours)["value"]) == (subnet, before["value"])
    mixed.await_all()

    subnet = theirs.subnet()
    mixed.revoke(theirs)
    assert isinstance(theirs, Theirs)
    assert theirs.process.wait(DEADLINE) == 0, "flannel ends when its lease is revoked"
    wait_until(lambda: str(subnet) not in {peer["subnet"] for peer in other.status()["peers"]}, "ours drop its route")
    mixed.agents[0] = mixed.theirs(theirs.node)
    mixed.await_all()


def test_either_takes_the_place_of_the_other_and_keeps_the_subnet(mixed: Mixed) -> None:
    theirs, ours = mixed.agents[:2]
    subnets = [theirs.subnet(), ours.subnet()]
    for agent in (theirs, ours):
        agent.end(signal.SIGTERM)
    mixed.agents[:2] = [mixed.ours(theirs.node), mixed.theirs(ours.node)]
    assert [agent.subnet() for agent in mixed.agents[:2]] == subnets
    mixed.await_all()
