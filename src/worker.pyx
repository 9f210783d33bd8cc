# The face of the data plane to Python: Builder (what is published) and Worker (the two loops), as
# flannel_udp._dataplane.
#
# Python opens descriptors and decides; it hands in numbers and packed addresses (bytes in network order) and reads
# counters. The Builder is for one thread, the owner's. A Worker's two loops run one each in a thread of Python's,
# without the GIL from the first read to stop. Memory: the Builder owns the draft, the published block and the retired
# ones; the Worker owns its two Ways, and keeps the Builder alive.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from batch cimport ARENA, BATCH_PACKETS, SLOT, SLOTS
from block cimport Block, block_copy, block_new
from both_ways cimport both_ways
from coat cimport Coat
from counters cimport EVENTS as EVENT_COUNT, OUTCOMES as OUTCOME_COUNT, PeerCount
from encap cimport SOURCE_KNOWN, SOURCE_OFF, SOURCE_STRICT
from fib cimport (FIB_MAX_CELLS, FIRST_PEER as FIRST_PEER_SLOT, SLOT_NONE, SLOT_OUTSIDE, SLOT_OWN, fib_hash_delete,
                  fib_hash_set)
from forward cimport next_hop
from names cimport event_names, outcome_names
from peer cimport AF_INET, AF_INET6, COAT_MAX, Peer, Underlay, peer_enter, peer_leave
from rcu cimport RCU_READERS, Rcu, Retired, rcu_free, rcu_new, rcu_passed, rcu_publish, rcu_reclaim
from run cimport RUN_PACKETS
from tun_to_udp cimport tun_to_udp
from udp cimport CONTROL, udp_fragments, udp_gro
from udp_to_tun cimport udp_to_tun
from way cimport LINK_MAX, SOURCES_MAX as SOURCE_PLACES, Way
from wire.ethernet cimport ETHERTYPE_IPV4 as TYPE_IPV4, ETHERTYPE_IPV6 as TYPE_IPV6, MAC_LENGTH as MAC_BYTES
from wire.ipv4 cimport IPV4_HEADER
from wire.ipv6 cimport IPV6_HEADER
from wire.order cimport htons, load128, ntohl, ntohs, u128
from wire.udp cimport FLANNEL_UDP_PORT, UDP_HEADER
from wire.vxlan cimport FLANNEL_VXLAN_PORT, VXLAN_FLAG_VNI as VXLAN_FLAG, VXLAN_HEADER as VXLAN_HEADER_BYTES

# Constants of the wire, for every Python file.
UDP_PORT = FLANNEL_UDP_PORT
VXLAN_PORT = FLANNEL_VXLAN_PORT
UDP_OVERHEAD_V4 = IPV4_HEADER + UDP_HEADER
UDP_OVERHEAD_V6 = IPV6_HEADER + UDP_HEADER
VXLAN_HEADER = VXLAN_HEADER_BYTES
VXLAN_FLAG_VNI = VXLAN_FLAG
VXLAN_COAT = sizeof(Coat)
VXLAN_OVERHEAD_V4 = UDP_OVERHEAD_V4 + VXLAN_COAT
VXLAN_OVERHEAD_V6 = UDP_OVERHEAD_V6 + VXLAN_COAT
MAC_LENGTH = MAC_BYTES
ETHERTYPE_IPV4 = TYPE_IPV4
ETHERTYPE_IPV6 = TYPE_IPV6
# How many sockets one queue can spread its flows over.
SOURCES_MAX = SOURCE_PLACES

# Slots that are no peer's.
NO_SLOT = SLOT_NONE
OWN_SLOT = SLOT_OWN
OUTSIDE_SLOT = SLOT_OUTSIDE
FIRST_PEER = FIRST_PEER_SLOT

SOURCE_CHECKS = {"off": SOURCE_OFF, "known": SOURCE_KNOWN, "strict": SOURCE_STRICT}

# Our choice: slots of a network too large for an array of cells.
cdef enum:
    HASHED_SLOTS = 1 << 20

