"""The external interface, chosen as flannel chooses it, and the underlay sockets on it."""

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from flannel_udp.errors import NetlinkError, UnderlayError
from flannel_udp.link import Address, Link, LinkAddress, Route
from flannel_udp.offload import Granted, Refusal
from flannel_udp.options import NodeOptions

# linux/in.h, linux/in6.h; not in Python's socket
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_DO, IP_RECVTOS = 10, 23, 0, 2, 13
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 26, 27, 32, 33  # asm-generic/socket.h
UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
BPF_RET_K = 0x06  # linux/bpf_common.h
# Our choice, measured for the design: smaller receive buffers cost a flood a tenth of its packets and TCP its windows.
SOCKET_BUFFER = 4 << 20


class UnderlayLinks(Protocol):
    """What this file asks of netlink.Links."""

    def link(self, which: str | int) -> Link | None: ...  # noqa: D102
    def links(self) -> list[Link]: ...  # noqa: D102
    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]: ...  # noqa: D102
    def routes(self, family: int = 4) -> list[Route]: ...  # noqa: D102
    def route_to(self, destination: Address) -> Route | None: ...  # noqa: D102


@dataclass(frozen=True)
class ExternalInterface:
    """The interface that carries the underlay; address is bound to, public_address is what other nodes are told."""

    name: str
    index: int
    mtu: int
    address: IPv4Address | None
    address6: IPv6Address | None
    public_address: IPv4Address | None
    public_address6: IPv6Address | None
    reason: str
    """Why this one, for the log."""

    def addresses(self) -> list[Address]:
        """Those bound to, of each family that is in use."""
        return [address for address in (self.address, self.address6) if address]


@dataclass(frozen=True)
class Manner:
    """How a backend's datagrams travel."""

    fragment: bool = False
    """In fragments, where they are too large for the path; else they are refused."""
    tos: bool = False
    """Each tells its TOS or traffic class on arrival."""
    sources: int = 0
    """From the ports of so many further sockets; 0: from the one port that is sent to, too."""


@dataclass(frozen=True)
class UnderlaySockets:
    """Of one queue: the socket that datagrams go through, with what it was granted, and one asked for path MTUs.

    `sources`: further ones that only send, each from a port of its own.
    """

    street: socket.socket
    path: socket.socket
    granted: Granted = field(default_factory=Granted)
    sources: tuple[socket.socket, ...] = ()
    manner: Manner = field(default_factory=Manner)

    def close(self) -> None:
        """Give all back; a second call does nothing."""
        for opened in (self.street, self.path, *self.sources):
            opened.close()


@dataclass(frozen=True)
class _Choice:
    link: Link
    reason: str
    address: Address | None = None
    """The address that decided, where one did."""


class _Miss(Exception):
    """This way of choosing found nothing; str() says what there was."""


def find_external_interface(options: NodeOptions, links: UnderlayLinks, *, ipv4: bool = True,
                            ipv6: bool = False) -> ExternalInterface:
    """Choose the interface: --iface, --iface-regex, --iface-can-reach in this order, the first that gives one.

    Without any of them it is the one that has --public-ip, and without that too the one of the default route.
    """
    finder = _Finder(links, tuple(version for version, on in ((4, ipv4), (6, ipv6)) if on))
    missed = []
    for attempt in finder.attempts(options):
        try:
            choice = attempt()
            return finder.completed(choice, options)
        except _Miss as miss:
            missed.append(str(miss))
    raise UnderlayError(f"no external interface: {'; '.join(missed)}")


def follow_external_interface(now: ExternalInterface, options: NodeOptions, links: UnderlayLinks, *,
                              ipv4: bool = True, ipv6: bool = False) -> ExternalInterface:
    """What to use instead of `now`, chosen anew; `now` itself where nothing changed or nothing can be had.

    An address that is still there is kept, although another may rank before it by now.
    """
    try:
        fresh = _found_anew(now, options, links, ipv4=ipv4, ipv6=ipv6)
        here = {one.ip for one in links.addresses(now.index) if not one.deprecated}
    except NetlinkError:
        return now
    if fresh.index == now.index:
        if now.address in here:
            fresh = replace(fresh, address=now.address, public_address=now.public_address)
        if now.address6 in here:
            fresh = replace(fresh, address6=now.address6, public_address6=now.public_address6)
    return now if replace(fresh, reason=now.reason) == now else fresh


