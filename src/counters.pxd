# What became of each packet: one outcome by name, exactly one per inner packet.
#
# The law: packets in = sum of outcomes, per loop, whenever the traffic rests. Each loop owns one Counters and is its
# only writer; Python reads without a lock (aligned 64-bit loads). What happens besides, per message or per wake-up,
# has counters of its own that are no part of the law. Names and meanings stand once, in names.pxd.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum Outcome:
    # handed over
    SENT
    DELIVERED
    # the packet itself
    NOT_IP
    OTHER_FAMILY
    BAD_HEADER
    BAD_OFFLOAD
    TRUNCATED
    # what is around it
    BAD_FLAGS
    OTHER_VNI
    OTHER_MAC
    OWN_MAC
    OTHER_ETHERTYPE
    NEIGHBOUR_TOLD
    NEIGHBOUR_UNKNOWN
    # where it wants to go
    NO_ROUTE
    OWN_SUBNET
    OUT_OF_NETWORK
    NOT_OURS
    TTL_EXPIRED
    TOO_BIG
    # where it comes from
    UNKNOWN_SENDER
    SOURCE_MISMATCH
    OWN_SOURCE
    CE_LOST
    # what the kernel answered
    SEND_BUFFER_FULL
    UNDERLAY_UNREACHABLE
    SEND_FORBIDDEN
    SEND_ERROR
    TUN_DOWN
    TUN_FULL
    TUN_REFUSED
    OUTCOMES
    # Not an outcome: the packet is to be passed on, and what the kernel says will decide.
    FORWARD

cdef enum Event:
    WAKE_UPS
    BATCHES
    MESSAGES
    FRAMES
    SUPER_PACKETS
    ICMP_SENT
    ICMP_NOT_ALLOWED
    ICMP_LIMITED
    OUTER_FRAGMENTED
    RECEIVE_ERRORS
    SEND_WAITS
    BYTES
    EVENTS

cdef struct Counters:
    uint64_t packets_in
    uint64_t outcome[OUTCOMES]
    uint64_t event[EVENTS]

cdef struct PeerCount:
    # What a loop learned of the peer in one slot; another generation in the slot starts it anew.
    uint64_t generation
    uint64_t packets
    uint64_t bytes          # of inner packets
    int64_t last            # CLOCK_MONOTONIC, nanoseconds


cdef inline void count_event(Counters *counters, Event event) noexcept nogil:
    """Count one event."""
    counters.event[<int>event] += 1


cdef inline void count_peer(PeerCount *count, uint32_t generation, uint32_t packets, uint32_t length,
                            int64_t now) noexcept nogil:
    """Count inner packets of `length` bytes together for the peer whose slot this is."""
    if count.generation != generation:
        count.packets = 0
        count.bytes = 0
        count.generation = generation
    count.packets += packets
    count.bytes += length
    count.last = now
