"""Links, addresses and routes of this network namespace: the only file that speaks rtnetlink.

Links does what it is asked, synchronously, and belongs to the thread that opened it. LinkMonitor has a thread of its
own and tells of what others do. Both work in the network namespace in which they were opened.
"""

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_interface, ip_network
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, exceptions, rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from flannel_udp.errors import Fault, NetlinkError
from flannel_udp.link import Address, EventKind, Interface, Link, LinkAddress, LinkEvent, Network, Route

IFF_UP = 0x1  # linux/if.h
IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x20, 0x80  # linux/if_addr.h; 0x01 is SECONDARY in IPv4
IFA_F_TENTATIVE = 0x40  # stays set beside IFA_F_DADFAILED
Message: TypeAlias = Any  # what pyroute2 parsed: it comes without types
AF_BRIDGE = 7  # linux/socket.h
MAIN_TABLE, RTN_UNICAST, RTN_BLACKHOLE = 254, 1, 6  # linux/rtnetlink.h
# Our choice: by this number (`ip route show proto 82`) the daemon's routes are known. Numbers above 4 belong to
# daemons, and no routing daemon that iproute2's rt_protos lists has this one.
ROUTE_PROTOCOL = 82
RTPROT_STATIC = 4  # linux/rtnetlink.h; of the lab's
# Our choice: last among routes to the same subnet, so that the route that a bridge brings counts.
BLACKHOLE_METRIC = 65535
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ABSENT = (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT)


