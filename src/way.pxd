# A way: all that one loop owns, and the three things that both loops do: sleep, read the clock, answer with ICMP.
#
# Each direction has a Way of its own and is its only writer. Memory: allocated with the Worker, freed with it; Python
# reads counters and peer counts meanwhile. The descriptors are Python's, and valid from the loop's start to its return.

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport clock_gettime, timespec

from batch cimport Batch
from block cimport Block
from coalesce cimport Merge
from counters cimport (ICMP_LIMITED, ICMP_NOT_ALLOWED, ICMP_SENT, NO_ROUTE, OUT_OF_NETWORK, OWN_SUBNET, TOO_BIG,
                       TTL_EXPIRED, UNDERLAY_UNREACHABLE, WAKE_UPS, Counters, Outcome, PeerCount,
                       count_event)
from encap cimport Rules
from icmp cimport (ERROR_MAX, Limiter, icmp_allowed_ipv4, icmp_allowed_ipv6, icmp_error_ipv4, icmp_error_ipv6,
                   limiter_take)
from peer cimport AF_INET, Underlay
from rcu cimport Rcu, Reader
from run cimport RUN_PACKETS, Run
from tun cimport tun_write
from udp cimport mmsghdr
from wire.ethernet cimport MAC_LENGTH, EthernetHeader
from wire.icmp cimport (ICMP_FRAGMENTATION_NEEDED, ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE, ICMP_UNREACHABLE_NET,
                        ICMPV6_PACKET_TOO_BIG, ICMPV6_TIME_EXCEEDED, ICMPV6_UNREACHABLE, ICMPV6_UNREACHABLE_NO_ROUTE)
from wire.ipv4 cimport Ipv4Header
from wire.ipv6 cimport Ipv6Header

cdef extern from "<time.h>" nogil:
    int CLOCK_MONOTONIC
    int CLOCK_MONOTONIC_COARSE

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    short POLLOUT
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *signals)

cdef enum:
    # Our choice: more than a lane's worth of entropy for any router, and descriptors that a process can spare.
    SOURCES_MAX = 64
    LINK_MAX = 14

cdef struct Way:
    int tun
    int udp
    int sources[SOURCES_MAX]    # sockets that flows are spread over by lane; tun_to_udp only
    uint32_t source_count       # 1: all leaves by `udp`
    int path                    # a socket for path_mtu() alone
    int stop                    # an eventfd: readable means stop
    Rules rules
    Rcu *rcu
    Reader *reader
    Batch batch
    Underlay *senders           # BATCH_PACKETS, by the packet's message; udp_to_tun only
    Run run                     # in the making; tun_to_udp only
    mmsghdr messages[RUN_PACKETS]   # to work with, of single datagrams
    Merge merge                 # in the making; udp_to_tun only
    uint32_t merge_slot         # of the peer whose packets it holds
    bint vnet                   # a vnet_hdr stands before each frame of the TUN
    bint uso                    # the TUN takes UDP super-packets
    uint32_t link               # bytes of the link header: 0 on a TUN, of the Ethernet header on a TAP
    bint gro                    # a message received may be several datagrams
    bint fragments              # the kernel may fragment what is sent
    uint32_t mtu                # of the TUN
    uint8_t *controls           # SLOTS times CONTROL bytes, where datagrams tell their ECN; udp_to_tun only
    uint32_t run_most           # datagrams in a message; 1: UDP_SEGMENT is not used
    int segment_refused         # errno that ended the use of UDP_SEGMENT, or lessened it; 0: none
    int uso_refused             # errno ... of UDP super-packets
    bint waited                 # for the socket's buffer, in this batch
    int64_t now                 # when this batch began
    Counters counters
    PeerCount *peers            # by slot
    Limiter limiter
    Underlay stranger           # the last unknown sender, for the log
    int64_t busy_poll           # nanoseconds to look again before sleeping
    bint running                # a thread is in the loop
    int last_error              # errno of the last send that failed, for the log
    uint8_t offender[ERROR_MAX]     # where a packet in pieces is put together, to be quoted
    uint8_t error[LINK_MAX + ERROR_MAX]     # where ICMP errors and neighbours' answers are made, frames as they are


cdef inline int64_t monotonic() noexcept nogil:
    """Return CLOCK_MONOTONIC in nanoseconds, exact to a timer tick; no system call, the vDSO answers."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline int64_t monotonic_exact() noexcept nogil:
    """Return CLOCK_MONOTONIC in nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline int spin(Way *way, pollfd *fds, int count) noexcept nogil:
    """Look again and again, letting others run between, for way.busy_poll nanoseconds; return as poll does."""
    cdef timespec at_once
    cdef int64_t end = monotonic_exact() + way.busy_poll
    cdef int ready = 0
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    while ready == 0 and monotonic_exact() < end:
        sched_yield()
        ready = ppoll(fds, count, &at_once, NULL)
    return ready


