# In: datagrams of other nodes, checked and undressed, go into the TUN, and from there the kernel's way.
#
#   receive (udp) -> decide (forward: sender, coat, packet, source, destination, hop) -> coalesce -> write (tun)
#
# A message may be many datagrams of one sender (UDP_GRO): each gets a descriptor and a decision of its own. What then
# follows one another in one flow is merged into a frame for the TUN. Without UDP_GRO a call receives many messages of
# one datagram each, and all else is the same. A TTL that ends here is answered to the remote
# sender: the error goes into the TUN too, and the kernel routes it out again. Each pass goes over one batch; the
# block is borrowed for as long as the batch lives. Nothing is truncated: every message finds room for the largest
# one. The TUN's MTU does not limit what is written into it; a packet of a peer with a larger MTU goes in whole, and
# the kernel answers as a router does where the next link is too narrow for it.

from libc.errno cimport EAGAIN, EBADF, EINVAL, ENOTSOCK
from libc.stdint cimport uint8_t, uint32_t
from posix.time cimport timespec

from batch cimport (BATCH_PACKETS, SLOT, SLOTS, Packet, batch_add, batch_clear, batch_has_room, batch_pass)
from block cimport Block
from coalesce cimport Merge, merge_add, merge_begin, merge_finish, merge_undo
from counters cimport (BATCHES, BYTES, DELIVERED, FORWARD, FRAMES, MESSAGES, RECEIVE_ERRORS, SUPER_PACKETS, TRUNCATED,
                       TUN_REFUSED, UNKNOWN_SENDER, Outcome, count_event, count_peer)
from fib cimport FIRST_PEER
from forward cimport forward_in
from rcu cimport rcu_offline, rcu_online
from tun cimport tun_write, tun_write_pieces
from udp cimport MSG_CTRUNC, MSG_TRUNC, Received, udp_receive, udp_receive_many
from way cimport POLLIN, Way, answer, monotonic, wait_for
from wire.ipv4 cimport PROTOCOL_UDP

cdef enum:
    # Specification: UDP_MAX_SEGMENTS, more datagrams than any kernel puts into one message.
    MESSAGE_PACKETS = 128


cdef inline void describe(Way *way, const Received *received) noexcept nogil:
    """Describe the datagrams of a message that was received at the cursor."""
    cdef uint32_t start = way.batch.cursor
    cdef uint32_t end = start + received.length
    cdef Packet *packet
    if not received.whole or received.length > received.size * MESSAGE_PACKETS:
        # Without its true size a message cannot be divided; it counts as one.
        packet = batch_add(&way.batch, start, received.length)
        packet.outcome = TRUNCATED
    elif received.length == 0:
        batch_add(&way.batch, start, 0)
    else:
        while start < end:
            batch_add(&way.batch, start, min(received.size, end - start))
            start += received.size
    batch_pass(&way.batch, end)


cdef inline int receive_failed(Way *way, int error) noexcept nogil:
    """Return 0 if the socket is drained, -errno if it is no socket, and 1 if all else goes on."""
    if error == EAGAIN:
        return 0
    if error == EBADF or error == ENOTSOCK:
        return -error
    # An error that the network reported for an earlier send; the socket lives on. Ends the batch, so that a socket with
    # nothing but errors does not hold the loop.
    count_event(&way.counters, RECEIVE_ERRORS)
    return 1


cdef inline int receive_messages(Way *way) noexcept nogil:
    """Fill the batch from the socket; return 1 if there may be more, 0 if drained, or -errno if it is no socket."""
    cdef Received received
    cdef int error
    batch_clear(&way.batch)
    while batch_has_room(&way.batch, MESSAGE_PACKETS):
        error = udp_receive(way.udp, way.batch.arena + way.batch.cursor, &way.senders[way.batch.messages], &received)
        if error:
            return receive_failed(way, error)
        count_event(&way.counters, MESSAGES)
        describe(way, &received)
    return 1


cdef inline int receive_datagrams(Way *way) noexcept nogil:
    """Fill the batch with one call, as receive_messages(), where each message is one datagram."""
    cdef Received received
    cdef int count, i
    batch_clear(&way.batch)
    count = udp_receive_many(way.udp, way.batch.arena, way.senders, way.messages)
    if count < 0:
        return receive_failed(way, -count)
    for i in range(count):
        received.length = received.size = way.messages[i].msg_len
        received.whole = not way.messages[i].msg_hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)
        count_event(&way.counters, MESSAGES)
        way.batch.cursor = <uint32_t>i * SLOT
        describe(way, &received)
    return 1 if count == SLOTS else 0