# (name, direction "out" | "in" | "both", meaning) by place in Worker.counters(), and (name, meaning) likewise.
OUTCOMES = outcome_names()
EVENTS = event_names()


cdef u128 _number(bytes address) except *:
    """Return a packed address as a number."""
    cdef const uint8_t *octets = address
    cdef uint32_t word
    if len(address) == 16:
        return load128(octets)
    memcpy(&word, octets, 4)
    return ntohl(word)


cdef class Builder:
    """The private table that Python changes, and the published copies of it.

    Builder(network, prefix_length, subnet_length): `network` packed, 4 or 16 bytes. Raises ValueError if the FIB of an
    IPv4 network would exceed 2**22 cells or the lengths make no table, MemoryError.
    """

    cdef Rcu *rcu
    cdef Block *draft
    cdef Block *spare
    cdef dict routes            # (network as int, prefix length) -> slot
    cdef list wide              # prefix lengths shorter than a cell that are in use, longest first
    cdef readonly int address_bits
    cdef readonly int prefix_length
    cdef readonly int subnet_length
    cdef readonly int slot_limit
    cdef object network

    def __cinit__(self, bytes network not None, int prefix_length, int subnet_length):
        cdef Block plan
        cdef object one = 1     # a Python number: 128 bits and more
        cdef object cells
        self.address_bits = 8 * len(network)
        # A subnet of length 0 would need a shift by all bits of an address, which C does not have.
        if not 0 <= prefix_length <= subnet_length <= self.address_bits or subnet_length == 0:
            raise ValueError(f"subnets of /{subnet_length} in a network of /{prefix_length}")
        cells = one << (subnet_length - prefix_length)
        self.prefix_length = prefix_length
        self.subnet_length = subnet_length
        self.network = int.from_bytes(network, "big")
        self.routes = {}
        self.wide = []
        if cells > FIB_MAX_CELLS and self.address_bits == 32:
            raise ValueError(f"{cells} subnets are more than the FIB's {FIB_MAX_CELLS} cells")
        memset(&plan, 0, sizeof(plan))
        plan.family = AF_INET if self.address_bits == 32 else AF_INET6
        plan.fib.network = _number(network)
        plan.fib.mask = _number((((one << prefix_length) - 1) << (self.address_bits - prefix_length)).to_bytes(
            len(network), "big"))
        plan.fib.shift = self.address_bits - subnet_length
        plan.fib.cell_count = cells if cells <= FIB_MAX_CELLS else 0
        plan.fib.bucket_mask = 0 if plan.fib.cell_count else 127
        plan.peers.capacity = 64
        plan.peers.bucket_mask = 127
        plan.own.capacity = 16
        # Twice the cells: a peer that comes must find a slot though those that went still wait for their grace period.
        self.slot_limit = FIRST_PEER_SLOT + (2 * cells if plan.fib.cell_count else HASHED_SLOTS)
        self.rcu = rcu_new()
        self.draft = block_new(&plan)
        if self.rcu == NULL or self.draft == NULL:
            raise MemoryError
        self.publish()

    def __dealloc__(self):
        rcu_free(self.rcu)
        free(self.spare)
        free(self.draft)

    def set_route(self, bytes prefix not None, int length, uint32_t slot):
        """Send a subnet (packed network, prefix length) to a slot; a shorter prefix than a cell's covers many cells.

        Raises ValueError if the subnet does not fit: longer than a cell, outside the network, or, where the network is
        too large for cells, of any other length than the configured one.
        """
        cdef object key = (int.from_bytes(prefix, "big"), length)
        if length > self.subnet_length:
            raise ValueError(f"is smaller than a subnet of this network, /{self.subnet_length}")
        if length < self.prefix_length or (key[0] ^ self.network) >> (self.address_bits - self.prefix_length):
            raise ValueError("lies outside the network")
        if self.draft.fib.cell_count == 0:
            if length != self.subnet_length:
                raise ValueError(f"is no /{self.subnet_length}, and this network is too large for other lengths")
            if len(self.routes) * 2 > self.draft.fib.bucket_mask:
                self._resize(self.draft.peers.capacity, self.draft.fib.bucket_mask * 2 + 1, self.draft.own.capacity)
        self.routes[key] = slot
        self._paint(key)

    def delete_route(self, bytes prefix not None, int length):
        """Forget a subnet; what a shorter one covers falls back to that. Unknown ones are ignored."""
        cdef object key = (int.from_bytes(prefix, "big"), length)
        if self.routes.pop(key, None) is not None:
            self._paint(key)

    cdef int _paint(self, tuple key) except -1:
        """Write the cells of one subnet as the routes now have them; the longest covering prefix wins."""
        cdef object number = key[0] >> (self.address_bits - self.subnet_length)
        cdef object base = self.network >> (self.address_bits - self.subnet_length)
        cdef uint32_t first, i
        self.wide = sorted({length for _, length in self.routes if length < self.subnet_length}, reverse=True) \
            if key[1] < self.subnet_length else self.wide
        if self.draft.fib.cell_count == 0:
            if key in self.routes:
                fib_hash_set(&self.draft.fib, _number(number.to_bytes(16, "big")), self.routes[key])
            else:
                fib_hash_delete(&self.draft.fib, _number(number.to_bytes(16, "big")))
            return 0
        first = number - base
        for i in range(<uint32_t>(1 << (self.subnet_length - <int>key[1]))):
            self.draft.fib.cells[first + i] = self._resolve(number + i)
        return 0

    cdef uint32_t _resolve(self, object number) except? SLOT_OUTSIDE:
        """Return the slot for one cell, by its number, from the routes."""
        cdef int shift = self.address_bits - self.subnet_length
        cdef object slot = self.routes.get((number << shift, self.subnet_length))
        for length in self.wide if slot is None else ():
            shift = self.address_bits - length
            slot = self.routes.get(((number >> (self.subnet_length - length)) << shift, length))
            if slot is not None:
                break
        return SLOT_NONE if slot is None else slot

    def set_peer(self, uint32_t slot, uint32_t generation, bytes address not None, uint16_t port,
                 bytes coat not None=b""):
        """Enter the peer in `slot` (FIRST_PEER ... slot_limit - 1): packed underlay address, port, coat."""
        cdef uint32_t capacity = self.draft.peers.capacity
        cdef Peer *peer
        if not FIRST_PEER_SLOT <= slot < <uint32_t>self.slot_limit or generation == 0:
            raise ValueError(f"slot {slot}, generation {generation}: no peer can be there")
        if len(coat) > COAT_MAX or len(address) * 8 != self.address_bits:
            raise ValueError("coat too long, or an address of the other family")
        while slot >= capacity:
            capacity *= 2
        if capacity != self.draft.peers.capacity:
            self._resize(capacity, self.draft.fib.bucket_mask, self.draft.own.capacity)
        self.delete_peer(slot)
        peer = &self.draft.peers.slots[slot]
        peer.generation = generation
        memcpy(peer.coat, <const uint8_t *>coat, len(coat))
        if self.draft.family == AF_INET:
            peer.underlay.ipv4.sin_family, peer.underlay.ipv4.sin_port = AF_INET, htons(port)
            memcpy(&peer.underlay.ipv4.sin_addr, <const uint8_t *>address, 4)
        else:
            peer.underlay.ipv6.sin6_family, peer.underlay.ipv6.sin6_port = AF_INET6, htons(port)
            memcpy(&peer.underlay.ipv6.sin6_addr, <const uint8_t *>address, 16)
        peer_enter(&self.draft.peers, slot, self.draft.family)

    def delete_peer(self, uint32_t slot):
        """Empty a slot; routes to it must be gone by the same publish."""
        if slot < self.draft.peers.capacity and self.draft.peers.slots[slot].generation:
            peer_leave(&self.draft.peers, slot, self.draft.family)
            memset(&self.draft.peers.slots[slot], 0, sizeof(Peer))

    def set_own(self, bytes tunnel not None, list addresses not None):
        """Tell this node's tunnel address (the source of ICMP errors) and all its addresses, packed."""
        cdef uint32_t capacity = self.draft.own.capacity
        cdef uint32_t i
        while capacity < <uint32_t>len(addresses):
            capacity *= 2
        if capacity != self.draft.own.capacity:
            self._resize(self.draft.peers.capacity, self.draft.fib.bucket_mask, capacity)
        memcpy(self.draft.own.tunnel, <const uint8_t *>tunnel, len(tunnel))
        self.draft.own.count = len(addresses)
        for i in range(self.draft.own.count):
            self.draft.own.addresses[i] = _number(addresses[i])

    cdef int _resize(self, uint32_t capacity, uint32_t bucket_mask, uint32_t own_capacity) except -1:
        """Move the draft into a block with more room."""
        cdef Block *old = self.draft
        cdef Block plan = old[0]
        cdef Block *block
        cdef uint32_t i
        plan.peers.capacity, plan.peers.bucket_mask = capacity, capacity * 2 - 1
        plan.fib.bucket_mask, plan.own.capacity = bucket_mask, own_capacity
        block = block_new(&plan)
        if block == NULL:
            raise MemoryError
        memcpy(block.fib.cells, old.fib.cells, old.fib.cell_count * sizeof(uint32_t))
        memcpy(block.peers.slots, old.peers.slots, old.peers.capacity * sizeof(Peer))
        memcpy(block.own.addresses, old.own.addresses, old.own.count * sizeof(u128))
        for i in range(old.peers.capacity):
            if block.peers.slots[i].generation:
                peer_enter(&block.peers, i, block.family)
        for i in range(old.fib.bucket_mask + 1 if old.fib.cell_count == 0 else 0):
            if old.fib.buckets[i].slot != SLOT_NONE:
                fib_hash_set(&block.fib, old.fib.buckets[i].number, old.fib.buckets[i].slot)
        self.draft = block
        free(old)
        return 0

    def publish(self):
        """Make the loops see the table as it is now; return the epoch of the change. Raises MemoryError."""
        cdef Block *block = self.spare
        cdef Retired *old
        self.spare = NULL
        if block != NULL and block.size != self.draft.size:
            free(block)
            block = NULL
        if block == NULL:
            block = block_new(self.draft)
        if block == NULL:
            raise MemoryError
        with nogil:
            block_copy(block, self.draft)
            rcu_publish(self.rcu, &block.retired)
        while True:
            old = rcu_reclaim(self.rcu)
            if old == NULL:
                return self.rcu.epoch
            free(self.spare)
            self.spare = <Block *>old

    def passed(self, uint64_t epoch):
        """Tell whether no loop can still use what was published before `epoch`."""
        return bool(rcu_passed(self.rcu, epoch))

    def lookup(self, bytes address not None):
        """Return the slot for a packed overlay address, as the next publish will have it."""
        return next_hop(self.draft, _number(address))

    def status(self):
        """Return the table's measures: shape ("cells" | "hash"), cells, routes, peer_capacity, bytes, retired."""
        cdef Retired *block = self.rcu.oldest
        cdef int retired = 0
        while block != NULL:
            retired, block = retired + 1, block.next
        return {"shape": "cells" if self.draft.fib.cell_count else "hash", "cells": self.draft.fib.cell_count,
                "routes": len(self.routes), "peer_capacity": self.draft.peers.capacity, "bytes": self.draft.size,
                "retired": retired}


