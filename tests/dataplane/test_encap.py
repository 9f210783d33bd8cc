"""encap.pxd: coats of any length on and off again; without one, the datagram is the bare inner packet."""

import pytest

from flannel_udp._dataplane import SOURCE_CHECKS, Builder, Worker
from flannel_udp._probe import Node

from . import packets
from .packets import NAMES, packed
from .rig import Rig

COATS = [b"", b"\x08", bytes.fromhex("0800000000000100"), bytes(range(22))]


def node_with_coat(length: int) -> Node:
    node = Node(packed("10.5.0.0"), 16, 24, source_check=SOURCE_CHECKS["known"], coat_length=length)
    node.set_subnet(packed("10.5.1.0"), 1)
    node.set_peer(3, packed("192.0.2.2"))
    return node


@pytest.mark.parametrize("coat", COATS, ids=len)
def test_coat_off(coat: bytes) -> None:
    node, data = node_with_coat(len(coat)), packets.packet(4, 2, 1)
    outcome, slot, inner = node.into(packed("192.0.2.2"), coat + data)
    assert (NAMES[outcome], slot, inner) == ("forward", 3, packets.hop(data))


@pytest.mark.parametrize("coat", COATS[1:], ids=len)
def test_half_a_coat_is_truncated(coat: bytes) -> None:
    node = node_with_coat(len(coat))
    for length in range(len(coat) + 1):
        outcome, _, left = node.into(packed("192.0.2.2"), coat[:length])
        assert NAMES[outcome] == "truncated"
        assert left == (coat[:length] if length < len(coat) else b"")


@pytest.mark.parametrize("coat", COATS, ids=len)
def test_dressed_and_undressed_by_the_loops(coat: bytes) -> None:
    """Out of one node's socket comes coat and packet; into the other's goes the same."""
    with Rig(coat=coat) as rig:
        for ttl in (64, 63, 62):
            data = packets.packet(4, 1, 2, ttl=ttl)
            rig.give(data)
            datagram = rig.receive()
            assert datagram == coat + packets.hop(data)
            answer = packets.packet(4, 2, 1, ttl=ttl)
            rig.send(coat + answer)
            assert rig.take() == packets.hop(answer)


@pytest.mark.parametrize("length", [-1, 23])
def test_coats_that_no_peer_can_hold(length: int) -> None:
    with pytest.raises(ValueError, match="coat of"):
        Worker(Builder(packed("10.5.0.0"), 16, 24), coat_length=length, ttl_step=1, overhead=28, source_check=0)