def _found_anew(now: ExternalInterface, options: NodeOptions, links: UnderlayLinks, *, ipv4: bool,
                ipv6: bool) -> ExternalInterface:
    """The choice made anew; where one family has nothing to choose, `now` with what the other has on this interface."""
    try:
        return find_external_interface(options, links, ipv4=ipv4, ipv6=ipv6)
    except UnderlayError:
        fresh = now
    if ipv4 and ipv6:
        for family in ("ipv4", "ipv6"):
            with contextlib.suppress(UnderlayError):
                one = find_external_interface(options, links, **{"ipv4": False, family: True})
                told = {name: value for name, value in vars(one).items() if value is not None and name != "reason"}
                fresh = replace(fresh, **told) if one.index == now.index else fresh
    return fresh


def open_underlay_sockets(address: Address, port: int, *, segment: bool = True, gro: bool = True,
                          fragment: bool = False, tos: bool = False, sources: int = 0) -> UnderlaySockets:
    """The sockets of one queue on this address, the first on this port, with the offloads that are wanted and granted.

    `fragment`, `tos`, `sources`: as in Manner.
    """
    manner = Manner(fragment, tos, sources)
    return _completed(open_underlay_socket(address, port, manner=manner), address, manner, segment=segment, gro=gro)


def open_beside(first: UnderlaySockets, count: int) -> list[UnderlaySockets]:
    """The same again for so many more queues; from then on the kernel spreads what comes over all of them.

    It chooses by outer addresses and ports, so that all of one peer goes to one socket, in order. What comes before all
    are open is dropped: it would wait in one socket while what follows it comes out of another.
    """
    if not count:
        return []
    address, port = first.street.getsockname()[:2]
    offloads, opened = first.granted.offloads, [first]
    _let_nothing_in(first.street)
    # After it was bound: so its bind was refused if anybody had the port, another daemon of this user included.
    first.street.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        while len(opened) <= count:
            street = open_underlay_socket(ip_address(address), port, beside=True, manner=first.manner)
            opened.append(_completed(street, ip_address(address), first.manner, segment="udp_segment" in offloads,
                                     gro="udp_gro" in offloads))
    except UnderlayError:
        for sockets in opened[1:]:
            sockets.close()
        raise
    _empty(first.street)
    for sockets in opened:
        sockets.street.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    return opened[1:]


def open_underlay_socket(address: Address, port: int, *, beside: bool = False,
                         manner: Manner = Manner()) -> socket.socket:
    """A UDP socket bound to this address and port, non-blocking; unless told to, it never lets the kernel fragment.

    `beside` others that share the port; such a one lets nothing in yet.
    """
    discovery = PMTUDISC_DONT if manner.fragment else PMTUDISC_DO
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.version == 4:
            opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discovery)
            opened.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, manner.tos)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discovery)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, manner.tos)
        for forced, limited in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            _set_buffer(opened, forced, limited)
        if beside:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _let_nothing_in(opened)
        opened.bind((str(address), port))
    except OSError as error:
        opened.close()
        raise UnderlayError(_refusal(error, address, port)) from error
    return opened


def open_path_socket(address: Address) -> socket.socket:
    """A socket that is only asked for path MTUs: nobody reads it, so it lets nothing in that others would pile up."""
    opened = open_underlay_socket(address, 0)
    _let_nothing_in(opened)
    return opened


def _open_source(address: Address, manner: Manner) -> socket.socket:
    """A socket that only sends, from a port of the kernel's choice; nobody reads it, so it lets nothing in."""
    opened = open_underlay_socket(address, 0, manner=manner)
    _let_nothing_in(opened)
    return opened


