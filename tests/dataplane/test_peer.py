"""peer.pxd: slots found by underlay address, against a dictionary; duplicates, moves, deletes, crowded tables."""

import random

import pytest

from flannel_udp._dataplane import FIRST_PEER, NO_SLOT, Builder
from flannel_udp._probe import Node

from .packets import packed


def node_of(family: int, capacity: int = 64) -> Node:
    network = packed("10.5.0.0") if family == 4 else packed("fd05::")
    return Node(network, *((16, 24) if family == 4 else (48, 64)), source_check=0, capacity=capacity)


def underlay(family: int, number: int) -> bytes:
    return packed(f"192.0.2.{number}") if family == 4 else packed(f"2001:db8::{number:x}:{number:x}")


def check(node: Node, truth: dict[int, bytes], family: int, addresses: int) -> None:
    """Each address finds one of the slots that have it, or none."""
    for number in range(addresses):
        address = underlay(family, number)
        slots = {slot for slot, held in truth.items() if held == address} or {NO_SLOT}
        assert node.find(address) in slots, number


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("addresses", [4, 30, 200])
@pytest.mark.parametrize("family", [4, 6])
def test_random_peers_against_a_dictionary(family: int, addresses: int, seed: int) -> None:
    """Few addresses: many nodes behind one (NAT). Many: the whole capacity in use, moving and leaving."""
    dice = random.Random(f"{family} {addresses} {seed}")
    node = node_of(family)
    truth: dict[int, bytes] = {}
    for turn in range(1500):
        slot = dice.randrange(FIRST_PEER, 64)
        if slot in truth and dice.random() < 0.4:
            del truth[slot]
            node.set_peer(slot, None)
        else:
            truth[slot] = underlay(family, dice.randrange(addresses))
            node.set_peer(slot, truth[slot])
        if turn % 10 == 0:
            check(node, truth, family, addresses)
    for slot in truth:
        node.set_peer(slot, None)
    check(node, {}, family, addresses)


@pytest.mark.parametrize("family", [4, 6])
def test_nodes_behind_one_address_leave_one_by_one(family: int) -> None:
    node = node_of(family)
    for slot in (10, 11, 12):
        node.set_peer(slot, underlay(family, 1))
    for slot, rest in ((11, {10, 12}), (10, {12}), (12, {NO_SLOT})):
        node.set_peer(slot, None)
        assert node.find(underlay(family, 1)) in rest


def test_every_byte_of_an_address_counts() -> None:
    for family in (4, 6):
        node = node_of(family)
        address = underlay(family, 7)
        node.set_peer(9, address)
        for at in range(len(address)):
            other = bytearray(address)
            other[at] ^= 1
            assert node.find(bytes(other)) == NO_SLOT
        assert node.find(address) == 9


def test_a_full_table_ends_every_search() -> None:
    """All slots in use: the table is half full at most, so a stranger's search still ends."""
    node = node_of(4, capacity=64)
    for slot in range(FIRST_PEER, 64):
        node.set_peer(slot, packed(f"192.0.2.{slot}"))
    for number in range(1 << 14):
        assert node.find(b"\xC6\x33" + number.to_bytes(2, "big")) == NO_SLOT


def test_builder_grows_with_its_peers() -> None:
    builder = Builder(packed("10.0.0.0"), 8, 24)
    assert builder.status()["peer_capacity"] == 64
    builder.set_peer(5000, 1, packed("192.0.2.1"), 8285)
    assert builder.status()["peer_capacity"] == 8192


@pytest.mark.parametrize(("slot", "generation", "address", "coat"), [
    (0, 1, "192.0.2.1", b""), (2, 1, "192.0.2.1", b""), (FIRST_PEER, 0, "192.0.2.1", b""),
    (FIRST_PEER + 512, 1, "192.0.2.1", b""), (FIRST_PEER, 1, "2001:db8::1", b""),
    (FIRST_PEER, 1, "192.0.2.1", bytes(23)),
])
def test_what_is_no_peer_is_refused(slot: int, generation: int, address: str, coat: bytes) -> None:
    builder = Builder(packed("10.5.0.0"), 16, 24)
    with pytest.raises(ValueError, match=r"slot|coat"):
        builder.set_peer(slot, generation, packed(address), 8285, coat)


def test_deleting_nobody_does_nothing() -> None:
    builder = Builder(packed("10.5.0.0"), 16, 24)
    for slot in (0, FIRST_PEER, 63, 64, 1 << 31):
        builder.delete_peer(slot)
