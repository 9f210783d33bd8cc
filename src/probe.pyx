# A window into each room, for tests, benchmarks and whoever explains: flannel_udp._probe.
#
# Python bytes go in, Python values come out; the rooms themselves are those that the loops use. Every packet is copied
# into memory of exactly its size first, so that a sanitizer sees a read of one byte too many.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from batch cimport Packet
from block cimport Block, block_new
from checksum cimport checksum as room_checksum
from checksum cimport fold, pseudo_ipv4, pseudo_ipv6
from checksum cimport update16 as room_update16
from coalesce cimport Merge, merge_add, merge_begin, merge_finish, merge_undo
from coat cimport Coat
from counters cimport FORWARD as OUTCOME_FORWARD
from encap cimport Rules
from fib cimport FIB_MAX_CELLS, fib_hash_delete, fib_hash_set
from flow cimport flow_hash as room_flow_hash
from forward cimport forward_in, forward_out, next_hop
from hop cimport hop_ipv4, hop_ipv6
from icmp cimport (ERROR_MAX, Limiter, icmp_allowed_ipv4, icmp_allowed_ipv6, icmp_error_ipv4, icmp_error_ipv6,
                   limiter_take)
from inner cimport inner_check
from layout cimport wire_fields, wire_sizes
from peer cimport AF_INET, AF_INET6, Peer, Underlay, peer_enter, peer_find, peer_leave
from rcu cimport (RCU_READERS, Rcu, Reader, Retired, rcu_free, rcu_new, rcu_offline, rcu_online,
                  rcu_publish, rcu_reclaim)
from run cimport RUN_PACKETS, Run, run_clear, run_copy, run_join, run_length, run_piece, run_takes
from segment cimport Template, is_super, segment_complete, segment_header, segment_payload, segment_plan
from unfinished cimport finish as room_finish
from wire.ipv4 cimport Ipv4Header
from wire.ipv6 cimport Ipv6Header
from wire.order cimport load128, ntohl, u128
from wire.vnet_hdr cimport VnetHeader

# Bytes of each wire struct, and of the structs whose size is a promise.
SIZES = {**wire_sizes(), "peer": sizeof(Peer), "reader": sizeof(Reader)}


def fields(str name not None, bytes header not None):
    """Return the fields of a wire struct laid over `header`, by name; numbers as the machine reads them, unswapped."""
    if len(header) != SIZES[name]:
        raise ValueError(f"{name} has {SIZES[name]} bytes")
    return wire_fields(name, header)


# The outcome of forward_out() and forward_in() that is none: the packet is to be passed on.
FORWARD = OUTCOME_FORWARD


cdef uint8_t *_copy(bytes data) except NULL:
    """Copy into memory of exactly that size; the caller frees it."""
    cdef uint8_t *copy = <uint8_t *>malloc(max(len(data), 1))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t *>data, len(data))
    return copy


cdef u128 _number(bytes address) except *:
    """Return a packed address as a number."""
    cdef uint32_t word
    if len(address) == 16:
        return load128(<const uint8_t *>address)
    memcpy(&word, <const uint8_t *>address, 4)
    return ntohl(word)


def checksum(bytes data not None, int offset=0):
    """Return the Internet checksum of `data`, laid `offset` bytes past an aligned address, as two bytes of a header."""
    cdef uint8_t *copy = _copy(bytes(offset) + data)
    cdef uint16_t field = room_checksum(copy + offset, len(data))
    free(copy)
    return (<uint8_t *>&field)[:2]


def pseudo_header_sum(bytes source not None, bytes destination not None, int protocol, uint32_t length):
    """Return the folded sum of the pseudo header of either family, as its two bytes in a header."""
    cdef uint32_t a, b
    cdef uint16_t field
    if len(source) == 16:
        field = fold(pseudo_ipv6(<const uint8_t *>source, <const uint8_t *>destination, protocol, length))
    else:
        memcpy(&a, <const uint8_t *>source, 4)
        memcpy(&b, <const uint8_t *>destination, 4)
        field = fold(pseudo_ipv4(a, b, protocol, length))
    return (<uint8_t *>&field)[:2]


