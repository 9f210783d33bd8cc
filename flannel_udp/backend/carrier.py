"""The backend at work under this node's lease: for each of its tunnels a data path and the peers routed to over it.

What concerns all families comes in here and goes to each; what one of them cannot do breaks that one alone, to be
mended (path.py). A backend without tunnels has a lease, and perhaps routes of the kernel's (routes.py). All of it
belongs to the owner thread.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from flannel_udp.backend.path import DataPath
from flannel_udp.backend.peers import PeerRoutes
from flannel_udp.errors import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from flannel_udp.backend import Backend
    from flannel_udp.backend.path import LoopEnded, PathLinks
    from flannel_udp.backend.routes import KernelRoutes
    from flannel_udp.forwarder import Notice, PeerStatus
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, LinkEvent


class Carrier:
    """All data paths of a backend, and the peers of each."""

    def __init__(self, backend: Backend, links: PathLinks, post: Callable[[LoopEnded], None],
                 routes: KernelRoutes) -> None:
        self.backend = backend
        self.routes = routes
        self.lease: Lease | None = None
        self.paths = tuple(DataPath(tunnel, links, post) for tunnel in backend.tunnels)
        self._peers = tuple(PeerRoutes(path.tunnel, path.forwarder) for path in self.paths)
        self._links = links

    # -- the paths ----------------------------------------------------------------------------------------------------

    def prepare(self, *, sockets: bool = True) -> None:
        """Take what may be missing or in use, before there is a lease; see DataPath.prepare()."""
        for path in self.paths:
            path.prepare(sockets=sockets)

    def open(self, lease: Lease) -> None:
        """Let packets pass under this lease; after a failure close() what there is."""
        self.lease = lease
        for path in self.paths:
            path.open(lease)

    def close(self) -> None:
        """Let no packet pass."""
        for path in self.paths:
            path.close()

    def renewed(self, lease: Lease) -> None:
        """Know the same lease as it stands now."""
        self.lease = lease
        for path in self.paths:
            path.lease = lease

    def move(self, lease: Lease) -> None:
        """Go over to another lease; peers' routes stay up throughout."""
        self.lease = lease
        for path, peers in self._both():
            path.guard(partial(path.move, lease))
            peers.retry()

    def rebase(self, backend: Backend, moved: Collection[int]) -> None:
        """Go over to another underlay, on which the address of the families in `moved` is another."""
        self.backend = backend
        for (path, peers), tunnel in zip(self._both(), backend.tunnels, strict=True):
            path.guard(partial(path.rebase, tunnel, reopen=tunnel.family in moved))
            peers.use(tunnel)
        self.routes.use(backend)

    def tell_own(self, *, afresh: bool) -> None:
        """Tell the data planes what is ours, and then of those that our own subnet may have stood in the way of."""
        for path, peers in self._both():
            path.guard(partial(_tell_own, path, peers, afresh=afresh))

    def publish(self) -> None:
        """Let the loops see all that was told."""
        for path in self.paths:
            path.publish()

    def links_changed(self, events: Sequence[LinkEvent]) -> None:
        """Look after the devices when something of them changes, or may have."""
        for path in self.paths:
            path.guard(partial(path.links_changed, events))
        self.routes.links_changed(events)

    def assure(self) -> None:
        """Put back what somebody took from the devices."""
        for path in self.paths:
            path.guard(path.assure)

    def loop_ended(self, ended: LoopEnded) -> None:
        """Mend the path one of whose loops has ended."""
        for path in self.paths:
            path.loop_ended(ended)

    def mend(self) -> None:
        """Open broken paths again, when their time has come."""
        for path, peers in self._both():
            if path.mend():
                path.guard(partial(_tell_own, path, peers, afresh=False))

    @property
    def retry_at(self) -> float | None:
        """When the next broken path is to be mended, on the monotonic clock; None while all are whole."""
        return min((path.retry_at for path in self.paths if path.retry_at is not None), default=None)

    # -- the peers ----------------------------------------------------------------------------------------------------

    def reset(self, leases: Sequence[Lease]) -> None:
        """These are all peers that there are; those that stay are not interrupted."""
        for peers in self._peers:
            peers.reset(leases)
        self.routes.reset(leases)

    def change(self, put: Sequence[Lease], deleted: Sequence[Lease]) -> None:
        """Peers that came or changed, and peers that went."""
        for peers in self._peers:
            peers.change(put, deleted)
        self.routes.change(put, deleted)

    def peer_count(self) -> int:
        """How many peers are routed to: of two families, over the tunnel that reaches more."""
        return max([peers.count() for peers in self._peers], default=self.routes.count())

    # -- what there is to tell ----------------------------------------------------------------------------------------

    @property
    def addresses(self) -> frozenset[Address]:
        """This host's, as they were when the data planes were told of them last."""
        if self.paths:
            return frozenset(address for path in self.paths for address in path.addresses)
        with contextlib.suppress(NetlinkError):
            return frozenset(one.ip for one in self._links.addresses())
        return frozenset()

    def rival(self) -> str:
        """Whose routes stand where ours should, and what to do."""
        return "; ".join(path.tun.rival for path in self.paths if path.tun and path.tun.rival)

    def warnings(self) -> list[str]:
        """What stands in the way of packets."""
        return [line for path in self.paths for line in path.warnings()]

    def troubles(self) -> list[str]:
        """Why no packets of a family pass, a line for each that is broken."""
        return [line for path in self.paths if (line := path.no_packets())]

    def notices(self) -> list[Notice]:
        """What the log should say of packets since the last call."""
        return [notice for path in self.paths for notice in path.forwarder.notices()]

    def devices(self) -> list[dict[str, Any]]:
        """The devices, for the status."""
        return [device for path in self.paths for device in path.devices()]

    def peers(self) -> list[PeerStatus]:
        """Every peer of every tunnel."""
        return [peer for path in self.paths for peer in path.forwarder.peers()]

    def skipped(self) -> list[tuple[str, str]]:
        """The keys of leases that have no route, each with the reason."""
        by_key = [*(peers.skipped for peers in self._peers), self.routes.skipped]
        return list(dict.fromkeys(one for skipped in by_key for one in skipped.items()))

    def figures(self) -> list[dict[str, Any]]:
        """Of each path what is measured, for /metrics."""
        return [{"family": f"ipv{path.tunnel.family}", "up": path.tun is not None, "breaks": path.breaks,
                 "offloads": path.offloads(), "peers": peers.count(), "skipped_peers": len(peers.skipped),
                 **path.forwarder.status()} for path, peers in self._both()]

    def status(self) -> dict[str, Any]:
        """Offloads, FIB, loops, queues and counters; of two families by family, the counters with their sum."""
        told: dict[str, dict[str, Any]] = {
            f"ipv{path.tunnel.family}": {"offloads": path.offloads(), **path.forwarder.status()} for path in self.paths}
        if len(told) == 1:
            return next(iter(told.values()))
        rows = {name: [{"family": family, **row} for family, one in told.items() for row in one[name]]
                for name in ("offloads", "queues")}
        tables = {name: {family: one[name] for family, one in told.items()} for name in ("fib", "loops")}
        return {**rows, **tables, "counters": _summed({family: one["counters"] for family, one in told.items()})}

    def _both(self) -> Iterator[tuple[DataPath, PeerRoutes]]:
        return zip(self.paths, self._peers, strict=True)


def _tell_own(path: DataPath, peers: PeerRoutes, *, afresh: bool) -> None:
    path.tell_own(afresh=afresh)
    peers.retry()


def _summed(counters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counters of several families in the shape that those of one have, with the share of each beside the sum."""
    total: dict[str, Any] = {}
    for family, ways in counters.items():
        for way, told in ways.items():
            sums = total.setdefault(way, {"packets": 0, **{f"packets_{each}": 0 for each in counters},
                                          "outcomes": {}, "events": {}})
            sums["packets"] += told["packets"]
            sums[f"packets_{family}"] += told["packets"]
            for kind in ("outcomes", "events"):
                for name, counter in told[kind].items():
                    one = sums[kind].setdefault(name, {"count": 0, **dict.fromkeys(counters, 0),
                                                       "meaning": counter["meaning"]})
                    one["count"] += counter["count"]
                    one[family] += counter["count"]
    return total
