"""routes: which peers' subnets the kernel routes to, held to that through whatever others do to the table."""

import io
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from flannel_udp.backend import routes as module
from flannel_udp.backend.peers import DirectRoute
from flannel_udp.backend.routes import CHUNK, LOOK, SPARED, KernelRoutes
from flannel_udp.errors import LeaseError, NetlinkError
from flannel_udp.lease import Lease, LeaseAttrs
from flannel_udp.link import Address, LinkEvent, Network, Route
from flannel_udp.netlink import ROUTE_PROTOCOL
from flannel_udp.status import Problems

NETWORK = IPv4Network("10.5.0.0/16")


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Table:
    """The kernel's main table: routes of this program, in order."""

    def __init__(self) -> None:
        self.routes: dict[Network, Route] = {}
        self.refusal = ""
        self.replaced: list[str] = []
        self.dumps = 0
        self.slow: Clock | None = None
        """The clock that a look at the table takes a second of."""

    def our_routes(self, family: int = 4) -> list[Route]:
        self.dumps += 1
        if self.slow:
            self.slow.now += 1.0
        return [route for network, route in self.routes.items() if network.version == family]

    def replace_route(self, network: Network, index: int, gateway: Address | None = None) -> None:
        self.replaced.append(f"{network}")
        if self.refusal:
            raise NetlinkError(self.refusal)
        self.routes[network] = Route(network, index, gateway, protocol=ROUTE_PROTOCOL)

    def delete_route(self, network: Network, index: int, gateway: Address | None = None,
                     protocol: int | None = None) -> bool:
        assert protocol == ROUTE_PROTOCOL  # never another's
        return self.routes.pop(network, None) == Route(network, index, gateway, protocol=ROUTE_PROTOCOL)

    def told(self) -> dict[str, str]:
        return {str(network): f"{route.gateway}@{route.index}" for network, route in self.routes.items()}


class Backend:
    """Leads to every peer by its public address, but for those behind a router."""

    def __init__(self) -> None:
        self.index = 2
        self.behind: set[str] = set()
        self.strict = False
        self.trouble = ""
        self.asked = 0

    def direct(self, lease: Lease) -> Iterator[DirectRoute]:
        self.asked += 1
        if self.trouble:
            raise NetlinkError(self.trouble)
        assert lease.subnet
        assert lease.attrs.public_ip
        if str(lease.attrs.public_ip) not in self.behind:
            yield DirectRoute(lease.subnet, lease.attrs.public_ip, self.index)
        elif self.strict:
            raise LeaseError("is behind a router")
        if self.strict and lease.ipv6_subnet:
            raise LeaseError("its IPv6 address is behind a router")


class World:
    """What the tests move."""

    def __init__(self, earlier: tuple[Network, ...] = ()) -> None:
        self.table, self.backend, self.problems = Table(), Backend(), Problems()
        self.routes = KernelRoutes(self.backend, self.table, self.problems.note, [NETWORK], earlier)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def world(clock: Clock) -> World:
    del clock
    return World()


def lease(number: int, public_ip: str | None = None, subnet: str | None = None) -> Lease:
    attrs = LeaseAttrs(IPv4Address(public_ip or f"192.0.2.{number}"))
    return Lease(IPv4Network(subnet or f"10.5.{number}.0/24"), None, attrs, None, 1)


def test_peers_come_move_and_go(world: World) -> None:
    world.routes.reset([lease(2), lease(3)])
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2", "10.5.3.0/24": "192.0.2.3@2"}
    world.routes.change([lease(2, "192.0.2.9")], [lease(3)])
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.9@2"}
    assert world.routes.told() == [{"subnet": "10.5.2.0/24", "gateway": "192.0.2.9"}]
    world.routes.reset([lease(4)])
    assert world.table.told() == {"10.5.4.0/24": "192.0.2.4@2"}
    assert world.routes.count() == 1
    world.routes.remove()
    assert world.table.told() == {}


def test_a_peer_behind_a_router_has_none_and_is_skipped_without_a_tunnel(world: World, said: io.StringIO) -> None:
    world.backend.behind.add("192.0.2.3")
    world.routes.reset([lease(2), lease(3)])
    assert (world.table.told(), world.routes.skipped) == ({"10.5.2.0/24": "192.0.2.2@2"}, {})
    world.backend.strict = True
    for _ in range(3):
        world.routes.change([lease(3)], [])
    assert world.routes.skipped == {"10.5.3.0-24": "is behind a router"}
    assert said.getvalue().count("peer skipped") == 1
    world.routes.change([], [lease(3)])
    assert world.routes.skipped == {}


def test_of_a_peer_one_of_whose_families_has_no_way_the_other_has_its_route(world: World, said: io.StringIO) -> None:
    world.backend.strict = True
    dual = replace(lease(2), ipv6_subnet=IPv6Network("fd00:5:0:2::/64"))
    for _ in range(2):
        world.routes.reset([dual])
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2"}
    assert world.routes.skipped == {dual.key: "its IPv6 address is behind a router"}
    assert said.getvalue().count("peer skipped") == 1


def test_a_peer_that_moves_behind_a_router_and_back_is_followed(world: World) -> None:
    world.routes.reset([lease(2)])
    world.backend.behind.add("192.0.2.2")
    away = LinkEvent("route", 2, network=IPv4Network("192.0.2.0/24"))
    world.routes.links_changed([away])
    world.routes.tick()
    assert world.table.told() == {}
    world.backend.behind.clear()
    world.routes.links_changed([away])
    world.routes.tick()
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2"}