def update16(bytes field not None, bytes old not None, bytes new not None):
    """Return a checksum field of two bytes after one word of its data changed from `old` to `new`."""
    cdef uint16_t words[3]
    for i, word in enumerate((field, old, new)):
        memcpy(&words[i], <const uint8_t *>(<bytes>word), 2)
    words[0] = room_update16(words[0], words[1], words[2])
    return (<uint8_t *>words)[:2]


def hop(bytes packet not None, int step):
    """Return the packet one hop older, or None where its TTL or hop limit ends."""
    cdef uint8_t *copy = _copy(packet)
    cdef bint alive = (hop_ipv4(<Ipv4Header *>copy, step) if packet[0] >> 4 == 4
                       else hop_ipv6(<Ipv6Header *>copy, step))
    older = copy[:len(packet)] if alive else None
    free(copy)
    return older


def inner(bytes packet not None, int version):
    """Validate an inner packet of IP `version` 4 or 6: (outcome, its true length)."""
    cdef uint8_t *copy = _copy(packet)
    cdef uint32_t length = len(packet)
    cdef int outcome = inner_check(AF_INET if version == 4 else AF_INET6, copy, &length)
    free(copy)
    return outcome, length


def icmp_allowed(bytes packet not None):
    """Tell whether an ICMP error may be sent about a valid packet."""
    cdef uint8_t *copy = _copy(packet)
    cdef bint allowed = (icmp_allowed_ipv4(copy, len(packet)) if packet[0] >> 4 == 4
                         else icmp_allowed_ipv6(copy, len(packet)))
    free(copy)
    return bool(allowed)


def icmp_error(bytes packet not None, bytes own not None, int kind, int code, uint32_t rest):
    """Return the ICMP error about a valid packet, sent by address `own`."""
    cdef uint8_t *copy = _copy(packet)
    cdef uint8_t *out = <uint8_t *>malloc(ERROR_MAX)
    cdef uint32_t length
    if len(own) == 4:
        length = icmp_error_ipv4(out, copy, len(packet), <const uint8_t *>own, kind, code, rest)
    else:
        length = icmp_error_ipv6(out, copy, len(packet), <const uint8_t *>own, kind, code, rest)
    error = out[:length]
    free(copy)
    free(out)
    return error


cdef int _valid(bytes packet) except -1:
    """Raise ValueError unless inner_check() passes the packet and finds no padding: what further rooms rely on."""
    cdef const uint8_t *at = packet
    cdef uint32_t length = len(packet)
    if inner_check(AF_INET if at[0] >> 4 == 4 else AF_INET6, at, &length) != OUTCOME_FORWARD or length != len(packet):
        raise ValueError("not one valid IP packet")
    return 0


def segment(bytes packet not None, bytes vnet_hdr not None):
    """Do with a valid packet what its vnet_hdr asks for: the packets that it becomes, or the outcome."""
    cdef VnetHeader vnet
    cdef Template plan
    cdef uint8_t *copy
    cdef uint8_t *header
    cdef uint32_t i, start
    cdef int outcome
    if len(vnet_hdr) != sizeof(VnetHeader):
        raise ValueError(f"a vnet_hdr has {sizeof(VnetHeader)} bytes")
    _valid(packet)
    memcpy(&vnet, <const uint8_t *>vnet_hdr, sizeof(VnetHeader))
    copy = _copy(packet)
    packets = []
    if is_super(&vnet):
        outcome = segment_plan(&plan, copy, len(packet), &vnet)
        header = <uint8_t *>malloc(plan.header) if outcome == OUTCOME_FORWARD else NULL
        for i in range(plan.count if header != NULL else 0):
            segment_header(&plan, copy, i, header)
            start = plan.header + i * plan.size
            packets.append(header[:plan.header] + copy[start:start + segment_payload(&plan, i)])
        free(header)
    else:
        outcome = segment_complete(copy, len(packet), &vnet)
        packets.append(copy[:len(packet)])
    free(copy)
    return packets if outcome == OUTCOME_FORWARD else outcome


