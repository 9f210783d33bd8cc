"""counters.pxd: names told once, each with a meaning; the law, under a mixture of everything."""

import contextlib
import random
import re
import socket
from functools import partial

import pytest

from flannel_udp._dataplane import EVENTS, OUTCOMES
from flannel_udp._probe import FORWARD

from ..conftest import wait_until
from . import packets
from .rig import Rig, udp_socket


def test_names_are_plain_and_told_once() -> None:
    names = [name for name, _, _ in OUTCOMES] + [name for name, _ in EVENTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)


def test_meanings_are_one_sentence_each() -> None:
    meanings = [meaning for _, _, meaning in OUTCOMES] + [meaning for _, meaning in EVENTS]
    assert len(set(meanings)) == len(meanings)
    for meaning in meanings:
        assert len(meaning) > 10
        assert not meaning.endswith(".")
        assert meaning == meaning.strip()


def test_directions() -> None:
    assert {way for _, way, _ in OUTCOMES} == {"out", "in", "both"}
    handed_over = {name: way for name, way, _ in OUTCOMES if name in ("sent", "delivered")}
    assert handed_over == {"sent": "out", "delivered": "in"}


def test_forward_is_no_outcome() -> None:
    assert len(OUTCOMES) + 1 == FORWARD


def taken(rig: Rig, count: int) -> bool:
    return rig.worker.counters("in")[0] == count


def drain(opened: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            opened.recv(1 << 16)


@pytest.mark.parametrize("family", [4, 6])
def test_the_law_under_everything_at_once(family: int) -> None:
    """Good, lost, broken and foreign packets in random order through both loops; the rig's end checks the law."""
    dice = random.Random(family)
    good = packets.packet(family, 1, 2), packets.packet(family, 2, 1)
    kinds = [*good, b"", b"\x15" * 30, good[0][:-1], good[0][:10], packets.packet(10 - family, 1, 2),
             packets.packet(family, 1, 9), packets.packet(family, 2, 9), packets.packet(family, 1, 1),
             packets.packet(family, 1, 2, ttl=1), packets.packet(family, 2, 1, ttl=1)]
    with Rig(family) as rig:
        rig.kernel.setblocking(False)
        rig.peer.setblocking(False)
        sent = 400
        for number in range(sent):
            data = dice.choice(kinds)
            if data:  # an empty message of a socket pair is its end, which a TUN does not have
                rig.give(data)
            rig.send(data)
            if number % 20 == 19:
                wait_until(partial(taken, rig, number + 1), "all are taken")
                drain(rig.kernel)
                drain(rig.peer)
        assert len(rig.outcomes("in")) >= 5
        assert len(rig.outcomes("out")) >= 5


@pytest.mark.parametrize("coat", [b"", bytes(22)], ids=["bare", "coat"])
def test_bytes_out_are_those_of_packets_that_were_sent(coat: bytes) -> None:
    sent = [packets.packet(4, 1, 2, bytes(size)) for size in (1, 100, 100, 1000)]
    with Rig(coat=coat) as rig:
        for data in (*sent, packets.packet(4, 1, 9), sent[0][:-1]):
            rig.give(data)
        rig.wait_for("out", "truncated")
        wait_until(lambda: rig.events("out")["bytes"] == sum(map(len, sent)), "they are counted, and no others")


def test_bytes_in_are_those_of_packets_that_were_delivered_whoever_sent_them() -> None:
    came = [packets.packet(4, 2, 1, bytes(size)) for size in (1, 100, 1000)]
    with Rig(source_check="off") as rig, udp_socket("127.0.0.3") as stranger:
        for data in (*came, packets.packet(4, 2, 9)):
            rig.send(data)
        stranger.sendto(came[0], rig.udp.getsockname())
        rig.wait_for("in", "not_ours")
        total = sum(map(len, [*came, came[0]]))
        wait_until(lambda: rig.events("in")["bytes"] == total, "they are counted, and no others")
