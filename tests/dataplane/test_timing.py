"""The loops that micro benchmarks time do the rooms' work, every time anew: counted, and compared with the probe's."""

import pytest

from flannel_udp import _probe, _timing

from .packets import ipv4, packed
from .super_packets import ALL, NAMES, Flow, text

REPEATS = 3


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_segmenting_makes_every_segment_each_time(flow: Flow) -> None:
    packet, vnet = flow.super_packet(text(10_000), 1400)
    segments = _probe.segment(packet, vnet.packed())
    assert isinstance(segments, list)
    assert _timing.segment(packet, vnet.packed(), REPEATS) == REPEATS * len(segments)


def test_what_cannot_be_segmented_makes_nothing() -> None:
    packet, vnet = ALL[0].super_packet(text(10_000), 1400)
    assert _timing.segment(packet, vnet.but(gso_size=0), REPEATS) == 0


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_merging_finds_the_same_packets_each_time(flow: Flow) -> None:
    alone = Flow(version=flow.version, protocol=flow.protocol, sport=flow.sport + 1).packet(text(100))
    packets = [*flow.segments(text(10_000), 1400), alone, *flow.segments(text(3_000), 1000)]
    frames = _probe.coalesce(packets, True)
    assert 1 < len(frames) < len(packets)
    assert _timing.coalesce(packets, True, REPEATS) == REPEATS * len(frames)


def test_a_packet_whose_checksum_is_wrong_is_looked_at_each_time() -> None:
    first, second = ALL[0].segments(text(2_000), 1000)
    broken = second[:-1] + bytes([second[-1] ^ 1])
    assert _timing.coalesce([first, broken], True, REPEATS) == 2 * REPEATS
    assert _timing.coalesce([], True, REPEATS) == 0


def test_hops_coats_runs_checksums_and_errors_are_counted() -> None:
    assert _timing.hop(ipv4(ttl=2), REPEATS) == REPEATS
    assert _timing.hop(ipv4(ttl=1), REPEATS) == 0
    assert _timing.encap(22, 100, REPEATS) == _timing.encap(0, 100, REPEATS) == REPEATS
    assert _timing.run(64, 10, 4, REPEATS) == 3 * REPEATS
    assert _timing.checksum(text(1400), REPEATS) == REPEATS
    error = _probe.icmp_error(ipv4(), packed("10.5.1.1"), 3, 4, 0)
    assert _timing.icmp_error(ipv4(), packed("10.5.1.1"), 3, 4, REPEATS) == REPEATS * len(error)


@pytest.mark.parametrize("wrong", [
    lambda: _timing.hop(b"short", 1), lambda: _timing.segment(ipv4(), b"short", 1), lambda: _timing.encap(23, 1, 1),
])  # fmt: skip
def test_what_would_overrun_is_refused(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=r"IPv4 packet|vnet_hdr|coat_length"):
        wrong()
