"""The external interface and the underlay socket on a real kernel."""

import errno
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp import underlay
from flannel_udp.errors import UnderlayError
from flannel_udp.netlink import Links
from flannel_udp.offload import Granted, Refusal
from flannel_udp.options import NodeOptions
from flannel_udp.underlay import (
    find_external_interface,
    open_beside,
    open_path_socket,
    open_underlay_socket,
    open_underlay_sockets,
)

from .topology import Node, Topology

MakeTopology = Callable[..., Topology]
Socket = socket.socket
UDP_GRO = 104  # linux/udp.h
SO_MEMINFO = 55  # asm-generic/socket.h; the first number is the memory that waiting datagrams take
MTU_OF_PATH = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}  # linux/in.h, linux/in6.h


@pytest.fixture
def node(topology: MakeTopology) -> Node:
    return topology(1, mtu=1400).nodes[0]


def test_default_route_wins_with_the_lowest_metric(node: Node) -> None:
    node.ip("link add other type bridge", "addr add 198.51.100.1/24 dev other", "link set other up")
    node.run("ip", "route", "flush", "default")
    node.ip("route add default via 198.51.100.2 metric 200", "route add default via 192.0.2.77 metric 100")
    with node.entered(), Links() as links:
        found = find_external_interface(NodeOptions(), links)
    assert (found.name, found.mtu, found.address, found.address6) == ("eth0", 1400, node.address, None)
    assert found.reason == "it has the default route"


def test_named_and_reached_interfaces(node: Node) -> None:
    node.ip("link add other type bridge", "addr add 198.51.100.1/24 dev other", "link set other up")
    with node.entered(), Links() as links:
        by_name = find_external_interface(NodeOptions(iface=("eth0",)), links, ipv6=True)
        by_reach = find_external_interface(NodeOptions(iface_can_reach="198.51.100.9"), links)
        with pytest.raises(UnderlayError, match="among lo, eth0, other"):
            find_external_interface(NodeOptions(iface=("none",)), links)
    assert (by_name.address, by_name.address6) == (node.address, node.address6)
    assert (by_reach.name, by_reach.address) == ("other", IPv4Address("198.51.100.1"))


def test_socket_never_fragments_and_never_blocks(node: Node) -> None:
    with node.entered(), open_underlay_socket(node.address, 8285) as opened:
        assert opened.getsockname() == (str(node.address), 8285)
        assert not opened.getblocking()
        assert not opened.get_inheritable()
        # The kernel doubles what it is asked for; without privilege it grants as much as net.core.rmem_max.
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 8 << 20
        with pytest.raises(OSError, match="Message too long") as caught:
            opened.sendto(bytes(1400 - 27), (str(node.address + 1), 8285))
        assert caught.value.errno == errno.EMSGSIZE
        opened.sendto(bytes(1400 - 28), (str(node.address + 1), 8285))


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_piles_up_in_the_socket_that_is_asked_for_paths(node: Node, version: int) -> None:
    address = node.address if version == 4 else node.address6
    node.ip("link set lo up")
    with node.entered(), open_path_socket(address) as asked, open_underlay_socket(address, 0) as stranger:
        for _ in range(100):
            stranger.sendto(bytes(1000), asked.getsockname()[:2])  # on the same host: there before sendto() returns
        assert struct.unpack("9I", asked.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0] == 0
        with pytest.raises(BlockingIOError):
            asked.recv(2048)
        asked.connect((str(address + 1), 8285))
        assert asked.getsockopt(*MTU_OF_PATH[version]) == 1400


def test_ipv6_socket_never_fragments(node: Node) -> None:
    with node.entered(), open_underlay_socket(node.address6, 8285) as opened:
        with pytest.raises(OSError, match="Message too long"):
            opened.sendto(bytes(1400 - 47), (str(node.address6 + 1), 8285))
        opened.sendto(bytes(1400 - 48), (str(node.address6 + 1), 8285))


@pytest.mark.parametrize(("wanted", "granted", "gro"), [
    ({}, Granted(("udp_segment", "udp_gro")), 1),
    ({"segment": False}, Granted(("udp_gro",)), 1),
    ({"gro": False}, Granted(("udp_segment",)), 0),
    ({"segment": False, "gro": False}, Granted(), 0),
])
def test_this_kernel_grants_what_is_wanted(node: Node, wanted: dict[str, bool], granted: Granted, gro: int) -> None:
    with node.entered(), closing(open_underlay_sockets(node.address, 8285, **wanted)) as opened:
        assert opened.granted == granted
        assert opened.street.getsockname()[1] == 8285
        assert opened.street.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == gro
        assert opened.path.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 0


@pytest.mark.parametrize(("option", "name", "kept"), [
    ("UDP_SEGMENT", "udp_segment", "udp_gro"), ("UDP_GRO", "udp_gro", "udp_segment")])
def test_a_kernel_without_an_offload_says_so(
        node: Node, monkeypatch: pytest.MonkeyPatch, option: str, name: str, kept: str) -> None:
    """An option that no kernel has stands for one that this kernel does not have."""
    monkeypatch.setattr(underlay, option, 99999)
    with node.entered(), closing(open_underlay_sockets(node.address, 8285)) as opened:
        assert opened.granted == Granted((kept,), (Refusal((name,), "Protocol not available"),))


