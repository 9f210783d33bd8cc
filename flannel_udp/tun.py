"""The TUN or TAP device: open it, give it address, MTU and the network's route, and say what on this host hinders it.

The device lives as long as its descriptor is open: closing it takes address and route away too. Offloads are asked for
by trying, the most first: only so is it told what this kernel has, whatever its version says. Several queues are opened
only where the kernel can be kept from moving flows between them (steering.py).
"""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any, Protocol

import pytun

from flannel_udp.errors import TunError
from flannel_udp.link import Interface, Link, Network, Route
from flannel_udp.offload import TUN_OFFLOADS, Granted, Refusal

DEVICE = Path("/dev/net/tun")
SYSCTL = Path("/proc/sys/net")
FLAGS: int = pytun.IFF_TUN | pytun.IFF_NO_PI
TAP_FLAGS: int = pytun.IFF_TAP | pytun.IFF_NO_PI
SIOCSIFHWADDR, ARPHRD_ETHER = 0x8924, 1  # linux/sockios.h, linux/if_arp.h
IPV4_DEVCONF_ACCEPT_LOCAL = 23  # linux/ip.h
STRICT = 1  # rp_filter, RFC 3704
TUNSETOFFLOAD = 0x400454D0  # linux/if_tun.h, and these: TUN_F_*
BITS = dict(zip(TUN_OFFLOADS, (0x01, 0x02, 0x04, 0x08, 0x20, 0x40), strict=True))
# What is asked for, one after the other, until something is granted: USO is of Linux 6.2, and given for both or none.
STEPS = (TUN_OFFLOADS, TUN_OFFLOADS[:4], TUN_OFFLOADS[:1])
# Our choice, measured (docs/performance.md): the kernel's 500 loses bursts of small packets, 4000 gain nothing more.
QUEUE_LENGTH = 1000


class TunLinks(Protocol):
    """What this file asks of netlink.Links."""

    def link(self, which: str | int) -> Link | None: ...  # noqa: D102
    def set_link(self, index: int, *, up: bool | None = None, mtu: int | None = None,  # noqa: D102
                 queue_length: int | None = None) -> None: ...
    def set_ipv4_option(self, index: int, option: int, value: int) -> None: ...  # noqa: D102
    def add_address(self, index: int, interface: Interface) -> bool: ...  # noqa: D102
    def delete_address(self, index: int, interface: Interface) -> bool: ...  # noqa: D102
    def add_route(self, network: Network, index: int) -> bool: ...  # noqa: D102
    def routes(self, family: int = 4) -> list[Route]: ...  # noqa: D102


@dataclass
class Tun:
    """An open TUN device, up and routed to. Warnings are lines for the user, each with what to do."""

    name: str
    index: int
    mtu: int
    address: Interface
    network: Network
    queues: list[Any] = field(repr=False)
    granted: Granted = field(default_factory=Granted)
    warnings: list[str] = field(default_factory=list)
    rival: str = ""
    """Whose route to the network stands where ours should, and what to do; empty while ours stands."""
    asked: int = 1
    """So many queues were asked for."""
    unsteered: str = ""
    """Why there is one queue instead, and what to do; empty where there are as many as asked for."""
    tap: bool = False
    """It gives and takes Ethernet frames."""

    @property
    def vnet(self) -> bool:
        """Whether a vnet_hdr stands before each frame."""
        return "tun_csum" in self.granted.offloads

    @property
    def uso(self) -> bool:
        """Whether the kernel takes and gives UDP super-packets."""
        return "tun_uso4" in self.granted.offloads

    @property
    def fds(self) -> list[int]:
        """The queues' descriptors for the data plane, non-blocking; -1 once closed."""
        return [queue.fileno() for queue in self.queues]

    def move(self, address: Interface, links: TunLinks) -> None:
        """Take the address of another lease; routes stay up."""
        if address == self.address:
            return
        # The new one first: with its last address a link loses all its routes.
        links.add_address(self.index, address)
        links.delete_address(self.index, self.address)
        self.address = address

    def assure(self, links: TunLinks) -> list[str]:
        """Make address, MTU, state and route what they should be; name what was not. Another's route stays (rival)."""
        link = links.link(self.index)
        if link is None:
            raise TunError(f"the device {self.name} was deleted")
        done = ["address"] if links.add_address(self.index, self.address) else []
        if (link.mtu, link.up) != (self.mtu, True):
            links.set_link(self.index, mtu=self.mtu, up=True)
            done += [name for name, wrong in (("mtu", link.mtu != self.mtu), ("up", not link.up)) if wrong]
        if links.add_route(self.network, self.index):
            self.rival = ""
            return [*done, "route"]
        self.rival = _rival(self, links)
        return done

    def close(self) -> None:
        """Delete the device; a second call does nothing."""
        _close(self.queues)