def _completed(street: socket.socket, address: Address, manner: Manner, *, segment: bool,
               gro: bool) -> UnderlaySockets:
    """Ask for the offloads that are wanted, and add the other sockets; if that fails, close."""
    with contextlib.ExitStack() as closing:
        closing.enter_context(street)
        path = closing.enter_context(open_path_socket(address))
        sources = tuple(closing.enter_context(_open_source(address, manner)) for _ in range(manner.sources))
        closing.pop_all()
    asks = (("udp_segment", segment, _ask_for_segment), ("udp_gro", gro, _ask_for_gro))
    offloads, refusals = [], []
    for name, wanted, ask in asks:
        if wanted:
            try:
                ask(street)
            except OSError as error:
                refusals.append(Refusal((name,), error.strerror or str(error)))
            else:
                offloads.append(name)
    return UnderlaySockets(street, path, Granted(tuple(offloads), tuple(refusals)), sources, manner)


def _ask_for_segment(opened: socket.socket) -> None:
    """Raise OSError if this kernel has no UDP_SEGMENT (4.18); it is told its size with each message, and none here."""
    opened.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)


def _ask_for_gro(opened: socket.socket) -> None:
    """Switch UDP_GRO on, or raise OSError. Kernels that cannot tell that it is on (before 5.12) merge wrongly, too."""
    opened.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    try:
        told = opened.getsockopt(socket.IPPROTO_UDP, UDP_GRO)
    except OSError:
        opened.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 0)
        raise
    if not told:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


def _let_nothing_in(opened: socket.socket) -> None:
    reject = ctypes.create_string_buffer(struct.pack("=HBBI", BPF_RET_K, 0, 0, 0))  # keep no byte of any datagram
    opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(reject)))


def _empty(opened: socket.socket) -> None:
    """Drop what waits in a socket that lets nothing in."""
    with contextlib.suppress(BlockingIOError):
        while True:
            opened.recv(1)


def _set_buffer(opened: socket.socket, forced: int, limited: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN in the first user namespace: as much as net.core.?mem_max grants
        opened.setsockopt(socket.SOL_SOCKET, limited, SOCKET_BUFFER)


def _refusal(error: OSError, address: Address, port: int) -> str:
    where = f"UDP port {port} of {address}"
    if error.errno == errno.EADDRINUSE:
        return (f"{where} is in use, probably by a flanneld or another flannel-udp on this host: stop it, or set "
                f"another Backend.Port for the whole network (ss -ulnp sport = :{port} names the owner, ip -d link "
                "show type vxlan a device of the kernel's)")
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} cannot be bound: the address is no longer on this host"
    return f"{where} cannot be bound: {error.strerror}"


