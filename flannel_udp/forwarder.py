"""The face of the data plane: own subnet, peers and routes in, packets forwarded, counters out.

One Forwarder per address family. It gives each leased subnet a slot (src/peer.pxd), keeps the private table in step
with the leases, and runs the two loops of each queue, a thread each or both in one. Each queue has a Worker, all on one
table; what they count is told as one. Only this file imports the compiled Worker and Builder. All methods are for the
owner thread alone.
"""

import contextlib
import errno
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import product
from pathlib import Path

from flannel_udp._dataplane import EVENTS, FIRST_PEER, OUTCOMES, OWN_SLOT, SOURCE_CHECKS, Builder, Worker
from flannel_udp.errors import ConfigError, LeaseError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DIRECTIONS = {"out": "tun_to_udp", "in": "udp_to_tun"}
LOOPS = {1: ("both_ways",), 2: tuple(DIRECTIONS.values())}  # by number of threads
# What the log should say of drops, since an operator can mend it; the rest speaks through the counters alone.
NOTICED = ("unknown_sender", "source_mismatch", "underlay_unreachable", "send_forbidden", "send_error", "tun_down")
# What the worker may give up, by its own names: the offloads that go with it, and what is done instead.
GIVEN_UP = {
    "udp_segment": (("udp_segment",), "the kernel refused a message of many datagrams: fewer go at once, or one"),
    "uso": (("tun_uso4", "tun_uso6"), "the TUN refused a UDP super-packet: its datagrams go one by one"),
}
# Our choice: seconds to wait for a slot when none is left; a loop passes at the end of its batch, in milliseconds.
GRACE = 1.0


@dataclass(frozen=True)
class Encapsulation:
    """What the data plane knows of a backend: bytes of the coat, hops counted at either end, bytes added in all."""

    coat_length: int
    ttl_step: int
    overhead: int
    expected: bytes = b""
    """The coat as it must stand before a packet for this node; of the source MAC only that it is not ours. Empty: any
    coat will do."""
    ecn: bool = False
    """Congestion marks pass between inner and outer header (RFC 6040)."""


@dataclass(frozen=True)
class Doors:
    """What the descriptors of a start can do; as it stands here, nothing beyond one bare packet per call."""

    vnet: bool = False
    """A vnet_hdr stands before each frame of the TUN."""
    uso: bool = False
    """The TUN takes UDP super-packets."""
    segment: bool = False
    """The socket takes messages that are to be cut into datagrams."""
    mtu: int = 0
    """Of the TUN; 0 where it is not known."""
    tap: bool = False
    """The device is a TAP, which gives and takes Ethernet frames."""


@dataclass(frozen=True)
class Queue:
    """The descriptors of one queue, non-blocking: of the TUN, of the underlay socket, and of one more socket, bound to
    the same address, that is asked for path MTUs. Flows leave by `sources`, each always by the same, if there are any.
    """

    tun: int
    udp: int
    path: int
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loops:
    """How the loops run: in how many threads a queue, on which CPUs (in turn; none named: any), and how patiently."""

    threads: int = 2
    cpus: tuple[int, ...] = ()
    busy_poll: int = 0
    """Microseconds to look for work before sleeping."""


@dataclass(frozen=True)
class PeerStatus:
    """One peer as seen from this node: its subnet, its underlay address, inner packets and bytes each way."""

    subnet: Network
    underlay: Address
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    last_heard: float | None
    """Unix time of the last packet from it, exact to a timer tick; None if there was none."""


@dataclass(frozen=True)
class Counters:
    """One direction: packets in, what became of each, and what happened besides."""

    packets: int
    outcomes: dict[str, int]
    events: dict[str, int]

    @property
    def law_holds(self) -> bool:
        """Packets in are the sum of outcomes; true whenever the traffic rests."""
        return self.packets == sum(self.outcomes.values())


@dataclass(frozen=True)
class Notice:
    """What the log should say: drops of one cause since the last time of asking, or what the loops do without."""

    cause: str
    count: int
    meaning: str
    detail: str
    event: str = "packets dropped"


@dataclass
class _Slot:
    number: int
    generation: int
    underlay: Address
    port: int


@dataclass
class _Running:
    """The threads of running loops, and how to stop them."""

    stop: int
    queues: int
    threads: list[threading.Thread] = field(default_factory=list)


