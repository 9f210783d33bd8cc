# In: datagrams of other nodes, checked and undressed, go into the TUN, and from there the kernel's way.
#
#   receive (udp) -> decide (forward: sender, coat, packet, source, destination, hop) -> write (tun)
#
# A TTL that ends here is answered to the remote sender: the error goes into the TUN too, and the kernel routes it out
# again. Each pass goes over one batch; the block is borrowed for as long as the batch lives. Nothing is truncated:
# every datagram finds room for the largest one. The TUN's MTU does not limit what is written into it; a packet of a
# peer with a larger MTU goes in whole, and the kernel answers as a router does where the next link is too narrow for
# it.

from libc.errno cimport EAGAIN, EBADF, ENOTSOCK
from libc.stdint cimport int64_t, uint8_t, uint32_t
from posix.time cimport timespec

from batch cimport Packet, batch_add, batch_clear, batch_has_room
from block cimport Block
from counters cimport BATCHES, DELIVERED, FORWARD, RECEIVE_ERRORS, UNKNOWN_SENDER, Outcome, count_event, count_peer
from fib cimport FIRST_PEER
from forward cimport forward_in
from rcu cimport rcu_offline, rcu_online
from tun cimport tun_write
from udp cimport udp_receive
from way cimport POLLIN, Way, answer, monotonic, wait_for


cdef inline int receive_datagrams(Way *way) noexcept nogil:
    """Fill the batch from the socket; return 1 if there may be more, 0 if drained, or -errno if it is no socket."""
    cdef ssize_t length
    batch_clear(&way.batch)
    while batch_has_room(&way.batch, 0):
        length = udp_receive(way.udp, way.batch.arena + way.batch.cursor, &way.senders[way.batch.count])
        if length == -EAGAIN:
            return 0
        if length == -EBADF or length == -ENOTSOCK:
            return <int>length
        if length < 0:
            # An error that the network reported for an earlier send; the socket lives on. Ends the batch, so that a
            # socket with nothing but errors does not hold the loop.
            count_event(&way.counters, RECEIVE_ERRORS)
            return 1
        batch_add(&way.batch, 0, <uint32_t>length)
    return 1


cdef inline Outcome pass_in(Way *way, const Block *block, Packet *packet, uint32_t place) noexcept nogil:
    """Decide on one datagram and write what may come in; return its outcome."""
    cdef uint8_t *arena = way.batch.arena
    cdef Outcome outcome = forward_in(block, &way.rules, &way.senders[place], arena, packet)
    if outcome == FORWARD:
        return tun_write(way.tun, arena + packet.at, packet.length)
    if outcome == UNKNOWN_SENDER:
        way.stranger = way.senders[place]
    answer(way, block, arena + packet.at, packet.length, outcome, 0)
    return outcome


cdef inline void write_packets(Way *way, const Block *block) noexcept nogil:
    """Bring the batch in, in order; count every datagram of it."""
    cdef int64_t now = monotonic()
    cdef Packet *packet
    cdef uint32_t i
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        packet.outcome = pass_in(way, block, packet, i)
        if packet.outcome == DELIVERED and packet.slot >= FIRST_PEER:
            count_peer(&way.peers[packet.slot], block.peers.slots[packet.slot].generation, packet.length, now)
        way.counters.outcome[packet.outcome] += 1
    way.counters.packets_in += way.batch.count


cdef inline int udp_to_tun(Way *way) noexcept nogil:
    """Run until stop (0) or until the socket fails (-errno)."""
    cdef const Block *block
    cdef timespec at_once
    cdef int more
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    while True:
        block = <const Block *>rcu_online(way.rcu, way.reader)
        more = receive_datagrams(way)
        if way.batch.count:
            count_event(&way.counters, BATCHES)
            write_packets(way, block)
        rcu_offline(way.reader)
        if more < 0:
            return more
        # Drained: sleep. Otherwise only look, since a flood must not keep the loop from seeing stop.
        more = wait_for(way, way.udp, POLLIN, &at_once if more else NULL)
        if more <= 0:
            return more
