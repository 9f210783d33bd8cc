# Runs out of the door, and what the kernel says to them.
#
# A run is one UDP_SEGMENT message. When the kernel does not take it as such, its datagrams go one by one, so that each
# gets its own answer and none is lost with the others:
#
#   EMSGSIZE   some datagram is larger than the path MTU: those that fit go, the others are answered or fragmented
#   EIO        the route cannot cut messages (transformations): UDP_SEGMENT is given up, and said once
#   EINVAL     too many datagrams for this kernel, or again the path MTU, in older ones: fewer from now on, then none
#   EAGAIN     the socket's buffer is full: wait once per batch, and for a bounded time, since a block is held meanwhile
#   others     the same for every datagram of the run
#
# Where the socket lets the kernel fragment, EMSGSIZE is said of messages alone. Then its datagrams go singly, in
# fragments, and the inner sender of one that has DF is told what would fit, as the kernel's VXLAN tells it: so a bulk
# transfer soon fits the path, and nothing is lost until then.
#
# Owns nothing; works on the Way's run, which is empty afterwards.

from libc.errno cimport EAGAIN, EINVAL, EIO, EMSGSIZE
from libc.stdint cimport uint32_t
from posix.time cimport timespec

from block cimport Block
from counters cimport BYTES, MESSAGES, OUTER_FRAGMENTED, SEND_WAITS, SENT, TOO_BIG, Outcome, count_event, count_peer
from icmp cimport ERROR_MAX
from peer cimport AF_INET, Peer
from run cimport RUN_PACKETS_OLD, Run, run_clear, run_copy, run_length
from udp cimport path_mtu, send_outcome, udp_send_from, udp_send_fragmented, udp_send_run
from way cimport POLLOUT, Way, answer, wait_for
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, Ipv4Header
from wire.ipv6 cimport IPV6_MINIMUM_MTU
from wire.order cimport htons

cdef enum:
    # Our choice: longer than a healthy interface needs to drain some of its queue, short enough for a publish.
    SEND_WAIT = 10_000_000      # nanoseconds


cdef inline void settle(Way *way, const Block *block, Outcome outcome, uint32_t packets,
                        uint32_t length) noexcept nogil:
    """Count datagrams of the run, of `length` bytes together."""
    cdef uint32_t slot = way.run.slot
    way.counters.outcome[<int>outcome] += packets
    if outcome == SENT:
        length -= packets * way.rules.coat_length
        way.counters.event[<int>BYTES] += length
        count_peer(&way.peers[slot], block.peers.slots[slot].generation, packets, length, way.now)


cdef inline int socket_of(const Way *way) noexcept nogil:
    """Return the socket that the run leaves by."""
    return way.sources[way.run.lane >> 2]


cdef inline bint wait_once(Way *way) noexcept nogil:
    """Wait for the socket's buffer; False if this batch has done so before."""
    cdef timespec timeout
    if way.waited:
        return False
    way.waited = True
    count_event(&way.counters, SEND_WAITS)
    timeout.tv_sec, timeout.tv_nsec = 0, SEND_WAIT
    wait_for(way, socket_of(way), POLLOUT, &timeout)
    return True


cdef inline uint32_t gather(Way *way, uint32_t index) noexcept nogil:
    """Put the beginning of one inner packet of the run together in way.offender; return how much of it."""
    cdef uint32_t coat = way.rules.coat_length
    cdef uint32_t i
    cdef uint32_t length = run_copy(&way.run, index, way.offender, ERROR_MAX)
    for i in range(coat, length if coat else 0):
        way.offender[i - coat] = way.offender[i]
    return length - coat


cdef inline bint may_fragment(const Way *way, uint32_t length) noexcept nogil:
    """Tell whether the packet in way.offender may be fragmented: IPv4 without DF, IPv6 that every link must carry."""
    if way.rules.family == AF_INET:
        return (<const Ipv4Header *>way.offender).fragment & htons(IPV4_DONT_FRAGMENT) == 0
    return length <= IPV6_MINIMUM_MTU


cdef inline uint32_t tunnel_mtu(const Way *way, const Peer *peer, uint32_t length) noexcept nogil:
    """Return the size that a packet of `length` bytes, too big for the path to `peer`, should have had."""
    cdef uint32_t mtu = path_mtu(way.path, &peer.underlay, way.rules.family)
    # A path MTU that fits after all was learned between the two calls: any smaller size lets the sender try again.
    mtu = min(mtu - way.rules.overhead, length - 1) if mtu > way.rules.overhead else length - 1
    # RFC 2473, 7.1: below the minimum the tunnel fragments, and so never asks for less.
    return mtu if way.rules.family == AF_INET else max(mtu, <uint32_t>IPV6_MINIMUM_MTU)


cdef inline Outcome refused(Way *way, const Block *block, uint32_t index, int error) noexcept nogil:
    """Name what the kernel said of a datagram, keep it for the log, and tell the inner sender."""
    cdef Outcome outcome = send_outcome(error)
    cdef uint32_t quoted = gather(way, index)
    way.last_error = error
    answer(way, block, way.offender, quoted, outcome, 0)
    return outcome


