"""icmp.pxd: the errors as scapy reads them, when there must be none, and how many at once."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)

from flannel_udp._probe import RateLimit, icmp_allowed, icmp_error

from .packets import ICMP as PROTOCOL_ICMP
from .packets import ICMPV6, ipv4, ipv6, naive_checksum, packed

OWN4, OWN6 = "10.5.3.0", "fd05:0:0:3::"
MILLISECOND = 1_000_000


@pytest.mark.parametrize("size", [20, 28, 100, 547, 548, 549, 1472, 65535])
@pytest.mark.parametrize(("kind", "code", "rest"), [(3, 0, 0), (11, 0, 0), (3, 4, 1272), (3, 4, 65534)])
def test_ipv4_error_as_scapy_reads_it(kind: int, code: int, rest: int, size: int) -> None:
    offender = ipv4("10.5.1.2", "10.5.9.9", bytes(size - 20), ttl=1)
    error = icmp_error(offender, packed(OWN4), kind, code, rest)
    read = IP(error)
    assert (read.src, read.dst, read.ttl, read.tos, read.proto) == (OWN4, "10.5.1.2", 64, 0xC0, PROTOCOL_ICMP)
    assert (read.flags, read.frag, read.id, read.ihl) == ("DF", 0, 0, 5)
    assert (read[ICMP].type, read[ICMP].code) == (kind, code)
    assert error[24:28] == rest.to_bytes(4, "big")
    quote = error[28:]
    assert quote == offender[:548]
    assert read.len == len(error) == min(20 + 8 + size, 576)
    assert naive_checksum(error[:20]) == b"\0\0"
    assert naive_checksum(error[20:]) == b"\0\0"


@pytest.mark.parametrize("size", [40, 48, 100, 1231, 1232, 1233, 65535])
@pytest.mark.parametrize(("layer", "kind", "rest"), [
    (ICMPv6DestUnreach, 1, 0), (ICMPv6PacketTooBig, 2, 1400), (ICMPv6TimeExceeded, 3, 0)])
def test_ipv6_error_as_scapy_reads_it(layer: Any, kind: int, rest: int, size: int) -> None:  # noqa: ANN401
    offender = ipv6("fd05:0:0:1::2", "fd05:0:0:9::9", bytes(size - 40), hop_limit=1)
    error = icmp_error(offender, packed(OWN6), kind, 0, rest)
    read = IPv6(error)
    assert (read.src, read.dst, read.hlim, read.nh, read.tc, read.fl) == (OWN6, "fd05:0:0:1::2", 64, ICMPV6, 0, 0)
    assert isinstance(read.payload, layer)
    assert (read.payload.type, read.payload.code) == (kind, 0)
    assert error[44:48] == rest.to_bytes(4, "big")
    assert error[48:] == offender[:1232]
    assert read.plen + 40 == len(error) == min(40 + 8 + size, 1280)
    pseudo_header = packed(OWN6) + packed("fd05:0:0:1::2") + (len(error) - 40).to_bytes(4, "big") + b"\0\0\0\x3A"
    assert naive_checksum(pseudo_header + error[40:]) == b"\0\0"


V6 = IPv6(src="fd05:0:0:1::2", dst="fd05:0:0:9::9")
FRAGMENT_FIRST, FRAGMENT_LATER = IPv6ExtHdrFragment(offset=0, m=1), IPv6ExtHdrFragment(offset=1, m=0)
AUTHENTICATION = bytes([ICMPV6, 4]) + bytes(22)  # RFC 4302: (4 + 2) words of 4 bytes

ALLOWED: dict[str, bytes] = {
    "UDP": ipv4(),
    "TCP": ipv4(protocol=6),
    "with options": ipv4(options=b"\x01" * 8),
    "first fragment": ipv4(fragment=0x2000),
    "DF": ipv4(fragment=0x4000),
    **{f"ICMP {kind}": ipv4(protocol=PROTOCOL_ICMP, payload=bytes([kind, *bytes(7)])) for kind in (0, 8, 13, 14)},
    "UDP over IPv6": ipv6(),
    "no next header": ipv6(next_header=59),
    "ICMPv6 echo": bytes(V6 / ICMPv6EchoRequest()),
    "ICMPv6 echo reply": bytes(V6 / ICMPv6EchoReply()),
    "echo behind hop-by-hop": bytes(V6 / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest()),
    "echo behind four headers": bytes(
        V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / FRAGMENT_FIRST / ICMPv6EchoRequest()),
    "echo behind AH": ipv6(next_header=51, payload=AUTHENTICATION + b"\x80" + bytes(7)),
    "first IPv6 fragment": bytes(V6 / FRAGMENT_FIRST / bytes(8)),
    "ICMPv6 that is in no first header": ipv6(payload=b"\x11\x00" + bytes(6), next_header=60),
}

NEVER: dict[str, bytes] = {
    **{f"about ICMP {kind}": ipv4(protocol=PROTOCOL_ICMP, payload=bytes([kind, *bytes(7)]))
       for kind in (1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 15, 30, 255)},
    "about an error behind options": ipv4(protocol=PROTOCOL_ICMP, payload=b"\x03" + bytes(7), options=b"\x01" * 8),
    **{f"about ICMP cut to {length} bytes": ipv4(protocol=PROTOCOL_ICMP, payload=bytes([8, *bytes(6)])[:length])
       for length in (0, 1, 7)},
    "later fragment": ipv4(fragment=0x0001),
    "last fragment": ipv4(fragment=0x1FFF),
    "wrong header checksum": ipv4()[:10] + b"\xBE\xEF" + ipv4()[12:],
    **{f"from {source}": ipv4(source) for source in (
        "0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255")},
    **{f"to {destination}": ipv4(destination=destination) for destination in (
        "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255")},
    **{f"about ICMPv6 {kind}": ipv6(next_header=ICMPV6, payload=bytes([kind, *bytes(7)]))
       for kind in (0, 1, 2, 3, 4, 100, 127, 137)},
    "about ICMPv6 without its type": ipv6(next_header=ICMPV6, payload=b""),
    "later IPv6 fragment": bytes(V6 / FRAGMENT_LATER / bytes(8)),
    "later fragment behind a header": bytes(V6 / IPv6ExtHdrDestOpt() / FRAGMENT_LATER / bytes(8)),
    "error behind hop-by-hop": bytes(V6 / IPv6ExtHdrHopByHop() / ICMPv6TimeExceeded()),
    "error behind a long header": ipv6(next_header=60, payload=bytes([ICMPV6, 2, 1, 20, *bytes(20), 2, *bytes(7)])),
    "error behind AH": ipv6(next_header=51, payload=AUTHENTICATION + b"\x01" + bytes(7)),
    "extension header cut off": ipv6(next_header=0, payload=b"\x11\x00" + bytes(5)),
    "ICMPv6 beyond the end": ipv6(next_header=60, payload=bytes([ICMPV6, 5, *bytes(6)])),
    **{f"from {source}": ipv6(source) for source in ("::", "::1", "::10.5.1.2", "ff02::1", "ff0e::9")},
    "to ff02::1": ipv6(destination="ff02::1"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_errors_are_due(name: str) -> None:
    assert icmp_allowed(ALLOWED[name])


@pytest.mark.parametrize("name", NEVER)
def test_never_about(name: str) -> None:
    assert not icmp_allowed(NEVER[name])


def test_edges_of_unicast() -> None:
    """One address below or above what is forbidden."""
    for source in ("1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255"):
        assert icmp_allowed(ipv4(source, source)), source
    for source in ("::1:0:0", "feff:ffff::1", "fe80::1"):
        assert icmp_allowed(ipv6(source, source)), source


def test_an_error_is_never_answered() -> None:
    for offender, own, kind in ((ipv4(), OWN4, 11), (ipv6(), OWN6, 3)):
        assert not icmp_allowed(icmp_error(offender, packed(own), kind, 0, 0))


def test_every_cut_of_a_chain_ends() -> None:
    """Chains of headers cut anywhere, and lengths that lead far beyond the end."""
    chain = ALLOWED["echo behind four headers"]
    for length in range(40, len(chain)):
        icmp_allowed(chain[:length])
    for next_header in (0, 43, 44, 51, 60):
        for size in (0, 1, 2, 7, 8, 9, 64):
            icmp_allowed(ipv6(next_header=next_header, payload=(bytes([next_header, 255]) * size)[:size]))


def test_rate_is_a_burst_and_then_a_hundred_a_second() -> None:
    limit, start = RateLimit(), 10**15
    assert [limit.take(1, start) for _ in range(52)] == [True] * 50 + [False] * 2
    assert not limit.take(1, start + 9 * MILLISECOND)
    assert limit.take(1, start + 10 * MILLISECOND)
    assert not limit.take(1, start + 10 * MILLISECOND)
    taken = sum(limit.take(1, start + at * MILLISECOND) for at in range(11, 1011))
    assert taken == 100


def test_rate_recovers_to_one_burst_and_no_more() -> None:
    limit = RateLimit()
    for moment in (10**15, 2 * 10**15):
        assert [limit.take(1, moment) for _ in range(60)].count(True) == 50


def test_one_senders_flood_does_not_silence_another() -> None:
    limit, now = RateLimit(), 10**15
    flooding = int.from_bytes(packed("10.5.1.2"), "little")
    for _ in range(100):
        limit.take(flooding, now)
    others = [int.from_bytes(packed(f"10.5.1.{host}"), "little") for host in range(3, 255)]
    heard = sum(limit.take(other, now) for other in others)
    assert heard > len(others) * 0.97  # a few share the flooder's bucket


def test_a_clock_near_its_beginning() -> None:
    limit = RateLimit()
    assert limit.take(1, 0)
    assert limit.take(1, 1)