cdef object _frame(Merge *merge, bint undo):
    """Finish a frame: (vnet_hdr, frame, packets in it), or the packets that merge_undo() makes of it."""
    cdef uint32_t i
    merge_finish(merge)
    if undo:
        merge_undo(merge)
    parts = [(<uint8_t *>merge.pieces[i].iov_base)[:merge.pieces[i].iov_len] for i in range(merge.count + 1)]
    return parts[1:] if undo else (parts[0], b"".join(parts[1:]), merge.count)


def finish(bytes packet not None, uint32_t size, uint32_t mtu):
    """Finish a valid packet as a peer's kernel left it: (packet as it then is, how many it stands for, vnet_hdr)."""
    cdef VnetHeader vnet
    cdef uint8_t *copy
    cdef uint32_t count
    _valid(packet)
    copy = _copy(packet)
    count = room_finish(copy, len(packet), size, mtu, &vnet)
    finished = copy[:len(packet)]
    free(copy)
    return finished, count, (<uint8_t *>&vnet)[:sizeof(VnetHeader)]


def flow_hash(bytes packet not None):
    """Return the hash of a valid packet's flow."""
    cdef uint8_t *copy
    cdef uint32_t flow
    _valid(packet)
    copy = _copy(packet)
    flow = room_flow_hash(AF_INET if packet[0] >> 4 == 4 else AF_INET6, copy, len(packet))
    free(copy)
    return flow


def coalesce(list packets not None, bint uso, *, bint undo=False):
    """Merge valid packets: a list of (vnet_hdr, frame, packets in it) or, with undo, of what each frame was made of."""
    cdef Merge *merge
    cdef uint8_t **copies
    cdef uint32_t i
    frames = []
    for packet in packets:
        _valid(packet)
    merge = <Merge *>calloc(1, sizeof(Merge))
    copies = <uint8_t **>calloc(max(len(packets), 1), sizeof(uint8_t *))
    for i, packet in enumerate(packets):
        copies[i] = _copy(packet)
        if merge.head != NULL and merge_add(merge, copies[i], len(packet)):
            continue
        if merge.head != NULL:
            frames.append(_frame(merge, undo))
        merge_begin(merge, copies[i], len(packet), uso)
    if merge.head != NULL:
        frames.append(_frame(merge, undo))
    for i in range(len(packets)):
        free(copies[i])
    free(copies)
    free(merge)
    return frames


cdef tuple _run(const Run *run):
    """Return (slot, size, datagrams) of a run."""
    cdef bytearray out
    cdef uint32_t i
    datagrams = []
    for i in range(run.count):
        out = bytearray(run_length(run, i))
        datagrams.append(bytes(out[:run_copy(run, i, out, len(out))]))
    return run.slot, run.size, datagrams


