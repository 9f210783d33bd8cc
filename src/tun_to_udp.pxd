# Out: packets that the kernel routes into the TUN leave as datagrams for the node that leases their destination.
#
#   read (tun) -> decide (forward) -> dress (encap) -> send (udp); what ends here is answered with ICMP, out of the TUN
#
# Each pass goes over one batch. A batch ends when the TUN has no more; then the loop sleeps. Owns the Way's batch;
# the block is borrowed from rcu_online() to the end of the batch. Back-pressure: when the socket's buffer is full,
# the loop waits for it once per batch, and for a bounded time, since it holds a block meanwhile; what then finds no
# place is dropped.

from libc.errno cimport EAGAIN, EMSGSIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from posix.time cimport timespec

from batch cimport Packet, batch_add, batch_clear, batch_has_room
from block cimport Block
from counters cimport BATCHES, FORWARD, OUTER_FRAGMENTED, SEND_WAITS, SENT, TOO_BIG, Outcome, count_event, count_peer
from encap cimport coat_on
from forward cimport forward_out
from peer cimport AF_INET, Peer
from rcu cimport rcu_offline, rcu_online
from tun cimport tun_read
from udp cimport path_mtu, send_outcome, udp_send, udp_send_fragmented
from way cimport POLLIN, POLLOUT, Way, answer, monotonic, wait_for
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, Ipv4Header
from wire.ipv6 cimport IPV6_MINIMUM_MTU
from wire.order cimport htons

cdef enum:
    # Our choice: longer than a healthy interface needs to drain some of its queue, short enough for a publish.
    SEND_WAIT = 10_000_000      # nanoseconds


cdef inline int read_packets(Way *way) noexcept nogil:
    """Fill the batch from the TUN; return 1 if there may be more, 0 if it is drained, or -errno."""
    cdef ssize_t length
    batch_clear(&way.batch)
    while batch_has_room(&way.batch, way.rules.coat_length):
        length = tun_read(way.tun, way.batch.arena + way.batch.cursor + way.rules.coat_length)
        if length < 0:
            return 0 if length == -EAGAIN else <int>length
        batch_add(&way.batch, way.rules.coat_length, <uint32_t>length)
    return 1


cdef inline void decide(Way *way, const Block *block) noexcept nogil:
    """Give each packet its outcome, or FORWARD and its peer, and put the coat on those that go."""
    cdef uint8_t *arena = way.batch.arena
    cdef Packet *packet
    cdef uint32_t i
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        packet.outcome = forward_out(block, &way.rules, arena, packet)
        if packet.outcome == FORWARD:
            coat_on(&way.rules, &block.peers.slots[packet.slot], arena + packet.at)
        else:
            answer(way, block, arena + packet.at, packet.length, <Outcome>packet.outcome, 0)


cdef inline bint may_fragment(const Way *way, const uint8_t *inner, uint32_t length) noexcept nogil:
    """Tell whether a packet that is too big may be fragmented: IPv4 without DF, IPv6 that every link must carry."""
    if way.rules.family == AF_INET:
        return (<const Ipv4Header *>inner).fragment & htons(IPV4_DONT_FRAGMENT) == 0
    return length <= IPV6_MINIMUM_MTU


cdef inline Outcome refused(Way *way, const Block *block, const Packet *packet, int error) noexcept nogil:
    """Name what the kernel said of a packet, keep it for the log, and tell the inner sender."""
    cdef Outcome outcome = send_outcome(error)
    way.last_error = error
    answer(way, block, way.batch.arena + packet.at, packet.length, outcome, 0)
    return outcome


cdef inline uint32_t tunnel_mtu(const Way *way, const Peer *peer, uint32_t length) noexcept nogil:
    """Return the size that a packet of `length` bytes, too big for the path to `peer`, should have had."""
    cdef uint32_t mtu = path_mtu(way.path, &peer.underlay, way.rules.family)
    # A path MTU that fits after all was learned between the two calls: any smaller size lets the sender try again.
    mtu = min(mtu - way.rules.overhead, length - 1) if mtu > way.rules.overhead else length - 1
    # RFC 2473, 7.1: below the minimum the tunnel fragments, and so never asks for less.
    return mtu if way.rules.family == AF_INET else max(mtu, <uint32_t>IPV6_MINIMUM_MTU)


cdef inline Outcome send_too_big(Way *way, const Block *block, const Packet *packet) noexcept nogil:
    """Fragment the datagram where the inner packet allows it, as a router would; else tell what would fit."""
    cdef const Peer *peer = &block.peers.slots[packet.slot]
    cdef const uint8_t *inner = way.batch.arena + packet.at
    cdef int error = EMSGSIZE
    if may_fragment(way, inner, packet.length):
        error = udp_send_fragmented(way.udp, inner - way.rules.coat_length, packet.length + way.rules.coat_length,
                                    &peer.underlay, way.rules.family)
    if error == 0:
        count_event(&way.counters, OUTER_FRAGMENTED)
        return SENT
    if error != EMSGSIZE:
        return refused(way, block, packet, error)
    answer(way, block, inner, packet.length, TOO_BIG, tunnel_mtu(way, peer, packet.length))
    return TOO_BIG


cdef inline Outcome send_packet(Way *way, const Block *block, const Packet *packet, bint *waited) noexcept nogil:
    """Send one packet to its peer and return what became of it."""
    cdef const Peer *peer = &block.peers.slots[packet.slot]
    cdef const uint8_t *payload = way.batch.arena + packet.at - way.rules.coat_length
    cdef uint32_t length = packet.length + way.rules.coat_length
    cdef int error = udp_send(way.udp, payload, length, &peer.underlay, way.rules.family)
    cdef timespec timeout
    if error == EAGAIN and not waited[0]:
        waited[0] = True
        count_event(&way.counters, SEND_WAITS)
        timeout.tv_sec, timeout.tv_nsec = 0, SEND_WAIT
        wait_for(way, way.udp, POLLOUT, &timeout)
        error = udp_send(way.udp, payload, length, &peer.underlay, way.rules.family)
    if error == EMSGSIZE:
        return send_too_big(way, block, packet)
    return SENT if error == 0 else refused(way, block, packet, error)


cdef inline void send_packets(Way *way, const Block *block) noexcept nogil:
    """Send what is to be forwarded; count every packet of the batch."""
    cdef bint waited = False
    cdef int64_t now = monotonic()
    cdef Packet *packet
    cdef uint32_t i
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        if packet.outcome == FORWARD:
            packet.outcome = send_packet(way, block, packet, &waited)
        if packet.outcome == SENT:
            count_peer(&way.peers[packet.slot], block.peers.slots[packet.slot].generation, packet.length, now)
        way.counters.outcome[packet.outcome] += 1
    way.counters.packets_in += way.batch.count


cdef inline int tun_to_udp(Way *way) noexcept nogil:
    """Run until stop (0) or until the TUN fails (-errno)."""
    cdef const Block *block
    cdef timespec at_once
    cdef int more
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    while True:
        block = <const Block *>rcu_online(way.rcu, way.reader)
        more = read_packets(way)
        if way.batch.count:
            count_event(&way.counters, BATCHES)
            decide(way, block)
            send_packets(way, block)
        rcu_offline(way.reader)
        if more < 0:
            return more
        # Drained: sleep. Otherwise only look, since a flood must not keep the loop from seeing stop.
        more = wait_for(way, way.tun, POLLIN, &at_once if more else NULL)
        if more <= 0:
            return more
