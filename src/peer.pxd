# Peer slots: for each node that leases a subnet its underlay address and its coat; found by slot or by underlay
# address.
#
# A slot is a small number that the control plane gives and keeps; its generation tells two peers apart that had the
# same slot one after the other. The slot's record is read only once published. What loops learn of a peer
# (counters.pxd) lives elsewhere, with the loop, and so survives every publish.
#
# Arrives: a slot number, or the sender of a datagram. Leaves: the peer's record, or the slot. Two nodes behind one
# address (NAT) are both entered; the look-up by address gives one of them.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from fib cimport SLOT_NONE

cdef enum:
    # Specification: the largest coat, vxlan's: VXLAN header 8 + inner Ethernet header 14 (RFC 7348, 5).
    COAT_MAX = 22

cdef extern from "<netinet/in.h>" nogil:
    int AF_INET
    int AF_INET6
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr

cdef union Underlay:
    # Address and port of a node as the socket calls want them; the worker's family says which member holds.
    sockaddr_in ipv4
    sockaddr_in6 ipv6

cdef struct Peer:
    Underlay underlay
    uint32_t generation         # 0: nobody has this slot
    uint8_t coat[COAT_MAX]      # header prefix put before each inner packet
    uint8_t padding[10]         # to 64 bytes, one cache line

cdef struct PeerTable:
    uint32_t capacity           # slots
    uint32_t bucket_mask        # buckets - 1, a power of two less one; at least twice the capacity
    Peer *slots
    uint32_t *buckets           # slot numbers by underlay address, SLOT_NONE where empty


cdef inline bint underlay_equal(const Underlay *a, const Underlay *b, int family) noexcept nogil:
    """Compare two underlay addresses; ports do not count, since NAT may change them."""
    if family == AF_INET:
        return a.ipv4.sin_addr.s_addr == b.ipv4.sin_addr.s_addr
    return memcmp(a.ipv6.sin6_addr.s6_addr, b.ipv6.sin6_addr.s6_addr, 16) == 0


cdef inline uint32_t underlay_hash(const Underlay *address, int family) noexcept nogil:
    """Spread an underlay address over 32 bits."""
    cdef const uint32_t *words = <const uint32_t *>address.ipv6.sin6_addr.s6_addr
    cdef uint64_t key = address.ipv4.sin_addr.s_addr
    if family == AF_INET6:
        key = (<uint64_t>(words[0] ^ words[2]) << 32) | (words[1] ^ words[3])
    return <uint32_t>((key * 0x9E3779B97F4A7C15ULL) >> 32)


cdef inline uint32_t peer_find(const PeerTable *peers, const Underlay *sender, int family) noexcept nogil:
    """Return the slot of the peer at the sender's underlay address, or SLOT_NONE."""
    cdef uint32_t index = underlay_hash(sender, family) & peers.bucket_mask
    cdef uint32_t slot
    while True:
        slot = peers.buckets[index]
        if slot == SLOT_NONE or underlay_equal(&peers.slots[slot].underlay, sender, family):
            return slot
        index = (index + 1) & peers.bucket_mask


cdef inline void peer_enter(PeerTable *peers, uint32_t slot, int family) noexcept nogil:
    """Make a slot findable by the underlay address that its record holds."""
    cdef uint32_t index = underlay_hash(&peers.slots[slot].underlay, family) & peers.bucket_mask
    while peers.buckets[index] != SLOT_NONE:
        index = (index + 1) & peers.bucket_mask
    peers.buckets[index] = slot


cdef inline void peer_leave(PeerTable *peers, uint32_t slot, int family) noexcept nogil:
    """Undo peer_enter() while the record still holds the address, and re-enter what probed past it."""
    cdef uint32_t index = underlay_hash(&peers.slots[slot].underlay, family) & peers.bucket_mask
    cdef uint32_t moved
    while peers.buckets[index] != slot:
        if peers.buckets[index] == SLOT_NONE:
            return
        index = (index + 1) & peers.bucket_mask
    peers.buckets[index] = SLOT_NONE
    index = (index + 1) & peers.bucket_mask
    while peers.buckets[index] != SLOT_NONE:
        moved = peers.buckets[index]
        peers.buckets[index] = SLOT_NONE
        peer_enter(peers, moved, family)
        index = (index + 1) & peers.bucket_mask