def open_tun(pattern: str, mtu: int, address: Interface, network: Network, links: TunLinks, *,
             offload: bool = True, queues: int = 1, steer: Callable[[int], None] | None = None,
             tap_mac: bytes | None = None) -> Tun:
    """Make a TUN device named after the pattern ("flannel%d": the first free number) that leads to the network.

    The address is the lease's network address, alone (/32, /128), so that the kernel adds no route of its own. Several
    `queues` are opened if steer(descriptor) can make the device keep each flow on its queue, or raises TunError. With
    `tap_mac` it is a TAP that has this MAC address.
    """
    flags = FLAGS if tap_mac is None else TAP_FLAGS
    opened, granted, unsteered = _open_queues(pattern, queues, steer, flags, offload=offload)
    try:
        if tap_mac is not None:
            _set_mac(opened[0], tap_mac)
        name = opened[0].name
        link = links.link(name)
        if link is None:
            raise TunError(f"the TUN device {name} was deleted as soon as it was made")
        tun = Tun(link.name, link.index, mtu, address, network, opened, granted, asked=queues, unsteered=unsteered,
                  tap=tap_mac is not None)
        tun.warnings += _quieten(tun, links)
        links.set_link(tun.index, queue_length=QUEUE_LENGTH)
        tun.assure(links)
        if tun.rival:
            raise TunError(tun.rival)
        tun.warnings += host_warnings(tun.name, network.version)
    except BaseException:
        _close(opened)
        raise
    return tun


def check_tun(pattern: str) -> None:
    """Raise TunError if no such device can be made here; leaves none."""
    _open_queue(pattern, FLAGS).close()


def host_warnings(name: str, version: int) -> list[str]:
    """What of this host's settings keeps packets from the device or drops those that it gives: a line each."""
    forwarding = "ipv4.ip_forward" if version == 4 else "ipv6.conf.all.forwarding"
    found = []
    if _read(forwarding) == 0:
        found.append(f"net.{forwarding} is 0, so nothing passes between the pods of this node and {name}: "
                     f"sysctl -w net.{forwarding}=1")
    # The kernel takes the larger of both; 2 is loose.
    filters = (_read("ipv4.conf.all.rp_filter"), _read("ipv4.conf", name, "rp_filter"))
    if version == 4 and max(value or 0 for value in filters) == STRICT:
        found.append(f"rp_filter is strict on {name}, so packets from sources that are not routed back over it are "
                     f"dropped: sysctl -w net.ipv4.conf.{name.replace('.', '/')}.rp_filter=2 (loose)")
    return found


def _set_mac(queue: Any, mac: bytes) -> None:  # noqa: ANN401 - pytun has no types
    """Give the device a MAC address."""
    try:
        ioctl(queue.fileno(), SIOCSIFHWADDR, struct.pack("16sH6s8x", queue.name.encode(), ARPHRD_ETHER, mac))
    except OSError as error:
        raise TunError(f"cannot give {queue.name} the MAC address {mac.hex(':')}: {error.strerror}") from error


def _open_queues(pattern: str, count: int, steer: Callable[[int], None] | None, flags: int, *,
                 offload: bool) -> tuple[list[Any], Granted, str]:
    """As many queues as asked for if they can be steered, else one and why."""
    unsteered = ""
    if count > 1 and flags & pytun.IFF_TAP:
        unsteered = f"one queue instead of {count}: flows of a TAP device are not steered; use a TUN"
    elif count > 1:
        assert steer is not None, "several queues need steering"
        try:
            return *_open_steered(pattern, count, steer, flags, offload=offload), ""
        except TunError as error:
            unsteered = f"one queue instead of {count}, or the kernel would reorder flows: {error}"
    queue, granted = _open_first(pattern, flags, offload=offload)
    return [queue], granted, unsteered


def _open_steered(pattern: str, count: int, steer: Callable[[int], None], flags: int, *,
                  offload: bool) -> tuple[list[Any], Granted]:
    """All queues of a device that is steered before any packet passes; if that fails, none."""
    flags |= pytun.IFF_MULTI_QUEUE
    first, granted = _open_first(pattern, flags, offload=offload)
    queues = [first]
    try:
        steer(first.fileno())
        if granted.offloads:  # which are the device's, while the flags must be the same for each queue
            flags |= pytun.IFF_VNET_HDR
        while len(queues) < count:
            queues.append(_open_queue(first.name, flags))
    except BaseException:
        _close(queues)
        raise
    return queues, granted


def _open_first(pattern: str, flags: int, *, offload: bool) -> tuple[Any, Granted]:
    """The queue that makes the device; with a vnet_hdr and all that the kernel grants, if it grants anything."""
    granted = Granted()
    if offload:
        queue = _open_queue(pattern, flags | pytun.IFF_VNET_HDR)
        granted = _ask_for_offloads(queue.fileno())
        if granted.offloads:
            return queue, granted
        queue.close()
    return _open_queue(pattern, flags), granted