def run(list datagrams not None, uint32_t most=RUN_PACKETS, list lanes=None):
    """Make runs of (slot, datagram) pairs, each in two pieces: a list of (slot, size, datagrams), one per message.

    `lanes`: of each datagram; none: all of them have lane 0.
    """
    cdef Run *making
    cdef const uint8_t *at
    cdef uint32_t slot, length, lane
    runs = []
    if not 0 < most <= RUN_PACKETS:
        raise ValueError(f"most {most}: a run has room for {RUN_PACKETS}")
    making = <Run *>calloc(1, sizeof(Run))
    for (slot, datagram), lane in zip(datagrams, lanes or [0] * len(datagrams), strict=True):
        at, length = <const uint8_t *>(<bytes>datagram), len(datagram)
        if not run_takes(making, slot, lane, length, most):
            runs.append(_run(making))
            run_clear(making)
        run_join(making, slot, lane, length)
        run_piece(making, at, length // 2)
        run_piece(making, at + length // 2, length - length // 2)
    if making.count:
        runs.append(_run(making))
    free(making)
    return runs


cdef class RateLimit:
    """The ICMP rate limit with a clock of the caller's."""

    cdef Limiter limiter

    def take(self, uint32_t sender, int64_t now):
        """Take one error's share for a sender at `now` (nanoseconds); False when there is none."""
        return bool(limiter_take(&self.limiter, sender, now))


cdef class Node:
    """A block of one's own, and the two decisions over it: Node(network, prefix_length, subnet_length, **rules).

    The FIB has the shape that the lengths ask for; peers have slots below `capacity`.
    """

    cdef Block *block
    cdef Rules rules
    cdef int bits

    def __cinit__(self, bytes network not None, int prefix_length, int subnet_length, *, int source_check,
                  int ttl_step=1, int coat_length=0, bytes expected not None=b"", bint ecn=False, int capacity=64,
                  int buckets=128):
        cdef Block plan
        cdef object one = 1     # a Python number: 128 bits and more
        cdef object cells = one << (subnet_length - prefix_length)
        self.bits = 8 * len(network)
        memset(&plan, 0, sizeof(plan))
        plan.family = AF_INET if len(network) == 4 else AF_INET6
        plan.fib.network = _number(network)
        plan.fib.mask = _number((((one << prefix_length) - 1) << (self.bits - prefix_length)).to_bytes(
            len(network), "big"))
        plan.fib.shift = self.bits - subnet_length
        plan.fib.cell_count = cells if cells <= FIB_MAX_CELLS else 0
        plan.fib.bucket_mask = 0 if plan.fib.cell_count else buckets - 1
        plan.peers.capacity, plan.peers.bucket_mask, plan.own.capacity = capacity, 2 * capacity - 1, 8
        self.block = block_new(&plan)
        if self.block == NULL:
            raise MemoryError
        memset(&self.rules, 0, sizeof(Rules))
        self.rules.family, self.rules.source_check = plan.family, source_check
        self.rules.ttl_step, self.rules.coat_length = ttl_step, coat_length
        self.rules.checked, self.rules.ecn = bool(expected), ecn
        memcpy(&self.rules.expected, <const uint8_t *>expected, min(<size_t>len(expected), sizeof(Coat)))

    def __dealloc__(self):
        free(self.block)

    def set_subnet(self, bytes subnet not None, uint32_t slot):
        """Give the cell or bucket of a subnet to a slot; slot 0 takes it away."""
        cdef u128 number = _number(subnet) >> self.block.fib.shift
        if self.block.fib.cell_count:
            self.block.fib.cells[<uint32_t>(number - (self.block.fib.network >> self.block.fib.shift))] = slot
        elif slot:
            fib_hash_set(&self.block.fib, number, slot)
        else:
            fib_hash_delete(&self.block.fib, number)

    def set_peer(self, uint32_t slot, bytes address):
        """Enter a peer by its packed underlay address; None takes it away."""
        cdef Peer *peer = &self.block.peers.slots[slot]
        if peer.generation:
            peer_leave(&self.block.peers, slot, self.block.family)
            memset(peer, 0, sizeof(Peer))
        if address is None:
            return
        _underlay(&peer.underlay, address)
        peer.generation = 1
        peer_enter(&self.block.peers, slot, self.block.family)

    def set_own(self, list addresses not None):
        """Tell at most eight packed addresses of this node."""
        for i, address in enumerate(addresses):
            self.block.own.addresses[<int>i] = _number(address)
        self.block.own.count = len(addresses)

    def find(self, bytes address not None):
        """Return the slot of the peer at a packed underlay address."""
        cdef Underlay sender
        _underlay(&sender, address)
        return peer_find(&self.block.peers, &sender, self.block.family)

    def lookup(self, bytes address not None):
        """Return the slot for a packed overlay address."""
        return next_hop(self.block, _number(address))

    def lookups(self, const uint8_t[::1] addresses not None, uint32_t[::1] slots not None):
        """Look up packed addresses one after the other into `slots`, without the GIL."""
        cdef Py_ssize_t size = self.bits // 8
        cdef Py_ssize_t i
        cdef const uint8_t *at
        cdef uint32_t word
        if addresses.shape[0] < size * slots.shape[0]:
            raise ValueError("fewer addresses than slots")
        with nogil:
            for i in range(slots.shape[0]):
                at = &addresses[i * size]
                if size == 4:
                    memcpy(&word, at, 4)
                    slots[i] = next_hop(self.block, ntohl(word))
                else:
                    slots[i] = next_hop(self.block, load128(at))

    def out(self, bytes packet not None):
        """Decide on a packet from the TUN: (outcome, slot, packet as it then is)."""
        cdef uint8_t *arena = _copy(packet)
        cdef Packet described
        memset(&described, 0, sizeof(Packet))
        described.length = len(packet)
        cdef int outcome = forward_out(self.block, &self.rules, arena, &described)
        result = outcome, described.slot, arena[described.at:described.at + described.length]
        free(arena)
        return result

    def into(self, bytes sender not None, bytes datagram not None, int ecn=0):
        """Decide on a datagram from the underlay with `ecn` outside: (outcome, slot, packet as it then is)."""
        cdef Underlay address
        cdef uint8_t *arena = _copy(datagram)
        cdef Packet described
        memset(&described, 0, sizeof(Packet))
        described.length, described.ecn = len(datagram), ecn
        _underlay(&address, sender)
        cdef int outcome = forward_in(self.block, &self.rules, &address, arena, &described)
        result = outcome, described.slot, arena[described.at:described.at + described.length]
        free(arena)
        return result


cdef int _underlay(Underlay *underlay, bytes address) except -1:
    """Fill a socket address from a packed one."""
    memset(underlay, 0, sizeof(Underlay))
    if len(address) == 4:
        underlay.ipv4.sin_family = AF_INET
        memcpy(&underlay.ipv4.sin_addr, <const uint8_t *>address, 4)
    else:
        underlay.ipv6.sin6_family = AF_INET6
        memcpy(&underlay.ipv6.sin6_addr, <const uint8_t *>address, 16)
    return 0


cdef struct Stamp:
    # A block for RcuTrial: as long as it may be read, all its words are the same.
    Retired retired
    uint64_t words[512]


cdef class RcuTrial:
    """Readers and a writer on one Rcu: a reader that ever sees a block mixed or freed has found an error."""

    cdef Rcu *rcu
    cdef readonly int allocated

    def __cinit__(self):
        self.rcu = rcu_new()
        if self.rcu == NULL:
            raise MemoryError
        self.publish(1)

    def __dealloc__(self):
        rcu_free(self.rcu)

    def publish(self, uint64_t stamp):
        """Publish a block full of `stamp`; free what no reader can hold; return how many blocks remain."""
        cdef Stamp *block = <Stamp *>malloc(sizeof(Stamp))
        cdef Retired *old
        cdef int i
        if block == NULL:
            raise MemoryError
        for i in range(512):
            block.words[i] = stamp
        self.allocated += 1
        rcu_publish(self.rcu, &block.retired)
        while True:
            old = rcu_reclaim(self.rcu)
            if old == NULL:
                return self.allocated
            memset(old, 0xFF, sizeof(Stamp))
            free(old)
            self.allocated -= 1

    def read(self, int place, int batches):
        """Be the reader at `place` for so many batches; return how many saw a mixed block."""
        if not 0 <= place < RCU_READERS:
            raise ValueError(f"place {place}: there are {RCU_READERS}")
        cdef Reader *reader = &self.rcu.readers[place]
        cdef const Stamp *block
        cdef uint64_t mixed = 0
        cdef int batch, i
        with nogil:
            for batch in range(batches):
                block = <const Stamp *>rcu_online(self.rcu, reader)
                for i in range(1, 512):
                    mixed += block.words[i] != block.words[0]
                if batch & 7 == 0:
                    rcu_offline(reader)
            rcu_offline(reader)
        return mixed

    def hold(self, int place):
        """Begin a batch at `place` and stay in it until let_go()."""
        rcu_online(self.rcu, &self.rcu.readers[place])

    def let_go(self, int place):
        """End the batch begun by hold()."""
        rcu_offline(&self.rcu.readers[place])
