"""Routes of the kernel's to peers that are reached without a tunnel: all of host-gw's, and those of DirectRouting.

    leases ─> backend.direct() ─> wanted ─> the kernel's main table, protocol 82, a gateway
                    ^ asked again when links or the host's routes change, some leases a tick
The kernel is held to what is wanted: at the start what an earlier run left is kept or removed, later what somebody
deletes or changes comes back. The routes stay when the daemon ends, as flannel's, for the pods go on. A peer with a
tunnel is in the data plane all the same, and a route of the kernel's wins because its prefix is longer than the
tunnel's. All of it belongs to the owner thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from flannel_udp import logs
from flannel_udp.backend.peers import DirectRoute
from flannel_udp.errors import LeaseError, NetlinkError
from flannel_udp.link import within
from flannel_udp.netlink import ROUTE_PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flannel_udp.backend import Backend
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, LinkEvent, Network, Route

_log = logs.get("routes")

# Our choices: seconds between two looks at the kernel's table without a cause; of the owner's time no more than one
# part in so many goes into looks, which take long with thousands of routes; leases asked about in one tick.
LOOK, SPARED, CHUNK = 5.0, 20.0, 100


class RouteLinks(Protocol):
    """What this file asks of netlink.Links."""

    def our_routes(self, family: int = 4) -> list[Route]: ...  # noqa: D102
    def replace_route(self, network: Network, index: int, gateway: Address | None = None) -> None: ...  # noqa: D102
    def delete_route(self, network: Network, index: int, gateway: Address | None = None,  # noqa: D102
                     protocol: int | None = None) -> bool: ...


class KernelRoutes:
    """The routes of one backend; `networks` are the overlay's, `earlier` those of the run before."""

    def __init__(self, backend: Backend, links: RouteLinks, note: Callable[[str, str], None],
                 networks: Iterable[Network], earlier: Iterable[Network] = ()) -> None:
        self._backend = backend
        self._links = links
        self._note = note
        self._networks = tuple(networks)
        self._swept = {*self._networks, *earlier}
        self._leases: dict[str, Lease] = {}
        self._direct: dict[str, tuple[DirectRoute, ...]] = {}
        self._wanted: dict[Network, DirectRoute] = {}
        self._asked_again: list[str] = []
        self._known = False
        self._look_at = 0.0
        self._trouble = ""
        self.skipped: dict[str, str] = {}
        """By the lease's key: why a peer, or a family of it, has no route, where there is no tunnel to it either."""

    def use(self, backend: Backend) -> None:
        """Take the same kind of backend on another underlay."""
        self._backend = backend
        self._ask_again()

    def reset(self, leases: Iterable[Lease]) -> None:
        """These are all peers that there are; what an earlier run left for others goes."""
        fresh = {lease.key: lease for lease in leases}
        self.change(fresh.values(), [lease for key, lease in self._leases.items() if key not in fresh])
        self._known = True
        self.assure()

    def change(self, put: Iterable[Lease], deleted: Sequence[Lease]) -> None:
        """Peers that came or changed, and peers that went."""
        for lease in deleted:
            self._leases.pop(lease.key, None)
            self.skipped.pop(lease.key, None)
            self._use(lease.key, ())
        for lease in put:
            self._leases[lease.key] = lease
            self._ask(lease)

    def links_changed(self, events: Iterable[LinkEvent]) -> None:
        """Look at the table where a route of ours or its link changed; where another did, ask about all peers anew."""
        indexes = {route.index for route in self._wanted.values()}
        for event in events:
            if event.kind == "route" and event.network and any(within(event.network, one) for one in self._networks):
                if event.network in self._wanted:
                    self._look_at = 0.0
            elif event.kind in ("route", "lost") or event.index in indexes:
                self._ask_again()

    def tick(self) -> None:
        """Go on asking, and look at the table when it is time."""
        chunk, self._asked_again = self._asked_again[:CHUNK], self._asked_again[CHUNK:]
        for key in chunk:
            if key in self._leases:
                self._ask(self._leases[key])
        if time.monotonic() >= self._look_at:
            self.assure()

    def assure(self) -> None:
        """Make the kernel's table what it should be."""
        began = time.monotonic()
        self._look_at = began + LOOK
        if not self._known:
            return  # what an earlier run left may be wanted yet
        self._trouble = ""
        for family in {network.version for network in self._swept}:
            try:
                self._reconcile({route.network: route for route in self._standing(family) if route.network}, family)
            except NetlinkError as error:
                self._trouble = str(error)
        self._note("routes", self._trouble)
        self._look_at = max(self._look_at, began + SPARED * (time.monotonic() - began))

    def remove(self) -> None:
        """Take all routes away: this node gives its subnet back."""
        for key in list(self._direct):
            self._use(key, ())

    def count(self) -> int:
        """How many peers are reached without a tunnel."""
        return len(self._direct)

    def figures(self) -> dict[str, int | str]:
        """For /metrics, like a path's."""
        return {"family": "none", "peers": self.count(), "skipped_peers": len(self.skipped)}

    def told(self) -> list[dict[str, str]]:
        """The routes, for the status."""
        return [{"subnet": str(route.subnet), "gateway": str(route.gateway)} for route in self._wanted.values()]

    def _ask_again(self) -> None:
        waiting = dict.fromkeys(self._asked_again)  # they come first, or the last would wait as long as events come
        self._asked_again = list(waiting | dict.fromkeys(self._leases))
        self._look_at = 0.0

    def _ask(self, lease: Lease) -> None:
        """See whether a peer is reached directly now, and set or delete its routes."""
        routes, reason = [], ""
        try:
            for route in self._backend.direct(lease):
                self._check(route)
                routes.append(route)
        except LeaseError as error:
            reason = str(error)
        except NetlinkError as error:
            self._failed(error)
            if lease.key not in self._asked_again:
                self._asked_again.append(lease.key)
            return
        self._use(lease.key, tuple(routes))
        before = self.skipped.pop(lease.key, "")
        if reason:
            self.skipped[lease.key] = reason
            if reason != before:
                _log.warning("peer skipped", lease=lease.key, reason=reason)

    def _check(self, route: DirectRoute) -> None:
        """Let no lease lead packets of other networks anywhere, whatever it says."""
        if not any(within(route.subnet, network) for network in self._networks):
            raise LeaseError(f"subnet {route.subnet} lies outside the network")

    def _use(self, key: str, routes: tuple[DirectRoute, ...]) -> None:
        """Have these routes for a lease, and no longer the ones that it had."""
        before = self._direct.pop(key, ())
        if routes:
            self._direct[key] = routes
        for route in routes:
            if self._wanted.get(route.subnet) != route:
                self._wanted[route.subnet] = route
                if self._known:  # at first assure() sets what an earlier run did not leave
                    self._guarded(self._set, route)
        kept = {route.subnet for route in routes}
        for route in before:
            if route.subnet not in kept and self._wanted.get(route.subnet) == route:
                del self._wanted[route.subnet]
                self._guarded(self._delete, route)

    def _guarded(self, deed: Callable[[DirectRoute], None], route: DirectRoute) -> None:
        try:
            deed(route)
        except NetlinkError as error:
            self._failed(error)

    def _failed(self, error: NetlinkError) -> None:
        """Say so; the next looks try again."""
        self._trouble = str(error)
        self._note("routes", self._trouble)

    def _set(self, route: DirectRoute) -> None:
        self._links.replace_route(route.subnet, route.index, route.gateway)
        _log.info("direct route set", subnet=route.subnet, gateway=route.gateway)

    def _delete(self, route: DirectRoute) -> None:
        if self._links.delete_route(route.subnet, route.index, route.gateway, ROUTE_PROTOCOL):
            _log.info("direct route deleted", subnet=route.subnet, gateway=route.gateway)

    def _standing(self, family: int) -> Iterator[Route]:
        """Routes of this kind in the kernel's table."""
        for route in self._links.our_routes(family):
            if route.gateway and route.network and any(within(route.network, one) for one in self._swept):
                yield route

    def _reconcile(self, standing: dict[Network, Route], family: int) -> None:
        for subnet, route in standing.items():
            if subnet not in self._wanted and route.index and route.gateway:
                self._guarded(self._delete, DirectRoute(subnet, route.gateway, route.index))
        for subnet, wanted in self._wanted.items():
            found = standing.get(subnet)
            if subnet.version == family and (found is None or (found.gateway, found.index) !=
                                             (wanted.gateway, wanted.index)):
                self._guarded(self._set, wanted)
