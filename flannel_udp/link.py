"""Links, their addresses and routes as values: what netlink.py reads from the kernel and posts when it changes."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network
EventKind: TypeAlias = Literal["link", "link gone", "address", "address gone", "route", "lost"]

_HEX = "[0-9a-fA-F]"
_MAC = re.compile(f"{_HEX}{{2}}([:-]){_HEX}{{2}}(?:\\1{_HEX}{{2}}){{4}}|{_HEX}{{4}}(?:\\.{_HEX}{{4}}){{2}}")


@dataclass(frozen=True)
class Link:
    """A network interface."""

    index: int
    name: str
    mtu: int
    up: bool
    kind: str = ""
    """What the kernel calls its type ("tun", "veth", "bridge"); empty for hardware and lo."""
    mac: str = ""
    master: int | None = None
    vni: int | None = None
    """Of a VXLAN device, as the next."""
    port: int = 0
    """The UDP port that it listens at, on all addresses of its family."""


def parse_mac(text: str) -> bytes:
    """The six bytes of one station's Ethernet address, written in any way that Go reads; ValueError says what is wrong.

    These ways are 0a:5e:00:53:00:01, 0a-5e-00-53-00-01 and 0a5e.0053.0001.
    """
    if not _MAC.fullmatch(text):
        raise ValueError("is no Ethernet address")
    mac = bytes.fromhex(re.sub("[:.-]", "", text))
    if mac[0] & 1 or not any(mac):
        raise ValueError("is not the Ethernet address of one station")
    return mac


def within(inner: Network, outer: Network) -> bool:
    """Whether a network is part of another; one of the other family never is."""
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LinkAddress:
    """An address of a link."""

    index: int
    interface: Interface
    permanent: bool = True
    deprecated: bool = False
    temporary: bool = False
    """An IPv6 privacy address (RFC 8981)."""
    tentative: bool = False
    """Still, or in vain, probed for duplicates (RFC 4862, 5.4): nothing can be bound to it."""

    @property
    def ip(self) -> Address:
        """The address without its prefix length."""
        return self.interface.ip


@dataclass(frozen=True)
class Route:
    """Where packets for a network leave; network None is the default route."""

    network: Network | None
    index: int | None
    gateway: Address | None = None
    source: Address | None = None
    protocol: int = 0
    """Who made it: 2 the kernel, 3 a command line, flannel too; netlink.ROUTE_PROTOCOL is ours."""
    blackhole: bool = False
    """Packets end here; there is no link then, though IPv6 names lo."""
    unicast: bool = True
    """It leads to one other host: not to this one, and not to all on a link."""


@dataclass(frozen=True)
class LinkEvent:
    """Something about links, addresses or the main table's routes changed; read anew what it is now.

    "lost" says that events were missed: anything may have changed.
    """

    kind: EventKind
    index: int = 0
    name: str = ""
    network: Network | None = None
    """Of a route that came, changed or went; None is the default route."""
