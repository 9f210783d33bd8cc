"""flow.pxd: all packets of a flow have one number, others another; and flows leave by the socket of their number."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from flannel_udp._dataplane import SOURCES_MAX
from flannel_udp._probe import flow_hash

from .packets import ipv4, ipv6
from .rig import Rig
from .super_packets import ALL, BULK4, BULK6, NAMES, UDP4, UDP6, Flow, text


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_what_differs_within_a_flow_does_not_count(flow: Flow) -> None:
    number = flow_hash(flow.packet(b"a"))
    for change in ({"ident": 9}, {"tos": 3}, {"ttl": 1}, {"sequence": 5}, {"acknowledgment": 5}, {"window": 1},
                   {"dont_fragment": False}, {"flags": "FPA"}, {"label": 7}):
        assert flow_hash(replace(flow, **change).packet(b"another payload")) == number, change
    assert flow_hash(flow.super_packet(text(5000), 1000)[0]) == number


@pytest.mark.parametrize("flow", ALL, ids=NAMES)
def test_addresses_ports_and_protocol_count(flow: Flow) -> None:
    far = {4: "10.5.9.9", 6: "fd05:0:0:9::9"}[flow.version]
    others = [replace(flow, sport=1), replace(flow, dport=1), replace(flow, source=far), replace(flow, destination=far),
              replace(flow, protocol="udp" if flow.protocol == "tcp" else "tcp"),
              replace(flow, sport=flow.dport, dport=flow.sport)]
    assert len({flow_hash(one.packet(b"")) for one in (flow, *others)}) == 1 + len(others)


def test_fragments_stay_together() -> None:
    """The first shows ports, the others do not; of all of them only addresses and protocol count."""
    ports = [bytes([0, 1, 0, 2]).ljust(64), bytes([0, 3, 0, 4]).ljust(64)]
    assert flow_hash(ipv4(payload=ports[0])) != flow_hash(ipv4(payload=ports[1]))
    assert len({flow_hash(ipv4(payload=payload, fragment=fragment)) for payload in ports
                for fragment in (0x2000, 0x2008, 0x0010)}) == 1


def test_what_shows_no_ports_goes_by_its_addresses() -> None:
    for protocol in (1, 50, 44, 58):
        assert flow_hash(ipv4(payload=b"1", protocol=protocol)) == flow_hash(ipv4(payload=b"two", protocol=protocol))
        assert flow_hash(ipv6(payload=b"1", next_header=protocol)) == flow_hash(
            ipv6(payload=b"two", next_header=protocol))
    for size in range(4):
        assert flow_hash(ipv4(payload=bytes(size))) == flow_hash(ipv4(payload=b""))
        assert flow_hash(ipv6(payload=bytes(size))) == flow_hash(ipv6(payload=b""))


@pytest.mark.parametrize("flow", [UDP4, UDP6, BULK4, BULK6], ids=["udp4", "udp6", "tcp4", "tcp6"])
@pytest.mark.parametrize("sockets", [2, 16, 64])
def test_flows_are_spread_evenly(flow: Flow, sockets: int) -> None:
    """Ports in turn, as a stack gives them: no socket has twice its share, none less than half of it."""
    each = 100
    data = bytearray(flow.packet(b""))
    start = flow.transport()
    shares: Counter[int] = Counter()
    for port in range(10_000, 10_000 + each * sockets):
        data[start:start + 2] = port.to_bytes(2, "big")
        shares[flow_hash(bytes(data)) * sockets >> 32] += 1
    assert len(shares) == sockets
    assert max(shares.values()) < 2 * each
    assert min(shares.values()) > each // 2


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("sources", [1, 3, SOURCES_MAX])
def test_each_flow_leaves_by_one_socket(family: int, sources: int) -> None:
    """From the number of its hash; all of them are used, and never the one that is received by."""
    flow, dice = UDP4 if family == 4 else UDP6, random.Random(family)
    flows = [replace(flow, sport=dice.randrange(1, 65536)) for _ in range(20 * sources)]
    with Rig(family, ttl_step=0, sources=sources) as rig:
        ports = [source.getsockname()[1] for source in rig.sources]
        for one in flows + flows[::3]:
            data = one.packet(b"x")
            rig.give(data)
            received, sender = rig.peer.recvfrom(2048)
            assert received == data
            if sources > 1:
                assert sender[1] == ports[flow_hash(data) * sources >> 32]
            else:
                assert sender[1] == ports[0]
        rig.wait_for("out", "sent", len(flows) + len(flows[::3]))


@pytest.mark.parametrize(("sources", "messages"), [(0, 1), (16, 2)])
def test_a_run_is_of_one_socket(sources: int, messages: int) -> None:
    """Two flows of one size in turn: they share a message, or each has one of its own, whole and in order."""
    flows = [replace(UDP4, sport=port) for port in (1, 2)]
    assert len({flow_hash(one.packet(b"")) * 16 >> 32 for one in flows}) == 2
    rig = Rig(4, ttl_step=0, sources=sources)
    given = [[one.packet(bytes([number])) for number in range(20)] for one in flows]
    for in_turn in zip(*given, strict=True):
        for packet in in_turn:
            rig.give(packet)
    with rig:
        received = [rig.peer.recvfrom(2048) for _ in range(40)]
        rig.wait_for("out", "sent", 40)
        assert rig.events("out")["messages"] == messages
    for packets in given:
        assert [data for data, _ in received if data in packets] == packets
        assert len({sender for data, sender in received if data in packets}) == 1


def test_too_many_sockets() -> None:
    rig = Rig(4)
    with pytest.raises(ValueError, match="65 sources"):
        rig.worker.tun_to_udp(rig.tun.fileno(), rig.udp.fileno(), rig.path.fileno(), rig.stop_fd, (1,) * 65)
    with rig:  # and the loop can still be started
        rig.give(UDP4.packet(b"x"))
        rig.receive()
        rig.wait_for("out", "sent")