class Links:
    """The links, addresses and routes of one network namespace. To be used by one thread, and closed."""

    IFLA_INET_CONF, IFLA_AF_SPEC = 1, 26  # linux/ip.h, linux/if_link.h

    def __init__(self) -> None:
        try:
            # No multicast groups: what others change is LinkMonitor's business and would only fill this socket.
            self._ipr = IPRoute(groups=0, ext_ack=True)
        except OSError as error:
            raise NetlinkError(f"cannot open rtnetlink: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._ipr.close()

    def link(self, which: str | int) -> Link | None:
        """The link of that name or index, or None."""
        key: dict[str, Any] = {"ifname": which} if isinstance(which, str) else {"index": which}
        found = self._ask(f"read link {which}", "link", "get", absent=(errno.ENODEV, errno.EINVAL), **key)
        return _link(found[0]) if found else None

    def links(self) -> list[Link]:
        """All links, by index."""
        return sorted(map(_link, self._ask("list links", "get_links") or ()), key=lambda link: link.index)

    def create_bridge(self, name: str) -> Link:
        """Make a bridge."""
        return self._create(name, "bridge")

    def create_veth(self, name: str, peer: str, peer_namespace: int | None = None) -> Link:
        """Make a pair of connected Ethernet links; peer_namespace is an open fd of the namespace that gets the peer."""
        other: dict[str, Any] = {"ifname": peer}
        if peer_namespace is not None:
            other["net_ns_fd"] = peer_namespace
        return self._create(name, "veth", peer=other)

    def delete_link(self, index: int) -> bool:
        """Delete a link; False if there is none."""
        return self._ask(f"delete {_name(index)}", "link", "del", absent=ABSENT, index=index) is not None

    def move_link(self, index: int, *, namespace: int | None = None, pid: int | None = None) -> None:
        """Move a link to another network namespace, given as an open fd or as a process in it."""
        target: dict[str, Any] = {"net_ns_fd": namespace} if namespace is not None else {"net_ns_pid": pid}
        self._ask(f"move {_name(index)} to another namespace", "link", "set", index=index, **target)

    def set_link(self, index: int, *, up: bool | None = None, mtu: int | None = None, name: str | None = None,
                 mac: str | None = None, master: int | None = None, queue_length: int | None = None) -> None:
        """Change a link; what is None stays. master 0 takes the link out of its bridge."""
        state = None if up is None else ("up" if up else "down")
        change: dict[str, Any] = {"state": state, "mtu": mtu, "ifname": name, "address": mac, "master": master,
                                  "txqlen": queue_length}
        said = {key: value for key, value in change.items() if value is not None}
        words = " ".join(f"{key} {value}" for key, value in said.items())
        self._ask(f"set {_name(index)} {words}", "link", "set", index=index, **said)

    def set_ipv4_option(self, index: int, option: int, value: int) -> None:
        """Set an IPV4_DEVCONF_* option (linux/ip.h) of a link: the sysctl, but also where /proc/sys is read-only."""
        nested = 0x8000  # NLA_F_NESTED
        setting = _nla(option, struct.pack("=I", value))
        for kind in (self.IFLA_INET_CONF, socket.AF_INET, self.IFLA_AF_SPEC):
            setting = _nla(kind | nested, setting)
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + setting
        # pyroute2 reads these options but cannot write them, so this one message is put together by hand.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as direct:
            head = struct.pack("=IHHII", 16 + len(body), rtnl.RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
            direct.sendto(head + body, (0, 0))
            refusal = -struct.unpack_from("=i", direct.recv(4096), 16)[0]
        if refusal:
            raise NetlinkError(f"cannot set IPv4 option {option} of {_name(index)}: {os.strerror(refusal)}")

    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]:
        """The addresses of one link or of all, of one family (4 or 6) or of both, in the kernel's order."""
        found = self._ask("list addresses", "get_addr", family=FAMILIES[family] if family else socket.AF_UNSPEC)
        every = map(_address, found or ())
        return [one for one in every if index in (None, one.index)]

    def add_address(self, index: int, interface: Interface) -> bool:
        """Give a link an address; False if it has it already. An IPv6 one is not probed for duplicates (nodad)."""
        return self._address("add", index, interface, (errno.EEXIST,))

    def delete_address(self, index: int, interface: Interface) -> bool:
        """Take an address from a link; False if it had none such."""
        return self._address("del", index, interface, ABSENT)

    def routes(self, family: int = 4) -> list[Route]:
        """The main table's routes, in the kernel's order: longest prefix unsorted, lower metric first."""
        found = self._ask("list routes", "get_routes", family=FAMILIES[family], table=MAIN_TABLE)
        return [_route(message) for message in found or ()]

    def our_routes(self, family: int = 4) -> list[Route]:
        """Those of the main table that this program made."""
        found = self._ask("list routes", "get_routes", family=FAMILIES[family], table=MAIN_TABLE, proto=ROUTE_PROTOCOL)
        return [_route(message) for message in found or ()]

    def route_to(self, destination: Address) -> Route | None:
        """How the kernel would send a packet there now, or None where it would not."""
        unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
        found = self._ask(f"find the route to {destination}", "route", "get", absent=unreachable,
                          family=FAMILIES[destination.version], dst=str(destination))
        return _route(found[0]) if found else None

    def add_route(self, network: Network, index: int, gateway: Address | None = None,
                  protocol: int = ROUTE_PROTOCOL) -> bool:
        """Add a route; False if there is one to this network with this metric, whatever its link."""
        return self._change_route("add", network, index, gateway, (errno.EEXIST,), protocol)

    def replace_route(self, network: Network, index: int, gateway: Address | None = None) -> None:
        """Add a route, or put it in the place of the one to this network."""
        self._change_route("replace", network, index, gateway, (), ROUTE_PROTOCOL)

    def delete_route(self, network: Network, index: int, gateway: Address | None = None,
                     protocol: int | None = None) -> bool:
        """Delete a route, of this protocol if one is named; False if there is none such."""
        return self._change_route("del", network, index, gateway, ABSENT, protocol)

    def add_blackhole(self, network: Network) -> bool:
        """Have packets for a network that no better route takes end here; False if that is so already."""
        return self._change_blackhole("add", network, (errno.EEXIST,))

    def delete_blackhole(self, network: Network) -> bool:
        """Delete such a route; False if there is none."""
        return self._change_blackhole("del", network, ABSENT)

    def _change_blackhole(self, verb: str, network: Network, absent: Iterable[int]) -> bool:
        return self._ask(f"{verb} blackhole route {network}", "route", verb, absent=absent, dst=str(network),
                         family=FAMILIES[network.version], type="blackhole", proto=ROUTE_PROTOCOL,
                         priority=BLACKHOLE_METRIC) is not None

    def _create(self, name: str, kind: str, **what: Any) -> Link:  # noqa: ANN401 - as below
        self._ask(f"create {kind} {name}", "link", "add", ifname=name, kind=kind, **what)
        made = self.link(name)
        if made is None:
            raise NetlinkError(f"{kind} {name} was deleted as soon as it was made")
        return made

    def _address(self, verb: str, index: int, interface: Interface, absent: Iterable[int]) -> bool:
        extra = {"flags": rtnl.ifaddrmsg.IFA_F_NODAD} if verb == "add" and interface.version == 6 else {}
        return self._ask(f"{verb} address {interface} on {_name(index)}", "addr", verb, absent=absent, index=index,
                         family=FAMILIES[interface.version], address=str(interface.ip),
                         prefixlen=interface.network.prefixlen, **extra) is not None

    def _change_route(self, verb: str, network: Network, index: int, gateway: Address | None,
                      absent: Iterable[int], protocol: int | None = None) -> bool:
        # Universe also without a gateway, as flannel's: a source address then is chosen among those of global scope.
        via: dict[str, Any] = {"gateway": str(gateway)} if gateway else {"scope": 0}
        if protocol is not None:
            via["proto"] = protocol
        return self._ask(f"{verb} route {network} over {_name(index)}", "route", verb, absent=absent,
                         family=FAMILIES[network.version], dst=str(network), oif=index, **via) is not None

    def _ask(self, deed: str, method: str, *words: str, absent: Iterable[int] = (),
             **fields: Any) -> list[Message] | None:  # noqa: ANN401 - pyroute2's own words, without types
        """Call pyroute2; None when the kernel's refusal is one of those that the caller expects."""
        try:
            return list(getattr(self._ipr, method)(*words, **fields))
        except exceptions.NetlinkError as error:
            if error.code in absent:
                return None
            plain, said = os.strerror(error.code), str(error.args[1])  # what it said of its own accord, if anything
            raise NetlinkError(f"cannot {deed}: {plain}" + (f" ({said})" if said != plain else "")) from error
        except OSError as error:
            raise NetlinkError(f"cannot {deed}: {error.strerror or error}") from error


class LinkMonitor:
    """Posts a LinkEvent, from a thread of its own, when a link, an address or a route changes, until closed."""

    GROUPS = (rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV6_IFADDR
              | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_IPV6_ROUTE)
    KINDS: ClassVar[dict[int, EventKind]] = {
        rtnl.RTM_NEWLINK: "link", rtnl.RTM_DELLINK: "link gone",
        rtnl.RTM_NEWADDR: "address", rtnl.RTM_DELADDR: "address gone",
        rtnl.RTM_NEWROUTE: "route", rtnl.RTM_DELROUTE: "route",
    }

    def __init__(self, post: Callable[[LinkEvent | Fault], None]) -> None:
        # A socket of our own in place of IPRoute.get(), which nothing could wake; open before the thread starts, so
        # that whoever reads the state after this constructor misses nothing.
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, self.GROUPS))
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._post = post
        self._thread = threading.Thread(target=self._run, name="link-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give the socket back; a second call does nothing."""
        if self._socket.fileno() == -1:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._stop)

    def _run(self) -> None:
        try:
            self._listen()
        except Exception as error:  # whatever it is, the owner raises it
            self._post(Fault(self._thread.name, error))

    def _listen(self) -> None:
        marshal = MarshalRtnl()
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        waiting.register(self._stop, select.POLLIN)
        while True:
            if any(fd == self._stop for fd, _ in waiting.poll()):
                return
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the queue overflowed: the kernel dropped events
                    raise
                self._post(LinkEvent("lost"))
                continue
            for message in marshal.parse(data):
                kind = self.KINDS.get(message["header"]["type"])
                if kind == "route":
                    if message["table"] == MAIN_TABLE:
                        route = _route(message)
                        self._post(LinkEvent(kind, route.index or 0, network=route.network))
                    continue
                # A link that leaves a bridge is announced as deleted too, under the family of bridges.
                if kind and message["family"] != AF_BRIDGE:
                    self._post(LinkEvent(kind, message["index"], message.get_attr("IFLA_IFNAME") or ""))


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"link {index}"


