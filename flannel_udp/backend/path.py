"""The data path of one address family: device, sockets and forwarder, opened, moved, mended and closed together.

    open() ─> running ── move(): another lease, nothing interrupted
                 │ broke(): device deleted, or a loop ended by itself
                 v         rebase(): another underlay; device and routes stay
              broken ── mend(): opened anew with growing delays, until it holds
The forwarder outlives its devices: routes, peers and counters stay. All of it belongs to the owner thread.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flannel_udp import logs
from flannel_udp.errors import FlannelUdpError, LeaseError, TunError
from flannel_udp.forwarder import Doors, Queue
from flannel_udp.offload import Refusal, report
from flannel_udp.tun import TunLinks, host_warnings
from flannel_udp.underlay import open_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flannel_udp.backend import Tunnel
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, LinkAddress, LinkEvent
    from flannel_udp.tun import Tun
    from flannel_udp.underlay import UnderlaySockets

_log = logs.get("path")

# Our choices: seconds before a broken path is opened anew, doubled each time up to the second figure; who held for
# longer than the third begins anew.
DELAY_MIN, DELAY_MAX, HELD = 0.1, 10.0, 30.0


class PathLinks(TunLinks, Protocol):
    """What this file asks of netlink.Links."""

    def addresses(self, index: int | None = None, family: int | None = None) -> list[LinkAddress]: ...  # noqa: D102


@dataclass(frozen=True)
class LoopEnded:
    """A loop of the forwarder ended by itself; `start` counts the starts, so that late news is known as such."""

    family: int
    start: int
    loop: str
    reason: str


class DataPath:
    """The data path of one tunnel."""

    def __init__(self, tunnel: Tunnel, links: PathLinks, post: Callable[[LoopEnded], None]) -> None:
        self.tunnel = tunnel
        self.forwarder = tunnel.forwarder()
        self.lease: Lease | None = None
        self.tun: Tun | None = None
        self.trouble = ""
        """Why no packets pass; empty while they do."""
        self.addresses: frozenset[Address] = frozenset()
        """This host's, as they were when tell_own() read them last."""
        self.retry_at: float | None = None
        self.breaks = 0
        """How often it broke since the start; tries to mend it that failed count too."""
        self._links = links
        self._post = post
        self._sockets: list[UnderlaySockets] = []  # by queue
        self._refused: set[Refusal] = set()
        self._starts = 0
        self._opened_at = 0.0
        self._delay = DELAY_MIN
        self._changed = False

    def prepare(self, *, sockets: bool = True) -> None:
        """Raise what would hinder open(), as far as it can be known before there is a lease.

        Without `sockets` these are left for open(): another holds the port until then.
        """
        self._sockets = [self.tunnel.open_sockets()] if sockets else []
        self.tunnel.check_device()

    def open(self, lease: Lease) -> None:
        """Let packets pass under this lease; after a failure close() what there is."""
        self.lease = lease
        self._sockets = self._sockets or [self.tunnel.open_sockets()]
        self.tun = self.tunnel.open_device(lease, self._links)
        self._sockets += open_beside(self._sockets[0], len(self.tun.queues) - 1)
        self.tell_own()
        self.publish()
        self._run()
        self._tell_refusals()
        self._opened_at = time.monotonic()

    def close(self) -> None:
        """Let no packet pass; device and sockets go, the forwarder keeps its routes."""
        self.forwarder.stop()
        if self.tun:
            self.tun.close()
        for sockets in self._sockets:
            sockets.close()
        self.tun, self._sockets = None, []

    def move(self, lease: Lease) -> None:
        """Go over to another lease; peers' routes stay up throughout."""
        self.lease = lease
        if self.tun:
            self.tun.move(self.tunnel.tunnel(lease), self._links)
        self.tell_own()

    def rebase(self, tunnel: Tunnel, *, reopen: bool) -> None:
        """Go over to another underlay; `reopen`: its address is another. Packets wait in the device meanwhile."""
        self.tunnel = tunnel
        if self.tun is None:
            return  # mend() opens by what is said now
        fresh: list[UnderlaySockets] = []
        if reopen:
            first = tunnel.open_sockets()
            fresh = [first, *open_beside(first, len(self.tun.queues) - 1)]
        if reopen or self.tun.mtu != tunnel.mtu:  # the loops are told both when they start
            self.forwarder.stop()
            for sockets in self._sockets if reopen else ():
                sockets.close()
            self._sockets = fresh or self._sockets
            self.tun.mtu = tunnel.mtu
            self._run()
        self.assure()

    def tell_own(self, *, afresh: bool = True) -> None:
        """Tell the forwarder which subnet and addresses are this node's; unless `afresh`, addresses as known."""
        if self.lease is None:
            raise LeaseError("this node has no lease yet")
        address = self.tunnel.tunnel(self.lease)
        if afresh:
            self.addresses = frozenset(one.ip for one in self._links.addresses())
        self.forwarder.set_own(self.tunnel.subnet(self.lease), address.ip, self.addresses)
        self._changed = True

    def publish(self) -> None:
        """Let the loops see all that was told, if anything was."""
        if self._changed:
            self.forwarder.publish()
            self._changed = False

    def links_changed(self, events: Iterable[LinkEvent]) -> None:
        """Look after the device when something of it changes, or may have."""
        tun = self.tun
        if tun and any(event.index == tun.index or event.network == tun.network or event.kind == "lost"
                       for event in events):
            self.assure()

    def assure(self) -> None:
        """Put back what somebody took from the device; mend the path if the device itself is gone."""
        if self.tun is None:
            return
        try:
            done = self.tun.assure(self._links)
        except TunError as error:
            self.broke(str(error))
            return
        if done:
            _log.info("device set right again", device=self.tun.name, put_back=",".join(done))

    def loop_ended(self, ended: LoopEnded) -> None:
        """Mend a path one of whose loops has ended, unless that was known by other means."""
        if (ended.family, ended.start) == (self.tunnel.family, self._starts) and self.tun is not None:
            self.broke(f"{ended.loop} ended: {ended.reason}")

    def guard(self, deed: Callable[[], None]) -> None:
        """Do something to this path; if it fails, the path is broken and will be mended."""
        try:
            deed()
        except FlannelUdpError as error:
            if self.tun:
                self.broke(str(error))

    def broke(self, reason: str) -> None:
        """Close what is left, to be opened anew by mend()."""
        self.close()
        self.breaks += 1
        now = time.monotonic()
        if self.retry_at is None and now - self._opened_at > HELD:  # a retry that fails was never open
            self._delay = DELAY_MIN
        self.trouble, self.retry_at = reason, now + self._delay
        _log.warning("data path broken", family=f"IPv{self.tunnel.family}", reason=reason,
                     retry_in=f"{self._delay:.1f}s")
        self._delay = min(2 * self._delay, DELAY_MAX)

    def mend(self) -> bool:
        """Open a broken path again, when its time has come; whether it was."""
        if self.retry_at is None or self.lease is None or time.monotonic() < self.retry_at:
            return False
        try:
            self.open(self.lease)
        except FlannelUdpError as error:
            self.broke(str(error))
            return False
        self.trouble, self.retry_at = "", None
        _log.info("data path mended", device=self.tun.name if self.tun else "")
        return True

    def warnings(self) -> list[str]:
        """What stands in the way of packets: some of it known since the device was made, some read anew."""
        if self.tun is None:
            return [self.no_packets()]
        at_first = [line for line in self.tun.warnings if line.startswith("/proc/sys")]
        if self.tun.unsteered:
            at_first.append(self.tun.unsteered)
        return at_first + host_warnings(self.tun.name, self.tun.network.version)

    def no_packets(self) -> str:
        """Why none pass; empty while they do."""
        return f"no IPv{self.tunnel.family} packets pass: {self.trouble}" if self.tun is None else ""

    def devices(self) -> list[dict[str, Any]]:
        """The device, for the status."""
        tun = self.tun
        return [{"name": tun.name, "index": tun.index, "mtu": tun.mtu, "address": str(tun.address),
                 "route": str(tun.network), "queues": len(tun.queues), "queues_asked": tun.asked}] if tun else []

    def offloads(self) -> list[dict[str, str]]:
        """What each offload came to, for the status."""
        if self.tun is None or not self._sockets:
            return []
        return report((self.tun.granted, self._sockets[0].granted), self.forwarder.given_up())

    def _run(self) -> None:
        assert self.tun
        self._starts += 1
        doors = Doors(self.tun.vnet, self.tun.uso, "udp_segment" in self._sockets[0].granted.offloads, self.tun.mtu,
                      self.tun.tap)
        queues = [Queue(fd, sockets.street.fileno(), sockets.path.fileno(),
                        tuple(source.fileno() for source in sockets.sources))
                  for fd, sockets in zip(self.tun.fds, self._sockets, strict=True)]
        self.forwarder.start(queues, partial(self._ended, self._starts), doors)

    def _tell_refusals(self) -> None:
        """Say once what the kernel refused, not again with each device that is opened anew."""
        assert self.tun
        for refusal in (*self.tun.granted.refusals, *self._sockets[0].granted.refusals):
            if refusal not in self._refused:
                self._refused.add(refusal)
                _log.info("offload refused by the kernel: packets pass, with more work for each",
                          offloads=",".join(refusal.offloads), reason=refusal.reason)

    def _ended(self, start: int, loop: str, error: OSError | None) -> None:
        reason = os.strerror(error.errno) if error and error.errno else str(error or "no reason given")
        self._post(LoopEnded(self.tunnel.family, start, loop, reason))