class _Finder:
    """One search; reads links and addresses as they are now."""

    def __init__(self, links: UnderlayLinks, versions: tuple[int, ...]) -> None:
        self._links = links
        self._versions = versions

    def attempts(self, options: NodeOptions) -> Iterator[Callable[[], _Choice]]:
        """The ways to choose, in flannel's order."""
        for one in options.iface:
            yield partial(self.by_name_or_address, one, "--iface")
        for pattern in options.iface_regex:
            yield partial(self.by_regex, pattern)
        if options.iface_can_reach:
            yield partial(self.by_reach, options.iface_can_reach)
        if not (options.iface or options.iface_regex or options.iface_can_reach):
            public = options.public_ip or options.public_ipv6
            if public:
                yield partial(self.by_name_or_address, str(public), "--public-ip")
            else:
                yield self.by_default_route

    def by_name_or_address(self, wanted: str, flag: str) -> _Choice:
        """The link that has this name or this address."""
        address = _parsed(wanted)
        if address is None:
            link = self._links.link(wanted)
            if link is None:
                raise _Miss(f"{flag} {wanted}: no interface of that name among {self._told_links()}")
            return _Choice(link, f"{flag} {wanted}")
        for one in self._links.addresses(family=address.version):
            link = self._links.link(one.index) if one.ip == address else None
            if link:
                return _Choice(link, f"{flag} {wanted}", address)
        hint = " (behind NAT name the interface too: --iface)" if flag == "--public-ip" else ""
        raise _Miss(f"{flag} {wanted}: no interface has it{hint}; there is {self._told_addresses()}")

    def by_regex(self, pattern: str) -> _Choice:
        """The first link with a matching address; else the first with a matching name."""
        regex = re.compile(pattern)
        links = self._links.links()
        for link in links:
            for address in (one for version in self._versions for one in self.usable(link, version)):
                if regex.search(str(address)):
                    return _Choice(link, f"--iface-regex {pattern} matches {address}", address)
        for link in links:
            if regex.search(link.name):
                return _Choice(link, f"--iface-regex {pattern} matches {link.name}")
        raise _Miss(f"--iface-regex {pattern}: matches none of {self._told_addresses()}")

    def by_reach(self, destination: str) -> _Choice:
        """The link and the source address with which the kernel would send there."""
        route = self._links.route_to(ip_address(destination))
        link = self._links.link(route.index) if route and route.index else None
        if route is None or link is None:
            raise _Miss(f"--iface-can-reach {destination}: no route leads there from {self._told_links()}")
        return _Choice(link, f"--iface-can-reach {destination}", route.source)

    def by_default_route(self) -> _Choice:
        """The link of the default route; of both families, they must agree."""
        found: dict[int, Link] = {}
        for version in self._versions:
            # The kernel lists routes to one network by metric, so the first is the one that it uses.
            index = next((route.index for route in self._links.routes(version) if _is_default(route)), None)
            link = self._links.link(index) if index else None
            if link is None:
                raise _Miss(f"no IPv{version} default route to find it by: name it with --iface, one of "
                            f"{self._told_links()}")
            found[version] = link
        if len({link.index for link in found.values()}) > 1:
            raise _Miss("the default routes of IPv4 and IPv6 differ "
                        f"({' and '.join(link.name for link in found.values())}): name one interface with --iface")
        return _Choice(found[self._versions[0]], "it has the default route")

    def completed(self, choice: _Choice, options: NodeOptions) -> ExternalInterface:
        """Add the addresses, each of its family: the one that decided, else the link's best."""
        link = choice.link
        if link.mtu == 0:
            raise _Miss(f"interface {link.name} ({choice.reason}) tells no MTU")
        address: IPv4Address | None = None
        address6: IPv6Address | None = None
        for version in self._versions:
            decided = choice.address if choice.address and choice.address.version == version else None
            best = decided or next(iter(self.usable(link, version)), None)
            if isinstance(best, IPv4Address):
                address = best
            elif isinstance(best, IPv6Address):
                address6 = best
            else:
                raise _Miss(f"interface {link.name} ({choice.reason}) has no usable IPv{version} address; there is "
                            f"{self._told_addresses()}")
        return ExternalInterface(link.name, link.index, link.mtu, address, address6,
                                 (options.public_ip or address) if address else None,
                                 (options.public_ipv6 or address6) if address6 else None, choice.reason)

    def usable(self, link: Link, version: int) -> list[Address]:
        """Addresses of a link, best first: global before link-local, permanent before dynamic and temporary ones."""
        def rank(one: LinkAddress) -> tuple[bool, bool, bool]:
            return one.ip.is_link_local, not one.permanent, one.temporary

        fit = [one for one in self._links.addresses(link.index, version)
               if not one.deprecated and not one.tentative and _is_unicast(one.ip)]
        return [one.ip for one in sorted(fit, key=rank)]

    def _told_links(self) -> str:
        return _listed(link.name for link in self._links.links())

    def _told_addresses(self) -> str:
        names = {link.index: link.name for link in self._links.links()}
        return _listed(f"{names.get(one.index, one.index)} {one.ip}{' (not yet usable)' if one.tentative else ''}"
                       for one in self._links.addresses())


def _parsed(text: str) -> Address | None:
    with contextlib.suppress(ValueError):
        return ip_address(text)
    return None


def _is_default(route: Route) -> bool:
    return route.network is None or route.network.prefixlen == 0


def _is_unicast(address: Address) -> bool:
    return not (address.is_loopback or address.is_multicast or address.is_unspecified)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
