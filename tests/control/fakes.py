"""What stands around the daemon, on paper: a subnet manager, links, a backend with its device and data plane."""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from flannel_udp.backend.family import subnet_of, tunnel_of
from flannel_udp.backend.peers import DirectRoute, NextHop
from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import FlannelUdpError, LeaseError
from flannel_udp.firewall import Rules, State
from flannel_udp.forwarder import Counters, Doors, Notice, PeerStatus, Queue
from flannel_udp.lease import Lease, LeaseAttrs
from flannel_udp.link import Address, Interface, Link, LinkAddress, LinkEvent, Network, Route
from flannel_udp.offload import Granted, Refusal
from flannel_udp.subnet import ManagerHealth, PeersReset, SubnetEvent
from flannel_udp.tun import Tun, TunLinks
from flannel_udp.underlay import ExternalInterface, UnderlaySockets

CONFIG = parse_network_config('{"Network": "10.5.0.0/16"}')
# By the families that are enabled.
CONFIGS = {
    (4,): CONFIG,
    (4, 6): parse_network_config('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'),
    (6,): parse_network_config('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'),
}
COUNTERS = ("renewals", "resyncs", "lost_races", "skipped_keys", "errors")
OWN_ADDRESS, OWN_ADDRESS6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def lease(subnet: str, public_ip: str = "192.0.2.1", expiry: float | None = None) -> Lease:
    return Lease(IPv4Network(subnet), None, LeaseAttrs(IPv4Address(public_ip)), expiry, 1)


def lease_of(families: Sequence[int], number: int, host: int) -> Lease:
    """The lease of these families with the subnets of this number, of the host with this one."""
    subnet = IPv4Network(f"10.5.{number}.0/24") if 4 in families else None
    ipv6_subnet = IPv6Network(f"fd00:5:0:{number}::/64") if 6 in families else None
    attrs = LeaseAttrs(IPv4Address(f"192.0.2.{host}") if 4 in families else None,
                       IPv6Address(f"2001:db8::{host}") if 6 in families else None)
    return Lease(subnet, ipv6_subnet, attrs, None, 1)


def drawn(script: list[Any]) -> Any:  # noqa: ANN401 - whatever the script holds
    """The next line of a script, the last again and again; errors are raised, functions called."""
    line = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(line, Exception):
        raise line
    return line() if callable(line) else line


@dataclass
class FakeManager:
    """Answers by script, and lets the test post."""

    configs: list[NetworkConfig | Exception] = field(default_factory=lambda: [CONFIG])
    leases: list[Any] = field(default_factory=lambda: [lease("10.5.1.0/24")])
    updates: list[Any] = field(default_factory=lambda: [lease("10.5.1.0/24")])
    peers: tuple[Lease, ...] = ()
    deeds: list[str] = field(default_factory=list)
    post: Callable[[SubnetEvent], None] = print
    refusal: FlannelUdpError | None = None
    attrs: LeaseAttrs = field(default_factory=lambda: LeaseAttrs(OWN_ADDRESS))
    lag: float = 0.0
    trouble: str = ""

    def config(self) -> NetworkConfig:
        self.deeds.append("config")
        config: NetworkConfig = drawn(self.configs)
        return config

    def standing(self, attrs: LeaseAttrs) -> Lease | None:
        raise AssertionError(f"nobody asked for the lease of {attrs}")

    def acquire(self, attrs: LeaseAttrs) -> Lease:
        assert attrs == self.attrs
        self.deeds.append("acquire")
        acquired: Lease = drawn(self.leases)
        return acquired

    def update(self, attrs: LeaseAttrs) -> Lease:
        told = [str(address) for address in (attrs.public_ip, attrs.public_ipv6) if address]
        self.deeds.append(f"update {' '.join(told)}")
        updated: Lease = drawn(self.updates)
        return replace(updated, attrs=attrs)

    def events(self, post: Callable[[SubnetEvent], None]) -> None:
        self.post = post
        post(PeersReset(self.peers))

    def release(self) -> None:
        self.deeds.append("release")
        if self.refusal:
            raise self.refusal

    def health(self) -> ManagerHealth:
        return ManagerHealth(self.lag, self.trouble, None, dict.fromkeys(COUNTERS, 0))

    def close(self) -> None:
        self.deeds.append("close")


class FakeFirewall:
    """Remembers the rules that were wanted last; refuses by script."""

    def __init__(self) -> None:
        self.state = State("nft", "table inet flannel_udp", "on paper")
        self.iptables: list[object] = []
        self.wanted: list[Rules] = []
        self.refusals: dict[str, FlannelUdpError] = {}

    def __call__(self, *_: object) -> "FakeFirewall":
        return self

    def check(self, rules: Rules) -> None:
        self._refuse("check", rules)

    def assure(self, rules: Rules) -> State:
        self._refuse("assure", rules)
        self.wanted.append(rules)
        return self.state

    def _refuse(self, step: str, rules: Rules) -> None:
        assert isinstance(rules, Rules)
        if step in self.refusals:
            raise self.refusals[step]