# The collector must not take the Builder away first: __dealloc__ gives back places in what the Builder owns.
@cython.no_gc_clear
cdef class Worker:
    """Two loops over one table: tun_to_udp() and udp_to_tun(), each to be called in a thread of its own.

    Worker(builder, coat_length=, ttl_step=, overhead=, source_check=, expected=, ecn=): the record that makes a backend
    (bytes, hops, bytes, a value of SOURCE_CHECKS; VXLAN_COAT bytes as they must stand before what arrives, or none;
    whether congestion marks pass). Raises ValueError where these do not go together, MemoryError. What the loops count
    and learn lives with the Worker and survives their restarts.
    """

    cdef Builder builder
    cdef Way *out
    cdef Way *into

    def __cinit__(self, Builder builder not None, *, int coat_length, int ttl_step, int overhead, int source_check,
                  bytes expected not None=b"", bint ecn=False):
        if not 0 <= coat_length <= COAT_MAX or source_check not in SOURCE_CHECKS.values():
            raise ValueError(f"coat of {coat_length} bytes, source check {source_check}")
        if expected and not len(expected) == coat_length == VXLAN_COAT:
            raise ValueError(f"{len(expected)} bytes are expected of a coat of {coat_length}")
        self.builder = builder
        self.out = self._way()
        self.into = self._way()
        for way in (<uintptr_t>self.out, <uintptr_t>self.into):
            (<Way *>way).rules.coat_length, (<Way *>way).rules.ttl_step = coat_length, ttl_step
            (<Way *>way).rules.overhead, (<Way *>way).rules.source_check = overhead, source_check
            (<Way *>way).rules.checked, (<Way *>way).rules.ecn = bool(expected), ecn
            memcpy(&(<Way *>way).rules.expected, <const uint8_t *>expected, len(expected))
        self.into.senders = <Underlay *>calloc(BATCH_PACKETS, sizeof(Underlay))
        self.into.controls = <uint8_t *>calloc(SLOTS, CONTROL) if ecn else NULL
        if self.into.senders == NULL or (ecn and self.into.controls == NULL):
            raise MemoryError

    cdef Way *_way(self) except NULL:
        """Allocate one direction and give it a reader's place."""
        cdef Way *way = <Way *>calloc(1, sizeof(Way))
        cdef int i
        if way == NULL:
            raise MemoryError
        way.rules.family = self.builder.draft.family
        way.rcu = self.builder.rcu
        way.run_most = RUN_PACKETS
        # For all that there can be: the kernel gives pages only to what is used.
        way.batch.arena = <uint8_t *>calloc(1, max(ARENA, SLOTS * SLOT))
        way.peers = <PeerCount *>calloc(self.builder.slot_limit, sizeof(PeerCount))
        for i in range(RCU_READERS):
            if way.reader == NULL and not self.builder.rcu.readers[i].taken:
                way.reader = &self.builder.rcu.readers[i]
                way.reader.taken = 1
        if way.batch.arena == NULL or way.peers == NULL or way.reader == NULL:
            _free_way(way)
            raise MemoryError
        return way

    def __dealloc__(self):
        _free_way(self.out)
        _free_way(self.into)

    def tun_to_udp(self, int tun, int udp, int path, int stop, tuple sources not None=()):
        """Forward outwards until `stop` (an eventfd) is readable.

        tun, udp: non-blocking descriptors; path: a UDP socket bound to the same address, kept for path-MTU questions;
        sources: further sockets, at most SOURCES_MAX, that flows are spread over instead of `udp`. Raises OSError when
        the TUN fails, RuntimeError if this loop runs already, ValueError.
        """
        self._enter(self.out, tun, udp, path, stop, sources)
        cdef int result
        with nogil:
            result = tun_to_udp(self.out)
        self._leave(self.out, result)

    def udp_to_tun(self, int tun, int udp, int path, int stop, tuple sources not None=()):
        """Forward inwards until `stop` is readable; arguments and errors as tun_to_udp(), but the socket's."""
        self._enter(self.into, tun, udp, path, stop, sources)
        cdef int result
        with nogil:
            result = udp_to_tun(self.into)
        self._leave(self.into, result)

    def both_ways(self, int tun, int udp, int path, int stop, tuple sources not None=()):
        """Forward both ways in one thread until `stop` is readable; arguments and errors as of the two loops."""
        self._enter(self.out, tun, udp, path, stop, sources)
        try:
            self._enter(self.into, tun, udp, path, stop, sources)
        except RuntimeError:
            self.out.running = False
            raise
        cdef int result
        with nogil:
            result = both_ways(self.out, self.into)
        self.into.running = False
        self._leave(self.out, result)

    def use(self, *, bint vnet, bint uso, bint segment, int64_t busy_poll, uint32_t mtu=0, bint tap=False):
        """Say, before a loop starts, what the doors can do, and how long to look for work before sleeping.

        vnet: a vnet_hdr stands before each frame; uso: the TUN takes UDP super-packets; segment: the kernel cuts
        messages into datagrams; busy_poll: nanoseconds; mtu: of the TUN, bytes, 0 where it is not known; tap: it gives
        and takes Ethernet frames, for a backend that expects a coat. Raises ValueError for another one.
        """
        if tap and not self.out.rules.checked:
            raise ValueError("a TAP is for a backend whose coat holds MAC addresses")
        for way in (<uintptr_t>self.out, <uintptr_t>self.into):
            (<Way *>way).vnet, (<Way *>way).uso = vnet, uso and vnet
            (<Way *>way).run_most = RUN_PACKETS if segment else 1
            (<Way *>way).busy_poll, (<Way *>way).mtu = busy_poll, mtu
            (<Way *>way).link = LINK_MAX if tap else 0
            (<Way *>way).segment_refused = (<Way *>way).uso_refused = 0

    def given_up(self):
        """Return what was given up since use() and why: ("udp_segment" or "uso", errno) for each."""
        refusals = (("udp_segment", self.out.segment_refused), ("uso", self.into.uso_refused))
        return [(name, number) for name, number in refusals if number]

    cdef int _enter(self, Way *way, int tun, int udp, int path, int stop, tuple sources) except -1:
        cdef int i
        if way.running:
            raise RuntimeError("this loop runs already")
        if len(sources) > SOURCE_PLACES:
            raise ValueError(f"{len(sources)} sources: there is room for {SOURCE_PLACES}")
        way.tun, way.udp, way.path, way.stop, way.gro = tun, udp, path, stop, udp_gro(udp)
        way.fragments = udp_fragments(udp, way.rules.family)
        way.sources[0], way.source_count = udp, max(len(sources), 1)
        for i in range(<int>len(sources)):
            way.sources[i] = sources[i]
        way.running = True
        return 0

    cdef int _leave(self, Way *way, int result) except -1:
        way.running = False
        if result < 0:
            raise OSError(-result, "the loop ended")
        return 0

    def counters(self, str direction not None):
        """Return (packets in, outcomes by place in OUTCOMES, events by place in EVENTS) of "out" or "in"."""
        cdef Way *way = self._which(direction)
        cdef int i
        return (way.counters.packets_in, [way.counters.outcome[i] for i in range(<int>OUTCOME_COUNT)],
                [way.counters.event[i] for i in range(<int>EVENT_COUNT)])

    def peer_count(self, str direction not None, uint32_t slot, uint32_t generation):
        """Return (packets, bytes, nanoseconds of CLOCK_MONOTONIC when last) of a peer; zeros if none went that way."""
        cdef PeerCount *count
        if slot >= <uint32_t>self.builder.slot_limit:
            raise ValueError(f"slot {slot}: there are {self.builder.slot_limit}")
        count = &self._which(direction).peers[slot]
        if count.generation != generation:
            return 0, 0, 0
        return count.packets, count.bytes, count.last

    def stranger(self):
        """Return the last unknown sender as (packed address, port), or None."""
        cdef Underlay *seen = &self.into.stranger
        if self.builder.draft.family == AF_INET:
            address, port = (<char *>&seen.ipv4.sin_addr)[:4], ntohs(seen.ipv4.sin_port)
        else:
            address, port = (<char *>&seen.ipv6.sin6_addr)[:16], ntohs(seen.ipv6.sin6_port)
        return (address, port) if port else None

    def last_error(self):
        """Return the errno of the last send that failed, 0 if none did."""
        return self.out.last_error

    cdef Way *_which(self, str direction) except NULL:
        if direction not in ("out", "in"):
            raise ValueError(f'direction {direction!r}: "out" or "in" is wanted')
        return self.out if direction == "out" else self.into


cdef void _free_way(Way *way) noexcept:
    """Free one direction and give its reader's place back."""
    if way == NULL:
        return
    if way.reader != NULL:
        way.reader.taken = 0
    free(way.batch.arena)
    free(way.peers)
    free(way.senders)
    free(way.controls)
    free(way)
