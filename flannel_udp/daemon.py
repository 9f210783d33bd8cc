"""The node's daemon: one owner thread that holds all state and takes work from one queue.

Subnet manager, link monitor, loops, control socket and signals only post values to that queue. What may wait for others
(the registry) runs as an errand (inbox.py), so that the owner is always there for packets' sake and for a stop.

    start   lock ─ configuration ─ external interface ─ sockets ─ lease ─ flannel's leftovers ─ device, loops
            ─ firewall ─ peers ─ subnet.env ─ control
    stop    the same backwards; subnet.env and the lease stay, as with flannel, for the next start
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from flannel_udp import control, logs, notify
from flannel_udp.backend import backend_of, vtep
from flannel_udp.backend.carrier import Carrier
from flannel_udp.backend.path import LoopEnded
from flannel_udp.backend.routes import KernelRoutes
from flannel_udp.condition import Condition
from flannel_udp.errors import ConfigError, ControlError, Fault, FlannelUdpError, NoConfig, RegistryUnavailable
from flannel_udp.host import Host
from flannel_udp.inbox import Answer, Inbox, Question, Stop, Stopped
from flannel_udp.instance import sole_instance
from flannel_udp.lease import LeaseAttrs
from flannel_udp.link import LinkEvent
from flannel_udp.netlink import LinkMonitor, Links
from flannel_udp.registry import open_registry
from flannel_udp.status import Problems, status
from flannel_udp.subnet import (
    ConfigChanged,
    OwnLeaseChanged,
    OwnLeaseLost,
    OwnLeaseRenewed,
    PeersChanged,
    PeersReset,
    SubnetEvent,
    SubnetManager,
    Trouble,
)
from flannel_udp.subnet.leased import LeasedSubnetManager
from flannel_udp.subnet_env import SubnetEnv, kept_env, known_before, write_subnet_env
from flannel_udp.underlay import ExternalInterface, find_external_interface, follow_external_interface

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flannel_udp.backend import Backend
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions

_log = logs.get("daemon")
R = TypeVar("R")

# Our choices, in seconds: how often the data plane is asked what the log should say; how often the start asks for what
# the registry does not give yet (flannel's); between tries to get a lost lease back, at first and at most; how long the
# first peers are waited for; how long a question over the control socket may wait for the owner.
TICK, START_RETRY, LEASE_RETRY_MIN, LEASE_RETRY_MAX, FIRST_PEERS, PATIENCE = 1.0, 1.0, 0.5, 30.0, 5.0, 3.0

# Our choice, in seconds: how often the device is looked at without an event, should one have been missed.
ASSURE = 5.0

_Event: TypeAlias = LoopEnded | LinkEvent | SubnetEvent


class Daemon:
    """One node. run() is the owner thread's whole life; stop() may be called from anywhere, signal handlers too."""

    def __init__(self, options: NodeOptions, manager: SubnetManager) -> None:
        self._options = options
        self._manager = manager
        self._inbox: Inbox[_Event] = Inbox(self._reply)
        self._stack = ExitStack()
        self._acquiring: int | None = None
        self._acquire_at: float | None = None
        self._updating: int | None = None
        self._update_due = False
        self._links_moved = False
        self._leaving = False
        self._acquire_delay = LEASE_RETRY_MIN
        self._started_at = time.time()
        self._peers_known = False
        self._assure_at = 0.0
        self._problems = Problems()
        self._condition = Condition(manager, self._problems)
        self._supervisor = notify.Supervisor()
        self._config: NetworkConfig
        self._links: Links
        self._external: ExternalInterface
        self._carrier: Carrier
        self._host: Host

    def run(self) -> int:
        """Start, work until stop(), take everything down; the exit status."""
        with self._stack:
            try:
                self._start()
            except Stopped:
                _log.info("stopped", during="start")
                return 0
            except FlannelUdpError as error:
                _log.error("cannot start", reason=error)
                return 1
            self._work()
            self._supervisor.stopping()
            self._leaving = self._options.release_on_exit
            if self._leaving:
                self._carrier.routes.remove()
            _log.info("stopping")
        _log.info("stopped")
        return 0

    def stop(self) -> None:
        """Ask for the end."""
        self._inbox.post(Stop())

    # -- start: in this order, and taken down by the stack in the other -----------------------------------------------

    def _start(self) -> None:
        self._stack.callback(self._manager.close)
        self._stack.enter_context(sole_instance(self._options))
        self._stack.callback(self._release)  # under the lock: the next daemon here would have the same lease
        self._open_probes()
        self._config = self._fetch_config()
        self._make_backend = backend_of(self._config)
        self._links = self._stack.enter_context(Links())
        monitor = LinkMonitor(self._inbox.post)
        self._stack.callback(monitor.close)
        self._families = {"ipv4": self._config.enable_ipv4, "ipv6": self._config.enable_ipv6}
        self._external = find_external_interface(self._options, self._links, **self._families)
        _log.info("external interface", **_told(self._external))
        self._host = Host(self._options, self._config, self._links, self._inbox, self._problems)
        self._host.check()
        if vtep.missing(self._config, self._options):  # made anew they would be strangers' to peers
            known_by = LeaseAttrs(self._external.public_address, self._external.public_address6)
            vtep.adopt(self._config, self._options, self._insist(
                "this node's lease", (RegistryUnavailable,), self._manager.standing, known_by))
        backend = self._make_backend(self._config, self._external, self._options, self._links)
        routes = KernelRoutes(backend, self._links, self._problems.note, self._host.networks, self._host.earlier)
        self._carrier = Carrier(backend, self._links, self._inbox.post, routes)
        self._condition.opened(self._carrier)
        self._stack.callback(self._carrier.close)
        self._stack.callback(self._host.close)
        # Flannel's device holds the port, and passes packets, until the lease is held.
        self._carrier.prepare(sockets=not self._host.replaces)
        lease = self._insist("a lease", (RegistryUnavailable,), self._manager.acquire, backend.attrs())
        _log.info("lease acquired", lease=lease.key)
        self._host.take_over()
        self._carrier.open(lease)
        self._host.start(lease)
        for line in self._carrier.warnings():
            _log.warning(line)
        self._manager.events(self._inbox.post)
        self._await_peers()
        self._write_subnet_env()
        self._serve()
        self._tell_ready()

    def _open_probes(self) -> None:
        """Serve what probes and Prometheus ask for, from before the first thing that may have to be waited for."""
        if not self._options.healthz_port:
            return
        from flannel_udp import probes  # only now: what it imports costs memory, and time at the start

        self._stack.callback(probes.open_probes(self._options, self._ask).close)

    def _fetch_config(self) -> NetworkConfig:
        """The network configuration, waited for as long as it takes."""
        despite = (NoConfig, RegistryUnavailable, ConfigError)
        return self._insist("the network configuration", despite, self._manager.config)

    def _insist(self, what: str, despite: tuple[type[FlannelUdpError], ...], call: Callable[..., R],
                *args: object) -> R:
        """Call again and again despite these errors; each cause is told once."""
        told = ""
        while True:
            try:
                return self._inbox.wait(call, *args)
            except despite as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning(f"waiting for {what}", reason=error)
                    self._condition.awaited = f"waiting for {what}: {error}"
                    self._supervisor.status(self._condition.line())
                self._inbox.pause(START_RETRY)

    def _await_peers(self) -> None:
        """Route to the peers that are there before others are told that this node is ready."""
        deadline = time.monotonic() + FIRST_PEERS
        while not self._peers_known and time.monotonic() < deadline:
            self._handle_all(self._inbox.take(deadline))
            self._carrier.publish()
        if not self._peers_known:
            _log.warning("no word of peers yet: starting without")

    def _serve(self) -> None:
        path = control.socket_path(self._options.run_dir)
        self._stack.callback(control.serve(path, self._ask).close)
        # Questions that wait when the end comes must not hold it up.
        self._stack.callback(self._inbox.close)

    def _release(self) -> None:
        """At a stop for good, when no packet passes any more: let others have the subnet."""
        if not self._leaving:
            return
        try:
            self._manager.release()
        except FlannelUdpError as error:
            _log.warning("lease not released: it ends by itself", reason=error)
        else:
            _log.info("lease released")

    def _tell_ready(self) -> None:
        self._condition.awaited = ""
        self._supervisor.status(self._condition.line())
        self._supervisor.ready()
        carrier = self._carrier
        assert carrier.lease
        _log.info("ready", subnet=",".join(map(str, carrier.lease.subnets)),
                  device=",".join(device["name"] for device in carrier.devices()) or "none", mtu=carrier.backend.mtu,
                  peers=carrier.peer_count(), subnet_file=self._options.subnet_file)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Take events until a stop comes."""
        tick = time.monotonic()
        try:
            while True:
                self._handle_all(self._inbox.take(min(tick, self._carrier.retry_at or tick)))
                self._carrier.mend()
                self._carrier.publish()
                if time.monotonic() >= tick:
                    self._tick()
                    tick = time.monotonic() + TICK
        except Stopped:
            return

    def _handle_all(self, batch: list[_Event | Answer | Question]) -> None:
        """Take a batch: one by one, but the events of links together, which come in swarms and say only "look"."""
        for event in batch:
            if not isinstance(event, LinkEvent):
                self._handle(event)
        if links := [event for event in batch if isinstance(event, LinkEvent)]:
            self._links_changed(links)

    def _handle(self, event: _Event | Answer | Question) -> None:
        match event:
            case Question():
                event.reply(self._reply(event.request))
            case PeersReset() | PeersChanged():
                self._change_peers(event)
            case LoopEnded():
                self._carrier.loop_ended(event)
            case OwnLeaseLost(reason=reason):
                self._condition.lease_lost = reason
                _log.warning("lease lost; packets pass as before while it is taken again", reason=reason)
                self._acquire()
            case Answer() if event.errand == self._acquiring:
                self._acquired(event)
            case Answer() if event.errand == self._updating:
                self._updated(event)
            case Answer():
                self._host.answered(event)
            case OwnLeaseChanged(lease=lease):
                self._hold(lease)
            case OwnLeaseRenewed(lease=lease) if self._holds(lease):
                self._carrier.renewed(lease)
            case ConfigChanged():
                self._config_changed(event)
            case Trouble(cause="registry-recovered" as cause, detail=detail):
                _log.info(detail, cause=cause)
                if self._acquire_at:
                    self._acquire()  # not when the delay ends that grew while it was away
            case Trouble(cause=cause, detail=detail):
                _log.warning(detail, cause=cause)
            case Fault(thread=thread, error=error):
                _log.error("a part of this program broke down", thread=thread, reason=repr(error))
                raise error

    def _change_peers(self, event: PeersReset | PeersChanged) -> None:
        if isinstance(event, PeersReset):
            self._carrier.reset(event.leases)
            self._peers_known = True
        else:
            self._carrier.change(event.put, event.deleted)
        self._host.peers_known(event.leases if isinstance(event, PeersReset) else event.put)
        # A subnet that changed hands may have become ours before it ceased theirs.
        self._carrier.tell_own(afresh=False)

    def _links_changed(self, events: list[LinkEvent]) -> None:
        self._carrier.links_changed(events)
        self._host.links_changed(events)
        self._note_rival()
        if any(event.kind in ("address", "address gone", "lost") for event in events):
            self._carrier.tell_own(afresh=True)
        self._links_moved = True

    def _note_rival(self) -> None:
        """Say so when another link has the route to the overlay network, and when ours is back."""
        self._problems.note("route", self._carrier.rival())

    def _follow_external(self) -> None:
        """Go over to another underlay interface, address or MTU where the choice has become another one.

        Asked for once a tick, so that who takes an address away to give another has time for it.
        """
        self._links_moved = False
        before = self._external
        fresh = follow_external_interface(before, self._options, self._links, **self._families)
        here = self._carrier.addresses
        gone = " and ".join(str(address) for address in fresh.addresses() if address not in here)
        self._problems.note("external", gone and f"the underlay address {gone} is no longer on this host, and there is "
                            "no other to choose: give it one")
        if fresh == before:
            return
        try:
            backend = self._make_backend(self._config, fresh, self._options, self._links)
        except FlannelUdpError as error:
            self._problems.note("external", f"{error}; the underlay stays {_short(before)}")
            return
        self._external = fresh
        _log.warning("external interface changed", **_told(fresh), before=_short(before))
        moved = ((4, fresh.address != before.address), (6, fresh.address6 != before.address6))
        self._go_over(backend, {family for family, is_another in moved if is_another})

    def _go_over(self, backend: Backend, moved: set[int]) -> None:
        """Take another underlay: data paths first, then what peers are told."""
        told = (self._carrier.backend.attrs(), self._carrier.backend.mtu)
        self._carrier.rebase(backend, moved)
        if told[1] != backend.mtu:
            self._write_subnet_env()
        if told[0] != backend.attrs():
            self._update_due = True
            self._update()

    def _update(self) -> None:
        """Tell peers where this node is now, unless the lease is being written just now; then afterwards."""
        if self._update_due and self._updating is None and self._acquiring is None and not self._acquire_at:
            self._update_due = False
            self._updating = self._inbox.send(self._manager.update, self._carrier.backend.attrs())

    def _updated(self, answer: Answer) -> None:
        self._updating = None
        if answer.error is None:
            self._problems.note("update", "")
            if self._holds(answer.result):
                self._carrier.renewed(answer.result)
            attrs = answer.result.attrs
            public = [str(address) for address in (attrs.public_ip, attrs.public_ipv6) if address]
            _log.info("lease updated", lease=answer.result.key, public=",".join(public))
        elif isinstance(answer.error, FlannelUdpError):
            self._problems.note("update", f"peers do not know this node's new address yet: {answer.error}")
            self._update_due = True  # with the next tick
        else:
            raise answer.error

    def _acquire(self) -> None:
        self._acquire_at = None
        self._acquiring = self._inbox.send(self._manager.acquire, self._carrier.backend.attrs())

    def _acquired(self, answer: Answer) -> None:
        """Go on with the lease that was taken again, or try again later."""
        self._acquiring = None
        if answer.error:
            if not isinstance(answer.error, FlannelUdpError):
                raise answer.error
            self._problems.note("lease", f"no lease: {answer.error}")
            self._acquire_at = time.monotonic() + self._acquire_delay
            self._acquire_delay = min(2 * self._acquire_delay, LEASE_RETRY_MAX)
            return
        self._problems.note("lease", "")
        self._update_due = answer.result.attrs != self._carrier.backend.attrs()  # the address changed meanwhile
        if not self._update_due:
            self._problems.note("update", "")
        self._acquire_delay = LEASE_RETRY_MIN
        self._hold(answer.result)

    def _hold(self, lease: Lease) -> None:
        """Use this lease from now on, the same as before or another."""
        self._condition.lease_lost = ""
        before = self._carrier.lease
        if self._holds(lease):
            self._carrier.renewed(lease)
            _log.info("lease is held as before", lease=lease.key)
            return
        _log.warning("lease is another: pods on the old subnet are cut off until they are made anew",
                     before=before and before.key, now=lease.key)
        self._carrier.move(lease)
        self._host.move(lease)
        self._write_subnet_env()

    def _holds(self, lease: Lease) -> bool:
        """Whether it is the one in use, as it stands now."""
        return self._carrier.lease is not None and self._carrier.lease.key == lease.key

    def _config_changed(self, event: ConfigChanged) -> None:
        if event.config == self._config:
            self._condition.config = "current"
            self._problems.note("config", "")
            return
        self._condition.config = "changed" if event.config else "invalid"
        what = event.problem or "the network configuration changed"
        self._problems.note("config", f"{what}; this node keeps the old one until it is restarted")

    def _tick(self) -> None:
        for notice in self._carrier.notices():
            detail = {"detail": notice.detail} if notice.detail else {}
            _log.warning(notice.event, cause=notice.cause, reason=notice.cause, count=notice.count,
                         meaning=notice.meaning, **detail)
        if time.monotonic() >= self._assure_at:
            self._assure_at = time.monotonic() + ASSURE
            self._carrier.assure()
            self._note_rival()
        if self._links_moved:
            self._follow_external()
        self._update()
        self._host.tick()
        self._carrier.routes.tick()
        if self._problems.of("subnet file"):
            self._write_subnet_env()
        if self._acquire_at and time.monotonic() >= self._acquire_at:
            self._acquire()
        self._supervisor.status(self._condition.line())
        self._supervisor.feed()

    def _write_subnet_env(self) -> None:
        """Tell the CNI plugin; and the next start, whose subnet file may be gone with a reboot."""
        lease, config = self._carrier.lease, self._config
        assert lease is not None
        env = SubnetEnv(config.network, lease.subnet, config.ipv6_network, lease.ipv6_subnet,
                        self._carrier.backend.mtu, self._options.ip_masq)
        for path in (self._options.subnet_file, kept_env(self._options)):
            try:
                write_subnet_env(path, env)
            except OSError as error:
                self._problems.note("subnet file", f"{path} cannot be written: {error.strerror}; tried each second")
                return
        self._problems.note("subnet file", "")

    # -- questions over the control socket ----------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any]) -> Mapping[str, Any]:
        """In the thread of the control socket or of a health server's client."""
        return self._inbox.ask(request, PATIENCE)

    def _reply(self, request: dict[str, Any]) -> dict[str, Any] | Exception:
        answers = {"health": self._condition.health, "metrics": self._condition.figures, "status": self._status}
        answer = answers.get(str(request.get("command")))
        if answer is None:
            return ControlError(f"this daemon knows no command {request.get('command')!r}, only {', '.join(answers)}")
        try:
            return answer()
        except Exception as error:  # whatever it is, the control socket tells the asker and the log; packets go on
            return error

    def _status(self) -> dict[str, Any]:
        return {**status(self._started_at, self._external, self._carrier, self._problems),
                "firewall": self._host.status()}


def _told(external: ExternalInterface) -> dict[str, str]:
    """For the log; a family that is not enabled has no addresses."""
    told = {"name": external.name, "address": external.address, "public": external.public_address,
            "address6": external.address6, "public6": external.public_address6, "mtu": external.mtu,
            "reason": external.reason}
    return {name: str(value) for name, value in told.items() if value is not None}


def _short(external: ExternalInterface) -> str:
    return f"{' and '.join(map(str, external.addresses()))} on {external.name}"


def run(options: NodeOptions) -> int:
    """`flannel-udp run`: the daemon over the registry of the options, until a signal; the exit status.

    A second signal ends the process at once.
    """
    logs.configure(options.verbosity)
    previous = known_before(options)
    manager = LeasedSubnetManager(open_registry(options.registry, etcd=options.etcd), ttl=options.lease_ttl,
                                  renew_margin=options.renew_margin, previous=(previous.subnet, previous.ipv6_subnet))
    daemon = Daemon(options, manager)

    def on_signal(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return daemon.run()
