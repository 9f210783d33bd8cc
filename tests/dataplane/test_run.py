"""run.pxd: consecutive datagrams of one size to one node are one message; the last may be shorter; no byte moves."""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._probe import run

from .super_packets import text

MOST, BYTES = 127, 65487


def shape(*datagrams: tuple[int, int], most: int = MOST) -> list[tuple[int, list[int]]]:
    """The runs that (slot, length) pairs make, as (slot, lengths)."""
    pairs = [(slot, text(length, i)) for i, (slot, length) in enumerate(datagrams)]
    made = run(pairs, most)
    assert [(slot, one) for slot, _, several in made for one in several] == pairs
    assert all(size == len(several[0]) for _, size, several in made)
    return [(slot, [len(one) for one in several]) for slot, _, several in made]


@pytest.mark.parametrize(("datagrams", "runs"), [
    ([], []),
    ([(5, 100)], [(5, [100])]),
    ([(5, 100), (5, 100), (5, 100)], [(5, [100, 100, 100])]),
    ([(5, 100), (6, 100), (5, 100)], [(5, [100]), (6, [100]), (5, [100])]),
    ([(5, 100), (5, 60), (5, 60)], [(5, [100, 60]), (5, [60])]),
    ([(5, 100), (5, 60), (5, 100)], [(5, [100, 60]), (5, [100])]),
    ([(5, 60), (5, 100), (5, 100)], [(5, [60]), (5, [100, 100])]),
    ([(5, 1), (5, 1), (5, 2)], [(5, [1, 1]), (5, [2])]),
    ([(5, 65507), (5, 20)], [(5, [65507]), (5, [20])]),
    ([(5, 40000), (5, 25487)], [(5, [40000, 25487])]),
    ([(5, 40000), (5, 25488)], [(5, [40000]), (5, [25488])]),
])
def test_runs(datagrams: list[tuple[int, int]], runs: list[tuple[int, list[int]]]) -> None:
    assert shape(*datagrams) == runs


@pytest.mark.parametrize(("lanes", "runs"), [
    ([0, 0, 0], [3]), ([1, 1, 1], [3]), ([0, 1, 1], [1, 2]), ([4, 0, 4], [1, 1, 1]), ([1 << 8, 1 << 8, 1], [2, 1])])
def test_a_message_has_one_lane(lanes: list[int], runs: list[int]) -> None:
    """One socket, one mark in the outer headers."""
    assert [len(several) for _, _, several in run([(5, b"x")] * 3, lanes=lanes)] == runs


@pytest.mark.parametrize("most", [1, 2, 63, 127])
def test_as_many_as_the_kernel_takes(most: int) -> None:
    assert [len(lengths) for _, lengths in shape(*[(5, 20)] * 300, most=most)] == (
        [most] * (300 // most) + [300 % most] * (300 % most > 0))


@pytest.mark.parametrize("length", [1472, 1400, 516, 515])
def test_as_many_as_a_message_holds(length: int) -> None:
    fit = min(BYTES // length, MOST)
    assert [len(lengths) for _, lengths in shape(*[(5, length)] * (fit + 1))] == [fit, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(4, 6), st.sampled_from((20, 21, 700, 1472, 9000))), max_size=60),
       st.integers(1, MOST))
def test_any_sequence(datagrams: list[tuple[int, int]], most: int) -> None:
    """Order and bytes stay; every message is one that UDP_SEGMENT can cut; none could have taken the next datagram."""
    made = shape(*datagrams, most=most)
    for i, (slot, lengths) in enumerate(made):
        assert len(lengths) <= most
        assert sum(lengths) <= BYTES
        assert len(list(groupby(lengths[:-1]))) <= 1
        assert lengths[-1] <= lengths[0]
        if made[i + 1:]:
            after, (size, *_) = made[i + 1]
            assert (after != slot or size > lengths[0] or lengths[-1] < lengths[0] or len(lengths) == most
                    or sum(lengths) + size > BYTES)


def test_no_room_for_more_than_the_kernel_knows() -> None:
    for most in (0, 128):
        with pytest.raises(ValueError, match="room for 127"):
            run([(5, b"x")], most)
