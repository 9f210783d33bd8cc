"""coat.pxd: only frames that Linux would take for this node come in; each other one has its own reason."""

import struct
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from flannel_udp._dataplane import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    SOURCE_CHECKS,
    VXLAN_COAT,
    VXLAN_FLAG_VNI,
    Builder,
    Worker,
)
from flannel_udp._probe import Node

from .packets import NAMES, packed
from .rig import Rig

OURS, THEIRS, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
VNI = 0xABCDEF
ENDS: dict[int, dict[str, Any]] = {
    4: {"network": "10.5.0.0", "lengths": (16, 24), "ours": "10.5.1.0", "peer": "192.0.2.2",
        "inner": IP(src="10.5.2.7", dst="10.5.1.7", ttl=1)},
    6: {"network": "fd05::", "lengths": (48, 64), "ours": "fd05:0:0:1::", "peer": "2001:db8::2",
        "inner": IPv6(src="fd05:0:0:2::7", dst="fd05:0:0:1::7", hlim=1)},
}


def expected(family: int) -> bytes:
    mac = bytes.fromhex(OURS.replace(":", ""))
    return struct.pack("!II6s6xH", VXLAN_FLAG_VNI, VNI << 8, mac, ETHERTYPE_IPV4 if family == 4 else ETHERTYPE_IPV6)


def node_of(family: int) -> Node:
    ends = ENDS[family]
    node = Node(packed(ends["network"]), *ends["lengths"], source_check=SOURCE_CHECKS["known"], ttl_step=0,
                coat_length=VXLAN_COAT, expected=expected(family))
    node.set_subnet(packed(ends["ours"]), 1)
    node.set_peer(3, packed(ends["peer"]))
    return node


def datagram(family: int, *, vxlan: Any = None, **ether: Any) -> bytes:  # noqa: ANN401 - scapy has no types
    """VXLAN, Ethernet, IP, UDP as scapy writes them, with some fields given."""
    frame = Ether(**{"dst": OURS, "src": THEIRS} | ether) / ENDS[family]["inner"] / UDP(dport=7) / Raw(b"payload")
    return bytes((VXLAN(flags=8, vni=VNI) if vxlan is None else vxlan) / frame)


def into(family: int, data: bytes) -> tuple[str, bytes]:
    outcome, slot, after = node_of(family).into(packed(ENDS[family]["peer"]), data)
    assert slot == 3
    return NAMES[outcome], after


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("source", [THEIRS, OTHER, "00:00:00:00:00:00"])
def test_a_frame_for_this_node_comes_in_whoever_sent_it(family: int, source: str) -> None:
    """A tunnel that is a link counts no hop: the last one is left."""
    data = datagram(family, src=source)
    assert into(family, data) == ("forward", data[VXLAN_COAT:])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("bit", [bit for bit in range(32) if bit != 27])
def test_any_other_flag_or_reserved_bit_is_a_reason(family: int, bit: int) -> None:
    data = datagram(family)
    flags = struct.pack("!I", int.from_bytes(data[:4], "big") ^ 1 << bit)
    assert into(family, flags + data[4:]) == ("bad_flags", flags + data[4:])


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_vni_there_is_none(family: int) -> None:
    data = datagram(family)
    assert into(family, bytes(4) + data[4:])[0] == "bad_flags"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("bit", range(8))
def test_the_last_byte_is_reserved_too(family: int, bit: int) -> None:
    data = datagram(family)
    assert into(family, data[:7] + bytes([1 << bit]) + data[8:])[0] == "bad_flags"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("bit", range(24))
def test_another_network(family: int, bit: int) -> None:
    assert into(family, datagram(family, vxlan=VXLAN(flags=8, vni=VNI ^ 1 << bit)))[0] == "other_vni"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mac", [THEIRS, OTHER, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "03:00:00:00:00:01"])
def test_another_destination(family: int, mac: str) -> None:
    assert into(family, datagram(family, dst=mac))[0] == "other_mac"


@pytest.mark.parametrize("family", [4, 6])
def test_our_own_frames_do_not_come_back(family: int) -> None:
    assert into(family, datagram(family, src=OURS))[0] == "own_mac"


@pytest.mark.parametrize("family", [4, 6])
def test_other_frames(family: int) -> None:
    arp = bytes(VXLAN(flags=8, vni=VNI) / Ether(dst=OURS, src=THEIRS) / ARP())
    assert into(family, arp)[0] == "other_ethertype"
    assert into(family, datagram(10 - family))[0] == "other_ethertype"


@pytest.mark.parametrize("family", [4, 6])
def test_the_ethertype_does_not_make_a_packet(family: int) -> None:
    coat = datagram(family)[:VXLAN_COAT]
    assert into(family, coat + datagram(10 - family)[VXLAN_COAT:])[0] == "other_family"
    assert into(family, coat)[0] == "truncated"
    assert into(family, coat[:-1]) == ("truncated", coat[:-1])


@pytest.mark.parametrize("family", [4, 6])
def test_each_reason_is_counted_and_nothing_answered(family: int) -> None:
    """Through a running Worker: the one good packet comes out of the TUN, the others stand in the counters."""
    bad = {"bad_flags": b"\x0c", "other_vni": VXLAN(flags=8, vni=1), "other_mac": {"dst": OTHER},
           "own_mac": {"src": OURS}, "other_ethertype": {"type": 0x88CC}}
    with Rig(family, coat=expected(family), expected=expected(family), ttl_step=0) as rig:
        good = datagram(family)
        for reason in bad.values():
            if isinstance(reason, bytes):
                rig.send(reason + good[1:])
            elif isinstance(reason, dict):
                rig.send(datagram(family, **reason))
            else:
                rig.send(datagram(family, vxlan=reason))
        rig.send(good)
        assert rig.take() == good[VXLAN_COAT:]
        rig.comes_to("in", dict.fromkeys(bad, 1) | {"delivered": 1})
        assert rig.events("in")["icmp_sent"] == 0


@pytest.mark.parametrize(("coat", "length"), [(0, 22), (22, 21), (21, 21), (22, 1)])
def test_what_cannot_be_expected(coat: int, length: int) -> None:
    with pytest.raises(ValueError, match="expected of a coat"):
        Worker(Builder(packed("10.5.0.0"), 16, 24), coat_length=coat, ttl_step=0, overhead=50, source_check=0,
               expected=bytes(length))