@dataclass
class FakeQueue:
    """A TUN queue without a kernel."""

    descriptor: int = field(default_factory=lambda: os.eventfd(0))

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class FakeLinks:
    """eth0 and what was made since; counts who is open."""

    def __init__(self) -> None:
        self.opened = 0
        self.dumps = 0
        self.here = [LinkAddress(2, ip_interface("192.0.2.1/24"))]
        self.devices: dict[int, Link] = {2: Link(2, "eth0", 1500, True)}
        self.routed: dict[Network, int] = {}
        self.blackholes: list[Network] = []
        self.post: Callable[[LinkEvent], None] = print

    def __enter__(self) -> "FakeLinks":
        self.opened += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.opened -= 1

    def monitor(self, post: Callable[[LinkEvent], None]) -> "FakeLinks":
        self.post = post
        self.opened += 1
        return self

    def close(self) -> None:
        self.opened -= 1

    def link(self, which: str | int) -> Link | None:
        return next((link for link in self.devices.values() if which in (link.index, link.name)), None)

    def links(self) -> list[Link]:
        return list(self.devices.values())

    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]:
        self.dumps += 1
        return [one for one in self.here if index in (None, one.index) and family in (None, one.ip.version)]

    def routes(self, family: int = 4) -> list[Route]:
        return [Route(None, 2), *(Route(*one) for one in self.routed.items() if one[0].version == family)]

    def route_to(self, destination: Address) -> Route | None:
        raise AssertionError(f"nobody asked for {destination}")

    def add_route(self, network: Network, index: int) -> bool:
        if network in self.routed:
            return False
        self.routed[network] = index
        return True

    def our_routes(self, family: int = 4) -> list[Route]:
        return [Route(network, None, blackhole=True) for network in self.blackholes if network.version == family]

    def add_blackhole(self, network: Network) -> bool:
        if network in self.blackholes:
            return False
        self.blackholes.append(network)
        return True

    def delete_blackhole(self, network: Network) -> bool:
        if network not in self.blackholes:
            return False
        self.blackholes.remove(network)
        return True

    def add_address(self, index: int, interface: Interface) -> bool:
        if any((one.index, one.interface) == (index, interface) for one in self.here):
            return False
        self.here.append(LinkAddress(index, interface))
        return True

    def delete_address(self, index: int, interface: Interface) -> bool:
        self.here = [one for one in self.here if (one.index, one.interface) != (index, interface)]
        return True

    def set_link(self, index: int, *, up: bool | None = None, mtu: int | None = None,
                 queue_length: int | None = None) -> None:
        assert queue_length is None
        assert up is not None
        assert mtu is not None
        self.devices[index] = replace(self.devices[index], up=up, mtu=mtu)

    def set_ipv4_option(self, index: int, option: int, value: int) -> None:
        raise AssertionError((index, option, value))


class FakePlane:
    """Remembers what it was told; loops are a name."""

    def __init__(self) -> None:
        self.own: tuple[str, str, set[str]] = ("", "", set())
        self.routes: dict[str, str] = {}
        self.published: dict[str, str] = {}
        self.publishes = 0
        self.starts = 0
        self.running = False
        self.on_exit: Callable[[str, OSError | None], None] = print
        self.before_peer: Callable[[], None] = lambda: None
        self.heard: list[Notice] = []
        self.lost: dict[str, str] = {}
        self.doors = Doors()

    def set_own(self, subnet: Network, tunnel_address: Address, local_addresses: Iterable[Address]) -> None:
        self.own = (str(subnet), str(tunnel_address), {str(address) for address in local_addresses})

    def set_peer(self, subnet: Network, underlay: Address, port: int, coat: bytes = b"") -> None:
        self.before_peer()
        if str(subnet) == self.own[0]:
            raise LeaseError(f"{subnet} is this node's own subnet")
        self.routes[str(subnet)] = f"{underlay}:{port}{coat.decode()}"

    def delete_peer(self, subnet: Network) -> None:
        self.routes.pop(str(subnet), None)

    def publish(self) -> None:
        self.published = dict(self.routes)
        self.publishes += 1

    def start(self, queues: Sequence[Queue], on_exit: Callable[[str, OSError | None], None], doors: Doors) -> None:
        assert not self.running
        queue, = queues
        assert min(queue.tun, queue.udp, queue.path) >= 0
        self.running, self.on_exit, self.doors = True, on_exit, doors
        self.starts += 1

    def stop(self) -> None:
        self.running = False

    def peers(self) -> list[PeerStatus]:
        return [PeerStatus(ip_network(subnet), ip_address(hop.rpartition(":")[0]), 1, 84, 2, 168, None)
                for subnet, hop in self.published.items()]

    def counters(self) -> dict[str, Counters]:
        return {}

    def notices(self) -> list[Notice]:
        heard, self.heard = self.heard, []
        return heard

    def given_up(self) -> dict[str, str]:
        return self.lost

    def status(self) -> dict[str, object]:
        return {"fib": {"cells": 256}, "loops": {"threads": 2}, "queues": [], "counters": {
            "out": {"packets": 7, "outcomes": {"sent": {"count": 5, "meaning": "passed"}}, "events": {}}}}