@pytest.mark.parametrize("version", [4, 6])
def test_a_socket_that_fragments(node: Node, version: int) -> None:
    """What is larger than the link leaves in fragments, without DF; and each datagram tells its mark on arrival."""
    address = node.address if version == 4 else node.address6
    with node.entered(), closing(open_underlay_sockets(address, 8472, fragment=True, tos=True, sources=3)) as opened:
        for one in (opened.street, *opened.sources):
            one.sendto(bytes(3000), (str(address + 1), 8472))
        with pytest.raises(OSError, match="Message too long"):
            opened.path.sendto(bytes(3000), (str(address + 1), 8472))
        ports = {one.getsockname()[1] for one in (opened.street, opened.path, *opened.sources)}
        assert len(ports) == 5
        assert opened.street.getsockname()[1] == 8472
        told = (socket.IPPROTO_IP, 13) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)
        assert opened.street.getsockopt(*told) == 1
        with open_underlay_socket(address, 0) as stranger:
            assert stranger.getsockopt(*told) == 0
            for source in opened.sources:
                stranger.sendto(b"nobody reads this", source.getsockname()[:2])
                with pytest.raises(BlockingIOError):
                    source.recv(100)


def test_further_queues_have_the_same_manner(node: Node) -> None:
    with node.entered(), ExitStack() as stack:
        first = stack.enter_context(closing(open_underlay_sockets(node.address, 8472, fragment=True, sources=2)))
        for other in open_beside(first, 2):
            stack.enter_context(closing(other))
            assert other.manner == first.manner
            assert len(other.sources) == 2
            other.street.sendto(bytes(3000), (str(node.address + 1), 8472))


class CannotTell(Socket):
    """A socket of a kernel that merges and does not tell: Linux 5.0 to 5.11."""

    def getsockopt(self, *args: Any) -> Any:  # noqa: ANN401 - as the original
        if args[1] == UDP_GRO:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(*args)


def test_merging_that_cannot_be_read_back_is_switched_off_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", CannotTell)
    with node.entered(), closing(open_underlay_sockets(node.address, 8285)) as opened:
        assert opened.granted == Granted(("udp_segment",), (Refusal(("udp_gro",), "Protocol not available"),))
        assert Socket.getsockopt(opened.street, socket.IPPROTO_UDP, UDP_GRO) == 0


def test_both_sockets_or_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = underlay.open_underlay_socket

    def without_a_second(address: IPv4Address, port: int, **manner: Any) -> socket.socket:  # noqa: ANN401
        if not port:
            raise UnderlayError("no more ports")
        return real(address, port, **manner)

    monkeypatch.setattr(underlay, "open_underlay_socket", without_a_second)
    with node.entered():
        with pytest.raises(UnderlayError, match="no more ports"):
            open_underlay_sockets(node.address, 8285)
        real(node.address, 8285).close()


def test_port_in_use_is_said_with_who_may_have_it(node: Node) -> None:
    with node.entered(), open_underlay_socket(node.address, 8285):
        with pytest.raises(UnderlayError, match=r"UDP port 8285 of 192.0.2.1 is in use, probably by a flanneld"):
            open_underlay_socket(node.address, 8285)
        with open_underlay_socket(node.address, 8286):
            pass


@pytest.mark.parametrize("version", [4, 6])
def test_sockets_of_several_queues_share_a_port_and_nobody_else_gets_it(node: Node, version: int) -> None:
    """No second daemon of this user, though the sockets share; and the more there are, each as the first one is."""
    address = node.address if version == 4 else node.address6
    with node.entered(), ExitStack() as stack:
        first = stack.enter_context(closing(open_underlay_sockets(address, 8285)))
        others = [stack.enter_context(closing(other)) for other in open_beside(first, 3)]
        sockets = (first, *others)
        assert {one.street.getsockname()[:2] for one in sockets} == {(str(address), 8285)}
        assert {one.granted for one in sockets} == {Granted(("udp_segment", "udp_gro"))}
        assert {one.street.getsockopt(socket.IPPROTO_UDP, UDP_GRO) for one in others} == {1}
        for _ in range(2):
            with pytest.raises(UnderlayError, match=f"UDP port 8285 of {address} is in use"):
                open_underlay_sockets(address, 8285)
            first.close()  # nor while any of them is open
    with node.entered(), open_underlay_socket(address, 8285):
        pass


def test_sockets_beside_the_first_have_no_offload_that_it_has_not(node: Node) -> None:
    with node.entered(), closing(open_underlay_sockets(node.address, 8285, gro=False, segment=False)) as first:
        other, = open_beside(first, 1)
        with closing(other):
            assert other.granted == Granted()
            assert other.street.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 0


def test_one_queue_leaves_its_socket_as_it_is(node: Node) -> None:
    with node.entered(), closing(open_underlay_sockets(node.address, 8285)) as first:
        assert open_beside(first, 0) == []
        assert first.street.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_all_sockets_beside_the_first_or_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = underlay.open_path_socket
    made: list[Socket] = []

    def but_three(address: IPv4Address) -> socket.socket:
        if len(made) == 3:
            raise UnderlayError("no more ports")
        made.append(real(address))
        return made[-1]

    monkeypatch.setattr(underlay, "open_path_socket", but_three)
    with node.entered():
        with closing(open_underlay_sockets(node.address, 8285)) as first:
            with pytest.raises(UnderlayError, match="no more ports"):
                open_beside(first, 3)
            assert [one.fileno() for one in made[1:]] == [-1, -1]
        open_underlay_socket(node.address, 8285).close()


def test_vanished_address_is_said(node: Node) -> None:
    with node.entered(), pytest.raises(UnderlayError, match="no longer on this host"):
        open_underlay_socket(replace(NodeOptions(), public_ip=IPv4Address("192.0.2.200")).public_ip or node.address, 1)