cdef inline Outcome send_too_big(Way *way, const Block *block, uint32_t index) noexcept nogil:
    """Fragment the datagram where the inner packet allows it, as a router would; else tell what would fit."""
    cdef const Peer *peer = &block.peers.slots[way.run.slot]
    cdef uint32_t quoted = gather(way, index)
    cdef uint32_t length = run_length(&way.run, index) - way.rules.coat_length
    cdef int error = EMSGSIZE
    # What the kernel may fragment, and yet does not take, is larger than any IP packet.
    if not way.fragments and may_fragment(way, length):
        error = udp_send_fragmented(socket_of(way), &way.run, index, &peer.underlay, way.rules.family)
    if error == 0:
        count_event(&way.counters, OUTER_FRAGMENTED)
        return SENT
    if error != EMSGSIZE:
        return refused(way, block, index, error)
    answer(way, block, way.offender, quoted, TOO_BIG, tunnel_mtu(way, peer, length))
    return TOO_BIG


cdef inline bint tell_narrow(Way *way, const Block *block) noexcept nogil:
    """Where the path is too narrow for the run's datagrams, tell the first one's inner sender; return whether it is.

    One answer is enough for a run, of which most are of one flow; the others' turn comes with their own runs.
    """
    cdef const Peer *peer = &block.peers.slots[way.run.slot]
    cdef uint32_t mtu = path_mtu(way.path, &peer.underlay, way.rules.family)
    cdef uint32_t outer = way.rules.overhead - way.rules.coat_length
    cdef uint32_t quoted, length, i
    if way.run.size + outer <= mtu or mtu == 0:
        return False
    for i in range(way.run.count):
        way.counters.event[<int>OUTER_FRAGMENTED] += run_length(&way.run, i) + outer > mtu
    quoted = gather(way, 0)
    length = way.run.size - way.rules.coat_length
    if not may_fragment(way, length):
        answer(way, block, way.offender, quoted, TOO_BIG, tunnel_mtu(way, peer, length))
    return True


cdef inline uint32_t send_singly(Way *way, const Block *block, uint32_t *taken) noexcept nogil:
    """Send the run's datagrams one by one; `taken`: how many the kernel took. Return how many were too big."""
    cdef const Peer *peer = &block.peers.slots[way.run.slot]
    cdef uint32_t i = 0
    cdef uint32_t too_big = 0
    cdef uint32_t length, k
    cdef int sent
    cdef Outcome outcome
    taken[0] = 0
    while i < way.run.count:
        sent = udp_send_from(socket_of(way), &way.run, i, &peer.underlay, way.rules.family, way.messages)
        if sent == -EAGAIN and wait_once(way):
            continue
        if sent > 0:
            length = 0
            for k in range(i, i + <uint32_t>sent):
                length += run_length(&way.run, k)
                count_event(&way.counters, MESSAGES)
            settle(way, block, SENT, <uint32_t>sent, length)
            i += <uint32_t>sent
            taken[0] += <uint32_t>sent
            continue
        too_big += sent == -EMSGSIZE
        outcome = send_too_big(way, block, i) if sent == -EMSGSIZE else refused(way, block, i, -sent)
        settle(way, block, outcome, 1, run_length(&way.run, i))
        i += 1
    return too_big


cdef inline void send_divided(Way *way, const Block *block, int error) noexcept nogil:
    """Send a run singly, that as one message met `error`; use smaller messages from now on, or none, if that helped.

    The path MTU is no reason to, nor is a peer to whom the kernel does not send single datagrams either.
    """
    cdef uint32_t taken
    cdef bint narrow = way.fragments and error != EIO and tell_narrow(way, block)
    cdef uint32_t too_big = send_singly(way, block, &taken)
    if error == EMSGSIZE or (error == EINVAL and (too_big or narrow)) or taken == 0:
        return
    way.segment_refused = error
    way.run_most = RUN_PACKETS_OLD if error == EINVAL and way.run_most > RUN_PACKETS_OLD else 1


cdef inline void send_run(Way *way, const Block *block) noexcept nogil:
    """Send and count the run in the making, whole or in single datagrams; it is empty then."""
    cdef Run *run = &way.run
    cdef const Peer *peer = &block.peers.slots[run.slot]
    cdef uint32_t i, taken
    cdef int error
    if run.count > 1 and way.run_most > 1:
        error = udp_send_run(socket_of(way), run, &peer.underlay, way.rules.family)
        if error == EAGAIN and wait_once(way):
            error = udp_send_run(socket_of(way), run, &peer.underlay, way.rules.family)
        if error == 0:
            count_event(&way.counters, MESSAGES)
            settle(way, block, SENT, run.count, run.bytes)
        elif error == EMSGSIZE or error == EIO or error == EINVAL:
            send_divided(way, block, error)
        else:
            for i in range(run.count):
                settle(way, block, refused(way, block, i, error), 1, 0)
    elif run.count:
        send_singly(way, block, &taken)
    run_clear(run)
