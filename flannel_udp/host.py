"""What the daemon sees to on the host around its data path: firewall rules, blackhole routes, what flannel left.

    check()  ─ take_over() ─ start() ─> tick(), answered(), links_changed(), move() ─> close()
All of it belongs to the owner thread. What runs programs (nft, iptables) goes as an errand, one at a time. The rules
stay when the daemon ends, as flannel's, for the pods go on; the blackhole route goes.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from flannel_udp import logs, takeover
from flannel_udp.backend import vtep
from flannel_udp.config import parse_vxlan_config
from flannel_udp.errors import FirewallError, FlannelUdpError, NetlinkError, TakeoverError
from flannel_udp.firewall import Firewall, Overlay, Rules, bridge_warning
from flannel_udp.firewall.flannel import Leftover, leftovers
from flannel_udp.link import within
from flannel_udp.subnet_env import known_before

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flannel_udp.config import NetworkConfig
    from flannel_udp.inbox import Answer, Inbox
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, LinkEvent, Network
    from flannel_udp.netlink import Links
    from flannel_udp.options import NodeOptions
    from flannel_udp.status import Problems

_log = logs.get("host")


class Host:
    """The host of one daemon."""

    def __init__(self, options: NodeOptions, config: NetworkConfig, links: Links, inbox: Inbox[Any],
                 problems: Problems) -> None:
        self._options = options
        self._links = links
        self._inbox = inbox
        self._problems = problems
        self.networks = tuple(network for network in (config.network, config.ipv6_network) if network)
        """The overlay's; and `earlier`, those of this daemon's last run."""
        before = known_before(options)
        self.earlier = tuple(network for network in (before.network, before.ipv6_network) if network)
        self._vteps = vtep.devices(config).values()
        self._vtep_port = parse_vxlan_config(config).port if self._vteps else 0
        self.replaces: list[str] = []
        """Devices of flannel's that have the names or the port of ours, until take_over()."""
        self._firewall = Firewall(options.run_dir)
        self._lease: Lease | None = None
        self._looking: int | None = None
        self._look_at = 0.0
        self._gateways: dict[Address, list[Leftover]] = {}

    def check(self) -> None:
        """Raise what would hinder the rest, before there is a lease."""
        self._firewall.check(self._rules())
        self._refuse_flanneld()
        if not self._vteps:
            return
        found = takeover.in_place_of(self._vteps, self._vtep_port, self.networks, self._links)
        self.replaces = [link.name for link in found]
        if found and self._options.no_takeover:
            raise TakeoverError(f"flannel's vxlan device {found[0].name} holds UDP port {found[0].port} and the way to "
                                f"this network: remove it (ip link del {found[0].name}), or start without "
                                "--no-takeover")
        takeover.adopt_macs(self._vteps, self._options, self._links)

    def _refuse_flanneld(self) -> None:
        process = takeover.running()
        if process is None:
            return
        signs = [*(f"device {name}" for name in takeover.tunnels(self.networks, self._links)),
                 *(one.what for one in self._leftovers())]
        if signs:
            raise TakeoverError(f"flanneld (process {process}) runs on this host, for the same network ({signs[0]}): "
                                "stop it first (systemctl stop flanneld, or remove its pod), then start this again")

    def take_over(self) -> None:
        """Remove what a stopped flannel left and what would act on our packets."""
        self._gateways = takeover.gateway_routes(self.networks, self._links)
        self._remove(self._leftovers())
        self.replaces = []

    def start(self, lease: Lease) -> None:
        """Set all up for this lease; FirewallError if masquerading was asked for and cannot be had."""
        self._lease = lease
        self._reconcile()
        try:
            self._inbox.wait(self._firewall.assure, self._rules())
        except FirewallError as error:
            if self._options.ip_masq:
                raise
            self._problems.note("firewall", f"forward rules cannot be set: {error}")
        self._note_state()
        for network in self.networks:
            if line := bridge_warning(self._firewall.state, network.version):
                _log.warning(line)
        self._look_at = time.monotonic() + self._options.iptables_resync

    def peers_known(self, leases: Iterable[Lease]) -> None:
        """Remove the routes that flannel made by way of these nodes; before they are known, such may be anybody's."""
        known = self._gateways.keys() & {address for lease in leases
                                         for address in (lease.attrs.public_ip, lease.attrs.public_ipv6)}
        if not known:
            return
        left = {address: self._gateways.pop(address) for address in known}
        if self._options.no_takeover:  # what is left is told: not what direct routes of ours have replaced by now
            with contextlib.suppress(NetlinkError):
                left = takeover.gateway_routes(self.networks, self._links)
        for address in known:
            self._remove(left.get(address, []))

    def move(self, lease: Lease) -> None:
        """Go over to another lease."""
        self._lease = lease
        try:
            self._reconcile()
        except NetlinkError as error:
            self._problems.note("blackhole", str(error))
        self._look_at = 0.0

    def tick(self) -> None:
        """Look after everything when it is time."""
        if self._looking is None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._options.iptables_resync
            self._looking = self._inbox.send(self._firewall.assure, self._rules())
            self._keep_blackholes()

    def answered(self, answer: Answer) -> bool:
        """Take the answer to a look at the firewall; False if it is somebody else's."""
        if answer.errand != self._looking:
            return False
        self._looking = None
        if answer.error and not isinstance(answer.error, FirewallError):
            raise answer.error
        self._problems.note("firewall", f"firewall rules cannot be set: {answer.error}" if answer.error else "")
        self._note_state()
        return True

    def links_changed(self, events: Iterable[LinkEvent]) -> None:
        """Put back a blackhole route that somebody took."""
        wanted = self._blackholes()
        if any(event.network in wanted or event.kind == "lost" for event in events):
            self._keep_blackholes()

    def close(self) -> None:
        """Take the blackhole routes away; rules stay."""
        for subnet in self._blackholes():
            self._guarded_delete(subnet)

    def status(self) -> dict[str, Any]:
        """For the status."""
        state = self._firewall.state
        return {"engine": state.engine, "place": state.place, "reason": state.reason,
                "masquerade": self._options.ip_masq, "forward_rules": self._options.iptables_forward_rules,
                "blackholes": [str(subnet) for subnet in self._blackholes()]}

    def _rules(self) -> Rules:
        lease, said = self._lease, self._options
        overlays = tuple(Overlay(network, subnet) for network in self.networks
                         for subnet in (lease.subnets if lease else ()) if within(subnet, network))
        return Rules(overlays, said.ip_masq, said.iptables_forward_rules, not said.ip_masq_fully_random_disable)

    def _note_state(self) -> None:
        self._problems.note("forwarding", "; ".join(self._firewall.state.obstacles))

    def _leftovers(self) -> list[Leftover]:
        rules = self._inbox.wait(leftovers, self.networks, self._firewall.iptables)
        return [*takeover.devices(self.networks, self._links, self._vteps), *rules]

    def _remove(self, left: list[Leftover]) -> None:
        for one in left:
            if self._options.no_takeover:
                self._problems.note(f"takeover {one.what}", f"left by flannel, and acting on packets of this network: "
                                    f"{one.what}: remove it, or start without --no-takeover")
                continue
            try:
                one.remove()
            except FlannelUdpError as error:
                self._problems.note(f"takeover {one.what}", f"left by flannel, and cannot be removed: {error}")
            else:
                _log.info("removed what flannel left", what=one.what)

    # -- blackhole routes ---------------------------------------------------------------------------------------------

    def _blackholes(self) -> list[Network]:
        if not self._options.ip_blackhole_route or self._lease is None:
            return []
        return list(self._lease.subnets)

    def _keep_blackholes(self) -> None:
        try:
            done = [subnet for subnet in self._blackholes() if self._links.add_blackhole(subnet)]
        except NetlinkError as error:
            self._problems.note("blackhole", str(error))
            return
        self._problems.note("blackhole", "")
        for subnet in done:
            _log.info("blackhole route set", subnet=subnet)

    def _reconcile(self) -> None:
        """Of our routes, those of this network and of the last run's, keep what is wanted."""
        wanted = self._blackholes()
        for network in {*self.networks, *self.earlier}:
            for route in self._links.our_routes(network.version):
                if route.blackhole and route.network and route.network not in wanted and \
                        within(route.network, network):
                    self._guarded_delete(route.network)
                    _log.info("blackhole route of an earlier time removed", subnet=route.network)
        self._keep_blackholes()

    def _guarded_delete(self, subnet: Network) -> None:
        try:
            self._links.delete_blackhole(subnet)
        except NetlinkError as error:
            _log.warning(str(error))