def _close(queues: list[Any]) -> None:
    for queue in queues:
        queue.close()


def _open_queue(pattern: str, flags: int) -> Any:  # noqa: ANN401 - pytun has no types
    """One queue of a device, which the first makes; more are more calls, with IFF_MULTI_QUEUE and its name."""
    try:
        queue = pytun.TunTapDevice(name=pattern, flags=flags)
    except OSError as error:
        raise TunError(f"cannot open a TUN device {pattern}: {_reason(error)}") from error
    os.set_inheritable(queue.fileno(), False)
    os.set_blocking(queue.fileno(), False)
    return queue


def _ask_for_offloads(descriptor: int) -> Granted:
    """Ask for less after each refusal."""
    refusals = []
    for asked, less in zip(STEPS, (*STEPS[1:], ()), strict=True):
        try:
            ioctl(descriptor, TUNSETOFFLOAD, sum(BITS[name] for name in asked))
        except OSError as error:
            refusals.append(Refusal(asked[len(less):], error.strerror or str(error)))
        else:
            return Granted(asked, tuple(refusals))
    return Granted((), tuple(refusals))


def _reason(refusal: OSError) -> str:
    """What would help: pytun tells the errno, not whether opening or attaching failed, so try opening alone."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (f"there is no {DEVICE}: load the module (modprobe tun), or give the container the device "
                f"(docker run --device {DEVICE}, in Kubernetes a hostPath volume)")
    except PermissionError:
        return f"{DEVICE} may not be opened: run as root, or allow the container the device (--device {DEVICE})"
    except OSError as error:
        return f"{DEVICE} cannot be opened ({error.strerror}): load the module (modprobe tun)"
    if refusal.errno == errno.EPERM:
        return "CAP_NET_ADMIN is missing: run as root, or give the container the capability (--cap-add NET_ADMIN)"
    if refusal.errno == errno.EBUSY:
        return "a device of that name is in use by another process"
    return refusal.strerror or str(refusal)


def _rival(tun: Tun, links: TunLinks) -> str:
    """Who has the route to our network: it takes the packets away; empty if it is ours."""
    others = [route.index for route in links.routes(tun.network.version) if route.network == tun.network]
    if tun.index in others or not others:  # none: it went between the two looks, and the next one puts ours back
        return ""
    other = next((link.name for index in others if index is not None and (link := links.link(index))), "another link")
    return (f"the route {tun.network} is taken by {other}: stop the flannel that runs here, or delete what it "
            f"left (ip{' -6' if tun.network.version == 6 else ''} route del {tun.network} dev {other})")


def _quieten(tun: Tun, links: TunLinks) -> Iterator[str]:
    """Settings of the device, to be made before it is up; yields a warning about those that cannot be made."""
    if tun.network.version == 4:
        # The ICMP errors that we write come from an address of this node: martians, unless allowed (RFC 1812 5.3.7).
        links.set_ipv4_option(tun.index, IPV4_DEVCONF_ACCEPT_LOCAL, 1)
        wanted = {"disable_ipv6": 1}
    else:
        _enable_ipv6(tun.name)
        # No link-local address, and thus no router solicitations.
        wanted = {"addr_gen_mode": 1, "accept_ra": 0}
    if tun.tap and tun.network.version == 6:
        # Of forwarded packets the kernel asks for neighbours by its link-local address alone, and nobody else has it;
        # a host's default may be that new devices get none.
        wanted = {"addr_gen_mode": 0, "accept_dad": 0, "accept_ra": 0}
    refused = {}
    for key, value in wanted.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 makes no IPv6 noise
            try:
                SYSCTL.joinpath("ipv6/conf", tun.name, key).write_text(f"{value}\n")
            except OSError as error:
                refused[key] = error.strerror
    if refused:
        said = " ".join(f"net.ipv6.conf.{tun.name}.{key}={wanted[key]}" for key in refused)
        yield (f"/proc/sys is not writable ({refused.popitem()[1]}), so IPv6 packets of the kernel's own come out of "
               f"{tun.name} and are dropped: mount it read-write, or set on the host {said}")


def _enable_ipv6(name: str) -> None:
    """Allow it on the device where the host's default for new ones, as in many containers, forbids it."""
    if _read("ipv6.conf", name, "disable_ipv6") != 1:
        return
    try:
        SYSCTL.joinpath("ipv6/conf", name, "disable_ipv6").write_text("0\n")
    except OSError as error:
        raise TunError(f"IPv6 is switched off on new devices, and cannot be switched on for {name} ({error.strerror}): "
                       "sysctl -w net.ipv6.conf.default.disable_ipv6=0 on the host") from error


def _read(dotted: str, *parts: str) -> int | None:
    """A number below /proc/sys/net, or None where this kernel has none. Device names may hold dots: apart."""
    try:
        return int(SYSCTL.joinpath(*dotted.split("."), *parts).read_text())
    except (OSError, ValueError):
        return None
