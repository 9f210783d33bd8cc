"""Random and mutated datagrams, super-packets and batches: never a crash; what comes of each is what an oracle says.

FLANNEL_UDP_FUZZ tells how many datagrams, how many super-packets with their vnet_hdr, and how many packets in batches
to be merged: a million each under the sanitizers, which see every byte read too many, and fewer without. The oracle is
the documents' reading of a packet in plain Python, from version to hop. The seed is printed by a failing assertion.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest

from flannel_udp._dataplane import FIRST_PEER, OWN_SLOT, SOURCE_CHECKS
from flannel_udp._probe import Node, coalesce, finish, icmp_allowed, icmp_error, inner, segment

from . import packets
from .packets import NAMES, ipv4, ipv6, packed
from .super_packets import ALL, BULK4, BULK6, TIMESTAMPS, Flow, text

SANITIZED = "FLANNEL_UDP_SANITIZED" in os.environ
TOTAL = int(os.environ.get("FLANNEL_UDP_FUZZ", "1000000" if SANITIZED else "100000"))
SEED = int(os.environ.get("FLANNEL_UDP_FUZZ_SEED", "1"))
CASES = list(product((4, 6), SOURCE_CHECKS, ("in", "out")))
HEADER = {4: 20, 6: 40}
# Where what a decision depends on stands: version, lengths, TTL, addresses; mutations prefer it.
PLACES = {4: (0, 2, 3, 6, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19), 6: (0, 4, 5, 6, 7, 8, 9, 15, 23, 24, 25, 31, 39)}
SLOTS = {1: OWN_SLOT, 2: FIRST_PEER, 3: FIRST_PEER + 1}


def underlay(family: int, number: int) -> bytes:
    return packed(f"192.0.2.{number}" if family == 4 else f"2001:db8::{number}")


def make_node(family: int, check: str, **rules: Any) -> Node:  # noqa: ANN401 - as Node has them
    """Node 1; peers 2 and 3; one more address of the node's own, in nobody's subnet."""
    network = (packed("10.5.0.0"), 16, 24) if family == 4 else (packed("fd05::"), 48, 64)
    node = Node(*network, source_check=SOURCE_CHECKS[check], **rules)
    for number, slot in SLOTS.items():
        node.set_subnet(packed(f"10.5.{number}.0" if family == 4 else f"fd05:0:0:{number}::"), slot)
        if slot >= FIRST_PEER:
            node.set_peer(slot, underlay(family, number))
    node.set_own([packed("10.5.77.1" if family == 4 else "fd05:0:0:77::1")])
    return node


@cache
def where(address: bytes) -> str | int:
    """The number of a subnet's node, "none" or "outside", by the address alone."""
    prefix, third = (address[:2], address[2]) if len(address) == 4 else (address[:6], address[6] << 8 | address[7])
    if prefix != (b"\x0A\x05" if len(address) == 4 else b"\xFD\x05\0\0\0\0"):
        return "outside"
    return third if third in SLOTS else "none"


def parsed(family: int, data: bytes) -> str | int:
    """What is wrong with a packet, or its true length."""
    if not data:
        return "truncated"
    version = data[0] >> 4
    if version not in (4, 6):
        return "not_ip"
    if version != family:
        return "other_family"
    if len(data) < HEADER[family]:
        return "truncated"
    if family == 6:
        length = 40 + (data[4] << 8 | data[5])
    else:
        length = data[2] << 8 | data[3]
        if data[0] & 15 < 5 or length < (data[0] & 15) * 4:
            return "bad_header"
    return length if length <= len(data) else "truncated"


def addresses(family: int, data: bytes) -> tuple[bytes, bytes]:
    return (data[12:16], data[16:20]) if family == 4 else (data[8:24], data[24:40])


def alive(family: int, data: bytes) -> str:
    return "forward" if data[8 if family == 4 else 7] > 1 else "ttl_expired"


def oracle_out(family: int, data: bytes) -> str:
    length = parsed(family, data)
    if isinstance(length, str):
        return length
    to = where(addresses(family, data)[1])
    names = {"outside": "out_of_network", "none": "no_route", 1: "own_subnet"}
    return names.get(to) or alive(family, data)


def oracle_in(family: int, check: str, sender: int, data: bytes) -> str:
    if check != "off" and sender not in (2, 3):
        return "unknown_sender"
    length = parsed(family, data)
    if isinstance(length, str):
        return length
    source, destination = addresses(family, data)
    leased_by = where(source)
    if leased_by == 1 or source in (b"\x0A\x05\x4D\x01", packed("fd05:0:0:77::1")):
        return "own_source"
    if check == "strict" and leased_by != sender:
        return "source_mismatch"
    if where(destination) != 1:
        return "not_ours"
    return alive(family, data)