@pytest.mark.parametrize(("event", "asks"), [
    (LinkEvent("link", 2, "eth0"), True), (LinkEvent("address gone", 2), True), (LinkEvent("lost"), True),
    (LinkEvent("route", 3, network=None), True), (LinkEvent("route", 3, network=IPv4Network("198.51.100.0/24")), True),
    (LinkEvent("link", 7, "pod"), False), (LinkEvent("address", 7), False),
    (LinkEvent("route", 7, network=IPv4Network("10.5.1.0/24")), False),
])
def test_pods_that_come_and_go_make_nobody_ask(world: World, event: LinkEvent, asks: bool) -> None:
    world.routes.reset([lease(2)])
    world.backend.asked = 0
    world.routes.links_changed([event])
    world.routes.tick()
    assert bool(world.backend.asked) == asks


def test_many_peers_are_asked_about_in_several_ticks(world: World) -> None:
    leases = [lease(0, f"198.51.{one // 256}.{one % 256}", f"10.5.{one // 16}.{one % 16 * 16}/28")
              for one in range(CHUNK + 1)]
    world.routes.reset(leases)
    world.backend.asked = 0
    world.routes.links_changed([LinkEvent("lost")])
    world.routes.tick()
    assert world.backend.asked == CHUNK
    world.routes.links_changed([LinkEvent("lost")])
    world.backend.behind.add(str(leases[-1].attrs.public_ip))
    world.routes.tick()
    assert f"{leases[-1].subnet}" not in world.table.told()  # the one that was left comes first
    world.routes.change([], leases)
    before = world.backend.asked
    for _ in range(3):
        world.routes.tick()
    assert world.backend.asked == before


def test_what_is_taken_or_changed_comes_back(world: World, clock: Clock) -> None:
    world.routes.reset([lease(2), lease(3)])
    whole = world.table.told()
    del world.table.routes[ip_network("10.5.2.0/24")]
    world.routes.links_changed([LinkEvent("route", 2, network=IPv4Network("10.5.2.0/24"))])
    world.routes.tick()
    assert world.table.told().items() == whole.items()
    one = ip_network("10.5.3.0/24")
    world.table.routes[one] = replace(world.table.routes[one], gateway=ip_address("192.0.2.77"))
    world.routes.tick()
    assert world.table.told() != whole
    clock.now += LOOK
    world.routes.tick()
    assert world.table.told() == whole


def test_what_an_earlier_run_left_is_kept_or_removed_when_peers_are_known(clock: Clock) -> None:
    del clock
    world = World(earlier=(IPv4Network("10.6.0.0/16"),))
    for subnet, gateway in (("10.5.2.0/24", "192.0.2.2"), ("10.5.9.0/24", "192.0.2.9"), ("10.6.1.0/24", "192.0.2.1"),
                            ("10.7.1.0/24", "192.0.2.1"), ("10.5.0.0/16", None)):
        network = ip_network(subnet)
        hop = ip_address(gateway) if gateway else None
        world.table.routes[network] = Route(network, 2, hop, protocol=ROUTE_PROTOCOL)
    world.routes.tick()
    assert len(world.table.routes) == 5
    world.routes.reset([lease(2), lease(3)])
    assert world.table.replaced == ["10.5.3.0/24"]
    world.routes.change([], [lease(3)])
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2", "10.7.1.0/24": "192.0.2.1@2", "10.5.0.0/16": "None@2"}


def test_another_underlay_moves_the_routes(world: World) -> None:
    world.routes.reset([lease(2)])
    other = Backend()
    other.index = 7
    world.routes.use(other)  # type: ignore[arg-type]
    world.routes.tick()
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@7"}


def test_no_lease_leads_packets_of_other_networks_anywhere(world: World) -> None:
    world.routes.reset([lease(2, subnet="192.0.2.0/25"), lease(3, subnet="10.0.0.0/8"), lease(4)])
    assert world.table.told() == {"10.5.4.0/24": "192.0.2.4@2"}
    assert world.routes.skipped == {"192.0.2.0-25": "subnet 192.0.2.0/25 lies outside the network",
                                    "10.0.0.0-8": "subnet 10.0.0.0/8 lies outside the network"}


def test_a_lease_that_goes_takes_no_route_along_that_became_anothers(world: World) -> None:
    dual = replace(lease(2, "192.0.2.9"), ipv6_subnet=IPv6Network("fd00:5:0:2::/64"))
    world.routes.reset([lease(2), dual])
    world.routes.change([], [lease(2)])
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.9@2"}


def test_what_the_kernel_refuses_is_told_and_tried_again(world: World, clock: Clock) -> None:
    world.table.refusal = "cannot replace route: Network is unreachable"
    world.routes.reset([lease(2)])
    assert world.problems.of("routes") == world.table.refusal
    world.table.refusal = ""
    clock.now += LOOK
    world.routes.tick()
    assert world.problems.of("routes") is None
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2"}


def test_a_way_that_the_kernel_did_not_tell_is_asked_for_again(world: World, clock: Clock) -> None:
    world.backend.trouble = "cannot find the route to 192.0.2.2: No buffer space available"
    world.routes.reset([lease(2)])
    assert world.table.told() == {}
    world.backend.trouble = ""
    clock.now += LOOK
    world.routes.tick()
    assert world.table.told() == {"10.5.2.0/24": "192.0.2.2@2"}
    assert world.problems.of("routes") is None


def test_a_long_table_is_looked_at_less_often(world: World, clock: Clock) -> None:
    world.routes.reset([lease(2)])
    world.table.slow = clock
    clock.now += LOOK
    world.routes.tick()
    before = world.table.dumps
    clock.now += LOOK
    world.routes.tick()
    assert world.table.dumps == before
    clock.now += SPARED
    world.routes.tick()
    assert world.table.dumps == before + 1