class Forwarder:
    """Forward the packets of one overlay network; raises ConfigError if its FIB would be too large."""

    def __init__(
        self, network: Network, subnet_len: int, encapsulation: Encapsulation, source_check: str = "known",
        loops: Loops = Loops(),
    ) -> None:
        try:
            self._builder = Builder(network.network_address.packed, network.prefixlen, subnet_len)
        except ValueError as error:
            raise ConfigError(f"SubnetLen {subnet_len} in Network {network}: {error}") from None
        self._make_worker = partial(
            Worker,
            self._builder,
            coat_length=encapsulation.coat_length,
            ttl_step=encapsulation.ttl_step,
            overhead=encapsulation.overhead,
            source_check=SOURCE_CHECKS[source_check],
            expected=encapsulation.expected,
            ecn=encapsulation.ecn,
        )
        self._workers = [self._make_worker()]  # by queue
        self._loops = loops
        self._network = network
        self._own: Network | None = None
        self._slots: dict[Network, _Slot] = {}
        self._next_slot = FIRST_PEER
        self._generation = 0
        self._leaving: list[int] = []
        self._free: list[tuple[int, int]] = []
        self._noticed: defaultdict[int, Counter[str]] = defaultdict(Counter)  # by queue
        self._unsaid: deque[Notice] = deque()  # by the loops' threads, too
        self._given_up_said: set[tuple[str, int]] = set()
        self._running: _Running | None = None

    def set_own(self, subnet: Network, tunnel_address: Address, local_addresses: Iterable[Address]) -> None:
        """Tell this node's subnet, its address in the tunnel (the source of ICMP errors), and all its other addresses.

        Raises LeaseError if the subnet does not fit the network.
        """
        self._set_route(subnet, OWN_SLOT)
        self._leave(subnet)  # a peer's until now: its late deletion must not take our route
        if self._own is not None and self._own != subnet:
            self._builder.delete_route(self._own.network_address.packed, self._own.prefixlen)
        self._own = subnet
        family = type(tunnel_address)
        addresses = {tunnel_address, *local_addresses}
        self._builder.set_own(tunnel_address.packed, [a.packed for a in addresses if isinstance(a, family)])

    def set_peer(self, subnet: Network, underlay: Address, port: int, coat: bytes = b"") -> None:
        """Send a subnet to a node, or move it there.

        Raises LeaseError if the subnet does not fit the network or is this node's own, or the address is of the other
        family; nothing is changed then.
        """
        if underlay.version != self._network.version:
            raise LeaseError(f"{subnet}: {underlay} is no IPv{self._network.version} address")
        if subnet == self._own:
            raise LeaseError(f"{subnet} is this node's own subnet")
        slot = self._slots.get(subnet)
        if slot is None:
            slot = self._slots[subnet] = self._new_slot(subnet, underlay, port)
        slot.underlay, slot.port = underlay, port
        self._builder.set_peer(slot.number, slot.generation, underlay.packed, port, coat)

    def delete_peer(self, subnet: Network) -> None:
        """Forget a subnet; unknown ones are ignored."""
        if self._leave(subnet):
            self._builder.delete_route(subnet.network_address.packed, subnet.prefixlen)

    def publish(self) -> None:
        """Make all changes since the last publish visible to the loops, at once."""
        epoch = self._builder.publish()
        # A slot is used again only after every loop has passed the publish that took its last route away.
        self._free += [(epoch, number) for number in self._leaving]
        self._leaving.clear()

    def start(self, queues: Sequence[Queue], on_exit: Callable[[str, OSError | None], None],
              doors: Doors = Doors()) -> None:
        """Run the loops on the descriptors of these queues, which stay the caller's, until stop().

        `on_exit(loop, error)` is called from a loop's thread when it ends by itself.
        """
        assert self._running is None, "the loops run already"
        while len(self._workers) < len(queues):
            self._workers.append(self._make_worker())
        for worker in self._workers:
            worker.use(vnet=doors.vnet, uso=doors.uso, segment=doors.segment, mtu=doors.mtu, tap=doors.tap,
                       busy_poll=self._loops.busy_poll * 1000)
        running = self._running = _Running(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), len(queues))

        def run(number: int, loop: str, cpu: int | None) -> None:
            queue, name = queues[number], threading.current_thread().name
            self._settle_thread(name, cpu)
            try:
                getattr(self._workers[number], loop)(queue.tun, queue.udp, queue.path, running.stop, queue.sources)
            except OSError as error:
                on_exit(name, error)

        for number, loop in product(range(len(queues)), LOOPS[self._loops.threads]):
            cpu = self._loops.cpus[len(running.threads) % len(self._loops.cpus)] if self._loops.cpus else None
            name = (loop if self._network.version == 4 else f"{loop}6") + (f"/{number}" if len(queues) > 1 else "")
            running.threads.append(threading.Thread(target=run, args=(number, loop, cpu), name=name, daemon=True))
        for thread in running.threads:
            thread.start()

    def stop(self) -> None:
        """End the loops and wait for them; the table, the counters and the peers stay for the next start()."""
        running, self._running = self._running, None
        if running is None:
            return
        os.eventfd_write(running.stop, 1)
        for thread in running.threads:
            thread.join()
        os.close(running.stop)

    def peers(self) -> list[PeerStatus]:
        """Return every peer, in order of subnets."""
        since = time.time() - time.monotonic()
        statuses = []
        for subnet, slot in sorted(self._slots.items(), key=lambda item: int(item[0].network_address)):
            out_packets, out_bytes, _ = self._peer_count("out", slot)
            in_packets, in_bytes, last = self._peer_count("in", slot)
            heard = since + last / 1e9 if in_packets else None
            statuses.append(PeerStatus(subnet, slot.underlay, out_packets, out_bytes, in_packets, in_bytes, heard))
        return statuses

    def counters(self) -> dict[str, Counters]:
        """Return the counters of both directions, "out" and "in", with the outcomes that each can have."""
        return {direction: _counters(self._workers, direction) for direction in DIRECTIONS}

    def queues(self) -> list[dict[str, int]]:
        """Return the share of each queue there ever was: its number, and packets in by direction."""
        return [
            {"queue": number, **{f"packets_{direction}": worker.counters(direction)[0] for direction in DIRECTIONS}}
            for number, worker in enumerate(self._workers)
        ]

    def notices(self) -> list[Notice]:
        """Return what the log should say since the last call: of packets dropped, of what the loops do without."""
        found = []
        while self._unsaid:
            found.append(self._unsaid.popleft())
        for name, number in self._given_up():
            if (name, number) not in self._given_up_said:
                self._given_up_said.add((name, number))
                found.append(Notice(name, 1, GIVEN_UP[name][1], os.strerror(number), "offload given up"))
        counts, details = Counter[str](), dict[str, str]()
        for number, worker in enumerate(self._workers):
            fresh = self._fresh_drops(number)
            counts += fresh
            details |= {cause: _detail(worker, cause) for cause in fresh}
        return found + [Notice(cause, count, MEANINGS[cause], details[cause]) for cause, count in counts.items()]

    def given_up(self) -> dict[str, str]:
        """Return the offloads that were granted and then given up since the start, and what the kernel said."""
        return {
            offload: f"{os.strerror(number)}: {GIVEN_UP[name][1]}"
            for name, number in self._given_up()
            for offload in GIVEN_UP[name][0]
        }

    def status(self) -> dict[str, object]:
        """Return FIB, loops, each queue's share, and counters with their meanings: values for JSON."""
        return {
            "fib": self._builder.status(),
            "loops": {
                "threads": self._loops.threads,
                "queues": self._running.queues if self._running else 0,
                "cpus": ",".join(map(str, self._loops.cpus)) or "any",
                "busy_poll_us": self._loops.busy_poll,
            },
            "queues": self.queues(),
            "counters": {
                direction: {
                    "packets": counters.packets,
                    "outcomes": _explained(counters.outcomes),
                    "events": _explained(counters.events),
                }
                for direction, counters in self.counters().items()
            },
        }

    def _settle_thread(self, loop: str, cpu: int | None) -> None:
        """In the loop's thread: take its name, for `top -H` and the like, and its CPU."""
        with contextlib.suppress(OSError):  # a /proc that is read-only: without a name it works as well
            Path("/proc/thread-self/comm").write_text(loop)
        if cpu is None:
            return
        try:
            os.sched_setaffinity(0, (cpu,))
        except OSError as error:
            # It was there when the options were read, so a cpuset has changed; packets come before places.
            self._unsaid.append(Notice("cpus", 1, f"the loop {loop} runs on any CPU, not on {cpu}",
                                       error.strerror or "", "thread not pinned"))

    def _peer_count(self, direction: str, slot: _Slot) -> tuple[int, int, int]:
        """Return packets, bytes and nanoseconds when last, over all queues."""
        packets, octets, last = self._workers[0].peer_count(direction, slot.number, slot.generation)
        for worker in self._workers[1:]:
            more = worker.peer_count(direction, slot.number, slot.generation)
            packets, octets, last = packets + more[0], octets + more[1], max(last, more[2])
        return packets, octets, last

    def _given_up(self) -> list[tuple[str, int]]:
        """Return what any queue gave up and why, each once."""
        return list(dict.fromkeys(refusal for worker in self._workers for refusal in worker.given_up()))

    def _fresh_drops(self, number: int) -> Counter[str]:
        """Count what the log should say of one queue's drops since the last time of asking."""
        now = Counter[str]()
        for direction in DIRECTIONS:
            outcomes = _counters(self._workers[number:number + 1], direction).outcomes
            now.update({cause: outcomes.get(cause, 0) for cause in NOTICED})
        fresh = now - self._noticed[number]
        self._noticed[number] = now
        return fresh

    def _leave(self, subnet: Network) -> bool:
        """Empty the slot of a peer, whose route is the caller's business; tell whether there was one."""
        slot = self._slots.pop(subnet, None)
        if slot is None:
            return False
        self._builder.delete_peer(slot.number)
        self._leaving.append(slot.number)
        return True

    def _new_slot(self, subnet: Network, underlay: Address, port: int) -> _Slot:
        number = self._slot_number()
        if number >= self._builder.slot_limit:
            raise LeaseError(f"{subnet}: more than {self._builder.slot_limit - FIRST_PEER} peers")
        self._set_route(subnet, number)
        if number == self._next_slot:
            self._next_slot += 1
        else:
            self._free.pop(0)
        self._generation += 1
        return _Slot(number, self._generation, underlay, port)

    def _slot_number(self) -> int:
        """Choose a slot: one that went and whose grace period is over, else one never used."""
        if not self._free and self._next_slot >= self._builder.slot_limit:
            self.publish()  # those that went since the last publish are all there is; no route leads to them any more
        if not self._free:
            return self._next_slot
        epoch, number = self._free[0]
        deadline = time.monotonic() + GRACE
        while not self._builder.passed(epoch):
            if self._next_slot < self._builder.slot_limit or time.monotonic() > deadline:
                return self._next_slot
            time.sleep(0.0005)
        return number

    def _set_route(self, subnet: Network, slot: int) -> None:
        try:
            self._builder.set_route(subnet.network_address.packed, subnet.prefixlen, slot)
        except ValueError as error:
            raise LeaseError(f"{subnet} {error} ({self._network})") from None


MEANINGS = {name: meaning for name, _, meaning in OUTCOMES} | dict(EVENTS)


def _counters(workers: Iterable[Worker], direction: str) -> Counters:
    """Sum the counters of some queues."""
    packets, outcomes, events = zip(*(worker.counters(direction) for worker in workers), strict=True)
    return Counters(
        sum(packets),
        {
            name: count
            for (name, way, _), count in zip(OUTCOMES, map(sum, zip(*outcomes, strict=True)), strict=True)
            if count or way in (direction, "both")
        },
        {name: count for (name, _), count in zip(EVENTS, map(sum, zip(*events, strict=True)), strict=True)},
    )


def _detail(worker: Worker, cause: str) -> str:
    """Return what a queue knows of its last drop of a cause."""
    if cause == "unknown_sender":
        stranger = worker.stranger()
        return str(ip_address(stranger[0])) if stranger else ""
    if cause in ("underlay_unreachable", "send_forbidden", "send_error"):
        return errno.errorcode.get(worker.last_error(), "")
    return ""


def _explained(counts: dict[str, int]) -> dict[str, dict[str, object]]:
    return {name: {"count": count, "meaning": MEANINGS[name]} for name, count in counts.items()}