def templates(family: int, direction: str) -> list[bytes]:
    """Packets near every decision."""
    near, far = (2, 1) if direction == "in" else (1, 2)
    made = [packets.packet(family, near, far, bytes(size), ttl) for size in (0, 8, 60) for ttl in (0, 1, 2, 64)]
    made += [packets.packet(family, *ends) for ends in ((3, 1), (1, 1), (2, 3), (4, 1), (1, 9), (2, 9))]
    if family == 4:
        made += [ipv4("10.5.2.9", "10.5.1.9", options=b"\x01" * 40), ipv4("10.5.77.1", "10.5.1.9"),
                 ipv4("10.5.1.9", "192.0.2.1"), ipv4("10.5.2.9", "10.5.1.9", fragment=0x2001)]
    else:
        made += [ipv6("fd05:0:0:77::1", "fd05:0:0:1::9"), ipv6("fd05:0:0:1::9", "2001:db8::1"),
                 ipv6("fd05:0:0:2::9", "fd05:0:0:1::9", b"\x2C\x01" + bytes(62), next_header=0)]
    made += [packets.packet(10 - family, near, far)]
    return made


def mutated(family: int, made: list[bytes], dice: random.Random) -> Iterator[bytes]:
    """Endless packets: a few as they are, most with bytes changed, cut or padded, some of nothing but chance."""
    places, pick = PLACES[family], dice.random
    while True:
        kind = pick()
        if kind < 0.05:
            yield dice.randbytes(int(pick() * 80))
            continue
        data = bytearray(made[int(pick() * len(made))])
        for _ in range(int(pick() * 4)):
            at = places[int(pick() * len(places))] % len(data) if pick() < 0.7 else int(pick() * len(data))
            data[at] = int(pick() * 256) if pick() < 0.5 else data[at] ^ 1 << int(pick() * 8)
        if kind < 0.25:
            del data[int(pick() * (len(data) + 1)):]
        elif kind < 0.35:
            data += bytes(int(pick() * 40))
        yield bytes(data)


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("family", "check", "direction"), CASES)
def test_every_decision_is_the_oracles(family: int, check: str, direction: str) -> None:
    dice = random.Random(f"{SEED} {family} {check} {direction}")
    node, made = make_node(family, check), templates(family, direction)
    senders = {number: underlay(family, number) for number in (2, 3, 9)}
    seen: Counter[str] = Counter()
    stream = mutated(family, made, dice)
    for _ in range(TOTAL // len(CASES)):
        data = next(stream)
        sender = 2 if dice.random() < 0.7 else dice.choice((2, 3, 9))
        if direction == "in":
            outcome, _, after = node.into(senders[sender], data)
            expected = oracle_in(family, check, sender, data)
        else:
            outcome, _, after = node.out(data)
            expected = oracle_out(family, data)
        name = NAMES[outcome]
        assert name == expected, (SEED, sender, data.hex())
        seen[name] += 1
        if name == "forward":
            length = parsed(family, data)
            assert isinstance(length, int)
            assert len(after) == length
            assert after[12:] == data[12:length]
            if seen[name] % 8 == 1 and packets.naive_sum(data[:(data[0] & 15) * 4]) == 0xFFFF:
                assert after == packets.hop(data[:length]), (SEED, data.hex())
        else:
            assert data.startswith(after)
    assert TOTAL < 10_000 or len(seen) >= 7, seen


@pytest.mark.timeout(0)
@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_anything_are_errors(family: int) -> None:
    """Whatever passed the door may be asked about and quoted; an error fits its bounds and is never answered."""
    dice = random.Random(f"{SEED} {family}")
    own = packed("10.5.1.0" if family == 4 else "fd05:0:0:1::")
    limit, kind = (576, 11) if family == 4 else (1280, 3)
    made = [*templates(family, "out"), packets.packet(family, 1, 2, bytes(2000))]
    if family == 6:
        made += [ipv6(payload=bytes([following, size, *bytes(70)]), next_header=first)
                 for first in (0, 43, 44, 51, 60) for following in (0, 44, 51, 58, 60) for size in (0, 1, 7, 255)]
    else:
        made += [ipv4(payload=bytes([kind, *bytes(20)]), protocol=1) for kind in (0, 3, 8, 11)]
    stream, answered = mutated(family, made, dice), 0
    for _ in range(TOTAL // 20):
        data = next(stream)
        length = parsed(family, data)
        if isinstance(length, str) or not icmp_allowed(data[:length]):
            continue
        answered += 1
        error = icmp_error(data[:length], own, kind, 0, 0)
        assert len(error) == min(limit, HEADER[family] + 8 + length)
        assert error.endswith(data[:limit - HEADER[family] - 8][:length])
        assert not icmp_allowed(error)
    assert TOTAL < 10_000 or answered > 100


def valid(data: bytes) -> bool:
    """Whether the rooms behind the door may see it: one IP packet, without padding."""
    return bool(data) and NAMES[(found := inner(data, 4 if data[0] >> 4 == 4 else 6))[0]] == "forward" and (
        found[1] == len(data))


def disturbed(data: bytes, pick: Callable[[], float], most: int = 3) -> bytes:
    """A few bytes changed, most of them among the headers."""
    changed = bytearray(data)
    headers = min(len(data), 80)
    for _ in range(int(pick() * most)):
        changed[int(pick() * (headers if pick() < 0.8 else len(data)))] = int(pick() * 256)
    return bytes(changed)


VARIED = [*ALL, replace(BULK4, options=TIMESTAMPS), replace(BULK6, extension=True), replace(BULK4, flags="CEFPA"),
          replace(BULK4, dont_fragment=False)]
LIES = (0, 1, 19, 20, 39, 40, 64, 255)
"""For any field of a vnet_hdr: numbers near what a decision depends on."""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("flow", VARIED, ids=lambda flow: str(flow)[5:40])
def test_vnet_headers_and_super_packets_of_any_kind(flow: Flow) -> None:
    """Nothing is read or written beside the packet; what is divided is valid again, and holds all of the payload."""
    pick = random.Random(f"{SEED} {flow}").random
    made = []
    for size in (1, 99, 100, 101, 1000):
        data, vnet = flow.super_packet(text(size), 100)
        made.append((data, vnet.packed(), [vnet.but(**{name: lie}) for name in vars(vnet) for lie in LIES]))
    seen: Counter[str] = Counter()
    for _ in range(TOTAL // len(VARIED)):
        data, header, lies = made[int(pick() * len(made))]
        data = disturbed(data, pick)
        header = lies[int(pick() * len(lies))] if pick() < 0.2 else disturbed(header, pick, 4)
        try:
            become = segment(data, header)
        except ValueError:
            seen["no packet"] += 1
            continue
        if isinstance(become, int):
            seen[NAMES[become]] += 1
            continue
        seen["divided" if len(become) > 1 else "one"] += 1
        if header[1] == 0:
            assert [len(one) for one in become] == [len(data)]
            continue
        if seen["divided"] % 8 == 1:
            assert all(valid(one) for one in become), (SEED, data.hex(), header.hex())
        if len(become) > 1:
            # Every segment has headers of its own, so that the lengths tell how long these are.
            headers = (sum(map(len, become)) - len(data)) // (len(become) - 1)
            assert b"".join([one[headers:] for one in become]) == data[headers:], (SEED, data.hex(), header.hex())
    assert TOTAL < 10_000 or len(seen) >= 4, seen


@pytest.mark.timeout(0)
@pytest.mark.parametrize("flow", VARIED, ids=lambda flow: str(flow)[5:40])
def test_packets_that_a_peers_kernel_left_unfinished(flow: Flow) -> None:
    """Nothing is read or written beside the packet; what stands for many is divided into so many, without a loss."""
    pick = random.Random(f"{SEED} unfinished {flow}").random
    made = [flow.super_packet(text(size), 100)[0] for size in (1, 100, 150, 1400, 5000)]
    seen: Counter[str] = Counter()
    for _ in range(TOTAL // len(VARIED) // 4):
        data = made[int(pick() * len(made))]
        if pick() < 0.7:
            data = disturbed(data, pick)
        try:
            found, count, vnet = finish(data, (0, 1, 99, 100, 65535)[int(pick() * 5)],
                                        (0, 100, 1280, 1450)[int(pick() * 4)])
        except ValueError:
            seen["no packet"] += 1
            continue
        assert len(found) == len(data)
        if count == 1:
            assert vnet == bytes(10), (SEED, data.hex())
            seen["finished" if found != data else "left"] += 1
            continue
        assert found == data
        parts = segment(found, vnet)
        if isinstance(parts, int):
            seen[NAMES[parts]] += 1
            continue
        seen["divided"] += 1
        assert len(parts) == count, (SEED, data.hex())
        headers = (sum(map(len, parts)) - len(data)) // (count - 1)
        assert b"".join([one[headers:] for one in parts]) == data[headers:], (SEED, data.hex())
    assert TOTAL < 10_000 or len(seen) >= 4, seen


def oracle_coat(data: bytes, own: bytes, vni: bytes, family: int) -> str:
    """What is wrong with a VXLAN and Ethernet header, read byte by byte."""
    if len(data) < 22:
        return "truncated"
    if data[:4] != b"\x08\0\0\0" or data[7]:
        return "bad_flags"
    if data[4:7] != vni:
        return "other_vni"
    if data[8:14] != own:
        return "other_mac"
    if data[14:20] == own:
        return "own_mac"
    return "" if data[20:22] == (b"\x08\x00" if family == 4 else b"\x86\xdd") else "other_ethertype"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("family", [4, 6])
def test_coats_of_any_kind(family: int) -> None:
    """The coat's oracle first, then the packet's; congestion marks change nothing but their bits."""
    dice = random.Random(f"{SEED} coats {family}")
    own, vni = bytes([2, 0, 0, 0, 0, 1]), b"\x00\x10\x01"
    good = b"\x08\0\0\0" + vni + b"\0" + own + bytes([2, 0, 0, 0, 0, 2])
    good += b"\x08\x00" if family == 4 else b"\x86\xdd"
    node = make_node(family, "known", coat_length=22, expected=good, ecn=True, ttl_step=0)
    inside, seen = mutated(family, templates(family, "in"), dice), Counter[str]()
    for _ in range(TOTAL // 10):
        coat = bytearray(good)
        for _ in range(dice.choice((0, 0, 1, 2))):
            coat[dice.randrange(22)] = dice.choice((0, 1, 2, 8, own[5], dice.randrange(256)))
        data = next(inside)
        whole = (bytes(coat) + data)[:dice.choice((22, 100_000, 100_000, dice.randrange(60)))]
        mark = dice.randrange(4)
        outcome, _, after = node.into(underlay(family, 2), whole, mark)
        due = oracle_coat(whole, own, vni, family) or oracle_in(family, "known", 2, whole[22:])
        inner_mark = (whole[23] if family == 4 else whole[23] >> 4) & 3 if len(whole) > 23 else 0
        if due in ("forward", "ttl_expired"):
            due = "ce_lost" if (inner_mark, mark) == (0, 3) else "forward"
        assert NAMES[outcome] == due, (SEED, whole.hex(), mark)
        seen[due] += 1
        if due == "forward":
            assert after[2:10] + after[12:] == whole[24:32] + whole[34:22 + len(after)]
    assert TOTAL < 10_000 or len(seen) >= 9, seen


@pytest.mark.timeout(0)
@pytest.mark.parametrize("uso", [True, False])
def test_batches_of_any_kind_come_back(uso: bool) -> None:
    """Merged and undone, or merged and divided, a batch is what it was, in its order."""
    pick = random.Random(f"{SEED} {uso}").random
    trains = [replace(flow, ident=at * 100).segments(text(1000), size)
              for at, flow in enumerate(VARIED) for size in (100, 70)]
    merged = given = 0
    while given < TOTAL // 2:
        batch = [one for _ in range(1 + int(pick() * 3)) for one in trains[int(pick() * len(trains))]]
        given += len(batch)
        for _ in range(int(pick() * 4)):
            at = int(pick() * len(batch))
            batch[at] = disturbed(batch[at], pick) if pick() < 0.7 else batch[int(pick() * len(batch))]
            if not valid(batch[at]):
                del batch[at]
        frames = coalesce(batch, uso)
        assert [one for frame in coalesce(batch, uso, undo=True) for one in frame] == batch, SEED
        assert sum(count for _, _, count in frames) == len(batch)
        at = 0
        for vnet, frame, count in frames:
            if count > 1:
                merged += 1
                parts = segment(frame, vnet)
                assert isinstance(parts, list)
                # Where DF is set the identification means nothing, and a merge may count it anew.
                assert parts == (came := batch[at:at + count]) or [*map(masked, parts)] == [*map(masked, came)], SEED
            else:
                assert frame == batch[at], SEED
            at += count
    assert merged


def masked(data: bytes) -> bytes:
    """A packet without identification and header checksum, if it is IPv4 with DF."""
    if data[0] >> 4 != 4 or not data[6] & 0x40:
        return data
    return data[:4] + b"id" + data[6:10] + b"ck" + data[12:]