def _nla(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _link(message: Message) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info and info.get_attr("IFLA_INFO_KIND")) or ""
    vxlan = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None
    return Link(message["index"], message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU") or 0,
                bool(message["flags"] & IFF_UP), kind, message.get_attr("IFLA_ADDRESS") or "",
                message.get_attr("IFLA_MASTER"), vxlan and vxlan.get_attr("IFLA_VXLAN_ID"),
                (vxlan and vxlan.get_attr("IFLA_VXLAN_PORT")) or 0)


def _address(message: Message) -> LinkAddress:
    # On a point-to-point link IFA_ADDRESS is the other end's; IFA_LOCAL, where there is one, is always ours.
    ours = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    return LinkAddress(message["index"], ip_interface(f"{ours}/{message['prefixlen']}"), bool(flags & IFA_F_PERMANENT),
                       bool(flags & IFA_F_DEPRECATED),
                       bool(flags & IFA_F_TEMPORARY) and message["family"] == socket.AF_INET6,
                       bool(flags & IFA_F_TENTATIVE))


def _route(message: Message) -> Route:
    hops = message.get_attr("RTA_MULTIPATH")
    first = hops[0] if hops else message  # of several equal ways the first stands for all
    destination, source = message.get_attr("RTA_DST"), message.get_attr("RTA_PREFSRC")
    gateway = first.get_attr("RTA_GATEWAY")
    index = first["oif"] if hops else first.get_attr("RTA_OIF")
    return Route(ip_network(f"{destination}/{message['dst_len']}") if destination else None, index,
                 ip_address(gateway) if gateway else None, ip_address(source) if source else None, message["proto"],
                 message["type"] == RTN_BLACKHOLE, message["type"] == RTN_UNICAST)
