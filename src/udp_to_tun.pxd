# In: datagrams of other nodes, checked and undressed, go into the TUN, and from there the kernel's way.
#
#   receive (udp) -> decide (forward: sender, coat, packet, source, destination, hop) -> coalesce -> deliver (tun)
#
# A message may be many datagrams of one sender (UDP_GRO): each gets a descriptor and a decision of its own. What then
# follows one another in one flow is merged into a frame for the TUN. Without UDP_GRO a call receives many messages of
# one datagram each, and all else is the same. What a peer's kernel left unfinished is finished, or handed on with the
# word that it is not (unfinished.pxd). A TTL that ends here is answered to the remote
# sender: the error goes into the TUN too, and the kernel routes it out again. Each pass goes over one batch; the
# block is borrowed for as long as the batch lives. Nothing is truncated: every message finds room for the largest
# one. The TUN's MTU does not limit what is written into it; a packet of a peer with a larger MTU goes in whole, and
# the kernel answers as a router does where the next link is too narrow for it.

from libc.errno cimport EAGAIN, EBADF, ENOTSOCK
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from posix.time cimport timespec

from batch cimport (BATCH_PACKETS, SLOT, SLOTS, Packet, batch_add, batch_clear, batch_has_room, batch_pass)
from block cimport Block
from coalesce cimport merge_add, merge_begin
from counters cimport (BATCHES, FORWARD, MESSAGES, RECEIVE_ERRORS, TRUNCATED, UNKNOWN_SENDER, Outcome, count_event)
from deliver cimport flush, write_super
from forward cimport forward_in
from inner cimport inner_total
from peer cimport AF_INET
from rcu cimport rcu_offline, rcu_online
from udp cimport Received, udp_receive, udp_receive_many, udp_told
from unfinished cimport finish
from way cimport POLLIN, Way, answer, monotonic, wait_for
from wire.ipv4 cimport IPV4_HEADER
from wire.ipv6 cimport IPV6_HEADER
from wire.vnet_hdr cimport VnetHeader

cdef enum:
    # Specification: UDP_MAX_SEGMENTS, more datagrams than any kernel puts into one message.
    MESSAGE_PACKETS = 128


cdef inline bint is_one(const Way *way, const Received *received) noexcept nogil:
    """Tell whether a message that names a size is one datagram: the size is its inner super-packet's then.

    Of several datagrams the first ends where the size says; of one, the inner packet is as long as the message.
    """
    cdef const uint8_t *inner = way.batch.arena + way.batch.cursor + way.rules.coat_length
    cdef uint32_t header = IPV4_HEADER if way.rules.family == AF_INET else IPV6_HEADER
    if way.rules.coat_length == 0 or received.length < way.rules.coat_length + header:
        return False
    return way.rules.coat_length + inner_total(way.rules.family, inner) == received.length


cdef inline void describe(Way *way, const Received *received) noexcept nogil:
    """Describe the datagrams of a message that was received at the cursor."""
    cdef uint32_t start = way.batch.cursor
    cdef uint32_t end = start + received.length
    cdef Packet *packet
    if received.whole and received.size < received.length and is_one(way, received):
        packet = batch_add(&way.batch, start, received.length)
        packet.size, packet.ecn = <uint16_t>received.size, received.ecn
    elif not received.whole or received.length > received.size * MESSAGE_PACKETS:
        # Without its true size a message cannot be divided; it counts as one.
        packet = batch_add(&way.batch, start, received.length)
        packet.outcome = TRUNCATED
    elif received.length == 0:
        batch_add(&way.batch, start, 0)
    else:
        while start < end:
            packet = batch_add(&way.batch, start, min(received.size, end - start))
            packet.ecn = received.ecn
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
    count = udp_receive_many(way.udp, way.batch.arena, way.senders, way.messages, way.controls)
    if count < 0:
        return receive_failed(way, -count)
    for i in range(count):
        udp_told(&way.messages[i].msg_hdr, way.messages[i].msg_len, &received)
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


cdef inline void write_packets(Way *way, const Block *block) noexcept nogil:
    """Bring in all that may come in, in order, merged where one continues the other."""
    cdef Packet *packet
    cdef uint8_t *inner
    cdef VnetHeader vnet
    cdef uint32_t i, segments
    way.now = monotonic()
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        if packet.outcome != FORWARD:
            continue
        inner = way.batch.arena + packet.at
        # Whoever wears no coat has no kernel for a peer.
        if way.rules.coat_length:
            segments = finish(inner, packet.length, packet.size, way.mtu, &vnet)
            if segments > 1:
                flush(way, block)
                way.merge_slot = packet.slot
                write_super(way, block, inner, packet.length, segments, &vnet)
                continue
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