cdef inline int wait_for_any(Way *way, pollfd *fds, int count, const timespec *timeout) noexcept nogil:
    """Sleep until one of `fds` is ready or the time-out (NULL: never) ends: 1; until stop, fds[0]: 0; or -errno."""
    cdef int ready = 0
    fds[0].fd, fds[0].events = way.stop, POLLIN
    if timeout == NULL and way.busy_poll:
        ready = spin(way, fds, count)
    if ready == 0:
        ready = ppoll(fds, count, timeout, NULL)
        if timeout == NULL:
            count_event(&way.counters, WAKE_UPS)
    if ready < 0:
        return 1 if errno == EINTR else -errno
    return 0 if ready > 0 and fds[0].revents else 1


cdef inline int wait_for(Way *way, int fd, short events, const timespec *timeout) noexcept nogil:
    """Sleep as wait_for_any() until `fd` has `events`."""
    cdef pollfd fds[2]
    fds[1].fd, fds[1].events = fd, events
    return wait_for_any(way, fds, 2, timeout)


cdef inline bint allowed(Way *way, const uint8_t *packet, uint32_t length) noexcept nogil:
    """Tell whether an error about `packet` may go out, by the rules and by the rate; count it if not."""
    cdef bint ipv4 = way.rules.family == AF_INET
    cdef uint32_t word
    if not (icmp_allowed_ipv4(packet, length) if ipv4 else icmp_allowed_ipv6(packet, length)):
        count_event(&way.counters, ICMP_NOT_ALLOWED)
        return False
    if ipv4:
        word = (<const Ipv4Header *>packet).source
    else:
        memcpy(&word, (<const Ipv6Header *>packet).source + 12, 4)
    if not limiter_take(&way.limiter, word, monotonic()):
        count_event(&way.counters, ICMP_LIMITED)
        return False
    return True


cdef inline void write_own(Way *way, uint32_t length) noexcept nogil:
    """Write the packet of ours that lies behind the link header's place in way.error; a TAP's is from us to us."""
    cdef EthernetHeader *ethernet = <EthernetHeader *>way.error
    memcpy(ethernet.destination, way.rules.expected.ethernet.destination, MAC_LENGTH)
    memcpy(ethernet.source, way.rules.expected.ethernet.destination, MAC_LENGTH)
    ethernet.ethertype = way.rules.expected.ethernet.ethertype
    tun_write(way.tun, way.error + LINK_MAX - way.link, way.link + length, way.vnet)


cdef inline void answer_ipv4(Way *way, const Block *block, const uint8_t *packet, uint32_t length, Outcome outcome,
                             uint32_t mtu) noexcept nogil:
    """Write the ICMP error that goes with `outcome` into the TUN (RFC 792; MTU: RFC 1191, 4)."""
    cdef uint8_t kind = ICMP_UNREACHABLE
    cdef uint8_t code = ICMP_UNREACHABLE_NET
    if outcome == TTL_EXPIRED:
        kind, code = ICMP_TIME_EXCEEDED, 0
    elif outcome == TOO_BIG:
        code = ICMP_FRAGMENTATION_NEEDED
    length = icmp_error_ipv4(way.error + LINK_MAX, packet, length, block.own.tunnel, kind, code, mtu)
    write_own(way, length)


cdef inline void answer_ipv6(Way *way, const Block *block, const uint8_t *packet, uint32_t length, Outcome outcome,
                             uint32_t mtu) noexcept nogil:
    """Write the ICMPv6 error that goes with `outcome` into the TUN (RFC 4443, 3)."""
    cdef uint8_t kind = ICMPV6_UNREACHABLE
    if outcome == TTL_EXPIRED:
        kind = ICMPV6_TIME_EXCEEDED
    elif outcome == TOO_BIG:
        kind = ICMPV6_PACKET_TOO_BIG
    length = icmp_error_ipv6(way.error + LINK_MAX, packet, length, block.own.tunnel, kind, ICMPV6_UNREACHABLE_NO_ROUTE,
                             mtu)
    write_own(way, length)


cdef inline void answer(Way *way, const Block *block, const uint8_t *packet, uint32_t length, Outcome outcome,
                        uint32_t mtu) noexcept nogil:
    """Tell the inner sender why its packet ended here, where the RFCs want that; `mtu` goes with TOO_BIG, else 0."""
    if outcome not in (NO_ROUTE, OWN_SUBNET, OUT_OF_NETWORK, TTL_EXPIRED, TOO_BIG, UNDERLAY_UNREACHABLE):
        return
    if not allowed(way, packet, length):
        return
    count_event(&way.counters, ICMP_SENT)
    if way.rules.family == AF_INET:
        answer_ipv4(way, block, packet, length, outcome, mtu)
    else:
        answer_ipv6(way, block, packet, length, outcome, mtu)