cdef inline void decide(Way *way, const Block *block) noexcept nogil:
    """Give each datagram its outcome, or FORWARD; answer and count what ends here."""
    cdef uint8_t *arena = way.batch.arena
    cdef Packet *packet
    cdef Outcome outcome
    cdef uint32_t i
    way.counters.packets_in += way.batch.count
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        outcome = <Outcome>packet.outcome
        if outcome == FORWARD:
            outcome = forward_in(block, &way.rules, &way.senders[packet.message], arena, packet)
        packet.outcome = outcome
        if outcome == FORWARD:
            continue
        if outcome == UNKNOWN_SENDER:
            way.stranger = way.senders[packet.message]
        answer(way, block, arena + packet.at, packet.length, outcome, 0)
        way.counters.outcome[<int>outcome] += 1


cdef inline void settle(Way *way, const Block *block, Outcome outcome, uint32_t packets,
                        uint32_t length) noexcept nogil:
    """Count packets that were written, of `length` bytes together."""
    cdef uint32_t slot = way.merge_slot
    way.counters.outcome[<int>outcome] += packets
    if outcome != DELIVERED:
        return
    way.counters.event[<int>BYTES] += length
    if slot >= FIRST_PEER:
        count_peer(&way.peers[slot], block.peers.slots[slot].generation, packets, length, way.now)


cdef inline void write_singly(Way *way, const Block *block) noexcept nogil:
    """Write the packets of a refused frame one by one, as they came."""
    cdef Merge *merge = &way.merge
    cdef uint32_t length, i
    merge_undo(merge)
    for i in range(1, merge.count + 1):
        length = <uint32_t>merge.pieces[i].iov_len
        count_event(&way.counters, FRAMES)
        settle(way, block, tun_write(way.tun, <uint8_t *>merge.pieces[i].iov_base, length, way.vnet), 1, length)


cdef inline void flush(Way *way, const Block *block) noexcept nogil:
    """Write the frame in the making, if there is one, and count its packets."""
    cdef Merge *merge = &way.merge
    cdef Outcome outcome
    if merge.head == NULL:
        return
    merge_finish(merge)
    if way.vnet:
        outcome = tun_write_pieces(way.tun, merge.pieces, <int>merge.count + 1)
    else:
        outcome = tun_write_pieces(way.tun, &merge.pieces[1], 1)
    count_event(&way.counters, FRAMES)
    if outcome == TUN_REFUSED and merge.count > 1:
        # A kernel that grants UDP super-packets and then refuses one is not asked again.
        if merge.protocol == PROTOCOL_UDP:
            way.uso, way.uso_refused = False, EINVAL
        write_singly(way, block)
    else:
        if merge.count > 1:
            count_event(&way.counters, SUPER_PACKETS)
        settle(way, block, outcome, merge.count, merge.length + (merge.count - 1) * merge.header)
    merge.head = NULL


cdef inline void write_packets(Way *way, const Block *block) noexcept nogil:
    """Bring in all that may come in, in order, merged where one continues the other."""
    cdef Packet *packet
    cdef uint8_t *inner
    cdef uint32_t i
    way.now = monotonic()
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        if packet.outcome != FORWARD:
            continue
        inner = way.batch.arena + packet.at
        if (way.vnet and way.merge.head != NULL and way.merge_slot == packet.slot
                and merge_add(&way.merge, inner, packet.length)):
            continue
        flush(way, block)
        way.merge_slot = packet.slot
        merge_begin(&way.merge, inner, packet.length, way.uso)
    flush(way, block)


cdef inline int in_batch(Way *way) noexcept nogil:
    """Forward one batch; return 1 if there may be more, 0 if the socket is drained, or -errno if it failed."""
    cdef const Block *block = <const Block *>rcu_online(way.rcu, way.reader)
    cdef int more = receive_messages(way) if way.gro else receive_datagrams(way)
    if way.batch.count:
        count_event(&way.counters, BATCHES)
        decide(way, block)
        write_packets(way, block)
    rcu_offline(way.reader)
    return more


cdef inline int udp_to_tun(Way *way) noexcept nogil:
    """Run until stop (0) or until the socket fails (-errno)."""
    cdef timespec at_once
    cdef int more
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    while True:
        more = in_batch(way)
        if more < 0:
            return more
        # Drained: sleep. Otherwise only look, since a flood must not keep the loop from seeing stop.
        more = wait_for(way, way.udp, POLLIN, &at_once if more else NULL)
        if more <= 0:
            return more