class FakeTunnel:
    """One family of the backend on paper; its device opens by script."""

    name = "udp"

    def __init__(self, links: FakeLinks, family: int = 4) -> None:
        self.links = links
        self.family = family
        self.mtu = {4: 1472, 6: 1452}[family]
        self.device = {4: "flannel0", 6: "flannel-v6-0"}[family]
        self.network: Network = ip_network({4: "10.5.0.0/16", 6: "fd00:5::/48"}[family])
        self.plane = FakePlane()
        self.refusals: dict[str, FlannelUdpError] = {}
        self.sockets: list[socket.socket] = []
        self.queues: list[FakeQueue] = []
        self.port = 8285
        self.unsteered = ""
        self.granted = Granted(("tun_csum",), (Refusal(("tun_tso4", "tun_tso6"), "Invalid argument"),))

    def refuse(self, step: str) -> None:
        if step in self.refusals:
            raise self.refusals[step]

    def subnet(self, lease: Lease) -> Network:
        return subnet_of(lease, self.family)

    def tunnel(self, lease: Lease) -> Interface:
        return tunnel_of(lease, self.family)

    def next_hop(self, lease: Lease) -> NextHop:
        subnet, underlay = self.subnet(lease), lease.attrs.public_ip if self.family == 4 else lease.attrs.public_ipv6
        assert underlay
        return NextHop(subnet, underlay, self.port)

    def forwarder(self) -> FakePlane:
        return self.plane

    def check_device(self) -> None:
        self.refuse("check_device")

    def open_device(self, lease: Lease, links: TunLinks) -> Tun:
        del links
        self.refuse("open_device")
        index = 10 * (self.family - 3) + len(self.queues)
        queue = FakeQueue()
        self.queues.append(queue)
        self.links.devices[index] = Link(index, self.device, self.mtu, True, "tun")
        self.links.add_address(index, self.tunnel(lease))
        self.links.routed[self.network] = index
        return Tun(self.device, index, self.mtu, self.tunnel(lease), self.network, [queue], self.granted,
                   asked=4 if self.unsteered else 1, unsteered=self.unsteered)

    def open_sockets(self) -> UnderlaySockets:
        self.refuse("open_sockets")
        street, path = socket.socketpair()
        self.sockets += [street, path]
        return UnderlaySockets(street, path, Granted(("udp_segment",)))

    def all_closed(self) -> bool:
        return (not self.plane.running and all(one.fileno() == -1 for one in self.sockets)
                and all(queue.descriptor == -1 for queue in self.queues))


class FakeBackend:
    """A backend of these families; refuses to be made by script."""

    name = "udp"

    def __init__(self, links: FakeLinks, families: Sequence[int] = (4,)) -> None:
        self.links = links
        self.tunnels = tuple(FakeTunnel(links, family) for family in families)
        self.mtu = min((tunnel.mtu for tunnel in self.tunnels), default=1500)
        self.refusals: dict[str, FlannelUdpError] = {}
        self.external: ExternalInterface | None = None

    def __call__(self, _: object, external: ExternalInterface, *__: object) -> "FakeBackend":
        if "make" in self.refusals:
            raise self.refusals["make"]
        if self.external is None:
            self.external = external
            return self
        moved = copy(self)  # as the real one: a new value on another interface, of the same planes
        moved.external, moved.tunnels = external, tuple(copy(tunnel) for tunnel in self.tunnels)
        for tunnel in moved.tunnels:
            tunnel.mtu = external.mtu - {4: 28, 6: 48}[tunnel.family]
        moved.mtu = min((tunnel.mtu for tunnel in moved.tunnels), default=external.mtu)
        return moved

    def attrs(self) -> LeaseAttrs:
        assert self.external
        return LeaseAttrs(self.external.public_address, self.external.public_address6)

    def direct(self, _: Lease) -> tuple[DirectRoute, ...]:
        return ()

    def all_closed(self) -> bool:
        return all(tunnel.all_closed() for tunnel in self.tunnels)
