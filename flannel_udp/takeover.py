"""Taking over from flannel on this host: what a stopped flanneld left that acts on our network, found and removed.

    rules      its chains and tables                          (firewall/flannel.py)
    devices    flannel.<VNI>, flannel-v6.<VNI>, flannel.ipip   with an address or a route of our network; routes go too
    routes     into our network by way of a peer's address     host-gw's, and those of DirectRouting
Where our own backend is vxlan, the kernel's device stands in the place of ours: it has the name, the port, and the MAC
that peers know. The MAC is adopted before our lease is written, the device removed once that is held.
Of the udp backend nothing stays: device and route end with the process. Recognised are exactly these, by name, kind and
network; a flanneld that runs on this host for another network, and all that is not flannel's, is left alone.
"""

import os
import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from flannel_udp import logs
from flannel_udp.backend import vtep
from flannel_udp.errors import TakeoverError
from flannel_udp.firewall.flannel import Leftover
from flannel_udp.link import Address, Link, LinkAddress, Network, Route, parse_mac, within
from flannel_udp.options import NodeOptions

_log = logs.get("takeover")

# Specification: flannel, pkg/backend; by the kernel's kind of the device.
DEVICES = {"vxlan": re.compile(r"flannel(-v6)?\.\d+"), "ipip": re.compile(r"flannel\.ipip")}
TUN = re.compile(r"flannel\d+")
RTPROT_BOOT = 3  # linux/rtnetlink.h; of flannel's routes
NAME = "flanneld"


class TakeoverLinks(Protocol):
    """What this file asks of netlink.Links."""

    def links(self) -> list[Link]: ...  # noqa: D102
    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]: ...  # noqa: D102
    def routes(self, family: int = 4) -> list[Route]: ...  # noqa: D102
    def delete_link(self, index: int) -> bool: ...  # noqa: D102
    def delete_route(self, network: Network, index: int, gateway: Address | None = None,  # noqa: D102
                     protocol: int | None = None) -> bool: ...


def running() -> int | None:
    """The process of a flanneld in this network namespace, as far as this process may see it."""
    here = Path("/proc/self/ns/net").stat()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == NAME and os.path.samestat((process / "ns/net").stat(), here):
                return int(process.name)
        except OSError:  # it ended, or is none of our business
            continue
    return None


def devices(networks: Iterable[Network], links: TakeoverLinks, ours: Collection[str] = ()) -> list[Leftover]:
    """Devices of flannel's kernel backends that have to do with these networks, or the names that ours are to have."""
    return [Leftover(f"{link.kind} device {link.name} and its routes", partial(links.delete_link, link.index))
            for link in links.links()
            if _of_flannel(link) and (link.name in ours or _concerns(link, networks, links))]


def in_place_of(ours: Collection[str], port: int, networks: Iterable[Network], links: TakeoverLinks) -> list[Link]:
    """Flannel's devices that have the names or the port of our VTEPs, and are to be removed for them.

    TakeoverError if one of the names is taken by something else, or by the flannel of another network.
    """
    found = []
    for link in links.links():
        flannels = _of_flannel(link)
        if flannels and _concerns(link, networks, links):
            if link.name in ours or link.port == port:
                found.append(link)
        elif link.name in ours and flannels and not _used(link, links):
            found.append(link)
        elif link.name in ours:
            raise TakeoverError(f"{link.name}, as this node's own device is to be called, is a {link.kind} device of "
                                f"others: delete it (ip link del {link.name}), or set another Backend.VNI for the "
                                "whole network")
    return found


def adopt_macs(ours: Collection[str], options: NodeOptions, links: TakeoverLinks) -> None:
    """Go on with the VtepMACs of the devices that flannel left in the place of ours: peers know them."""
    macs = {link.name: parse_mac(link.mac) for link in links.links() if link.name in ours and _of_flannel(link)}
    if {**vtep.known(options), **macs} != vtep.known(options):
        vtep.keep(options, macs)
        _log.info("going on with the VtepMACs of flannel's devices",
                  devices=",".join(f"{name}={vtep.text_of(mac)}" for name, mac in macs.items()))


def tunnels(networks: Iterable[Network], links: TakeoverLinks) -> list[str]:
    """TUN devices of flannel's udp backend that lead to these networks: each has a process that runs."""
    return [link.name for link in links.links()
            if link.kind == "tun" and TUN.fullmatch(link.name) and _concerns(link, networks, links)]


def gateway_routes(networks: Iterable[Network], links: TakeoverLinks) -> dict[Address, list[Leftover]]:
    """By gateway, the routes into these networks that look like flannel's: they are, if a node has that address."""
    found: dict[Address, list[Leftover]] = {}
    for network in networks:
        for route in links.routes(network.version):
            if (route.protocol == RTPROT_BOOT and route.gateway and route.index is not None
                    and route.network and within(route.network, network)):
                found.setdefault(route.gateway, []).append(
                    Leftover(f"route {route.network} via {route.gateway}",
                             partial(links.delete_route, route.network, route.index, route.gateway, RTPROT_BOOT)))
    return found


def _concerns(link: Link, networks: Iterable[Network], links: TakeoverLinks) -> bool:
    if any(one.ip in network for one in links.addresses(link.index) for network in networks):
        return True
    return any(route.index == link.index and route.network and route.network.overlaps(network)
               for network in networks for route in links.routes(network.version))


def _of_flannel(link: Link) -> bool:
    name = DEVICES.get(link.kind)
    return bool(name and name.fullmatch(link.name))


def _used(link: Link, links: TakeoverLinks) -> bool:
    """Whether a device has an address, other than what the kernel gives it by itself."""
    return any(not one.ip.is_link_local for one in links.addresses(link.index))
