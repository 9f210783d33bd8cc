"""Captures of our tunnels, read by two foreign programs: nothing is malformed, and inside are the pods' own packets."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from flannel_udp._dataplane import UDP_PORT, VXLAN_FLAG_VNI, VXLAN_PORT

from ..conftest import require_commands
from ..netns.ethtool import offloads_off
from ..netns.transfer import datagrams, transfer
from .capture import Shark, Wiretap, at_rest, save
from .mixed import Mixed, add_pod, mixed_cluster

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from ..netns.topology import Pod

_BOTH = {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd05::/48"}
_VNI = 0x1234
_KINDS: dict[str, dict[str, Any]] = {"udp": {"Network": "10.5.0.0/16"},
                                     "vxlan": {**_BOTH, "Backend": {"Type": "vxlan", "VNI": _VNI}}}
_PORTS = {"udp": (UDP_PORT, "ip"), "vxlan": (VXLAN_PORT, "vxlan")}
_POD_MTU = 1400


class Scene:
    """A pod of ours, one of flannel's and another of ours; all that passes our first node's link, and our pod's."""

    def __init__(self, mixed: Mixed) -> None:
        self.mixed = mixed
        self.pods = [add_pod(agent, _POD_MTU) for agent in mixed.agents]
        self.addresses = {address.packed for _, addresses in self.pods for address in addresses}
        for agent, (pod, _) in zip(mixed.agents, self.pods, strict=True):
            # What is to be seen is what a wire would carry: single packets with their checksums.
            agent.node.call(offloads_off, "eth0")
            agent.node.call(offloads_off, "pod1")
            pod.call(offloads_off, "eth0")
        self.talk()
        self.wire = Wiretap(mixed.topology.underlay, mixed.agents[1].node.name)
        self.inside = Wiretap(self.pods[1][0], "eth0")
        self.talk()

    def talk(self) -> None:
        """Ping, TCP and UDP, our first pod and each other, to and fro."""
        ours = self.pods[1]
        for other in (self.pods[0], self.pods[3]):
            for (client, _), (server, addresses) in ((ours, other), (other, ours)):
                for address in addresses:
                    say(client, server, address)

    def inner(self, packets: Iterable[bytes]) -> list[bytes]:
        """Of IP packets those between pods, in an order that does not tell when they passed."""
        return sorted(at_rest(packet) for packet in packets if set(ends(packet)) <= self.addresses)


def say(client: Pod, server: Pod, address: IPv4Address | IPv6Address) -> None:
    assert client.ping(address, count=2).returncode == 0
    transfer(client, server, address, 1 << 17)
    datagrams(client, server, address, [0, 1, 2, 1300])
    datagrams(client, server, address, [1200] * 5 + [3], segment=1200)


def ends(packet: bytes) -> tuple[bytes, bytes]:
    """Source and destination of an IP packet."""
    return (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])


def taken_off(kind: str, frame: bytes) -> bytes | None:
    """The inner packet, as scapy finds it, and its coat as it must be; None for other frames."""
    packet = Ether(frame)
    if UDP not in packet or packet[UDP].dport != _PORTS[kind][0]:
        return None
    if kind == "udp":
        return bytes(packet[UDP].payload)
    coat = packet[VXLAN]
    assert bytes(coat)[:8] == struct.pack("!II", VXLAN_FLAG_VNI, _VNI << 8)
    return bytes(coat[Ether].payload)


@pytest.mark.parametrize("kind", _KINDS)
def test_tshark_and_scapy_find_the_pods_own_packets(tmp_path: Path, kind: str) -> None:
    require_commands("tshark", package="tshark")
    with mixed_cluster(tmp_path, _KINDS[kind]) as mixed:
        mixed.await_all()
        scene = Scene(mixed)
        wire, inside = scene.wire.frames(), scene.inside.frames()
    sent = scene.inner(frame[14:] for frame in inside if frame[12:14] in (b"\x08\x00", b"\x86\xdd"))
    assert scene.inner(inner for frame in wire if (inner := taken_off(kind, frame))) == sent

    port, layer = _PORTS[kind]
    outer = Shark(save(wire, tmp_path / "wire.pcap"), {port: layer})
    own = Shark(save(inside, tmp_path / "inside.pcap"), {})
    assert outer.faults() == []
    assert own.faults() == []
    for family in (4, 6) if kind == "vxlan" else (4,):
        between_pods = [packet for packet in own.inner(family) if packet.between(scene.addresses)]
        found = outer.inner(family, f"udp.dstport == {port}")
        assert sorted(packet for packet in found if packet.between(scene.addresses)) == sorted(between_pods)
    assert len(sent) > 500
