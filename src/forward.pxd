# The two decisions: where does this packet go, and may it come in?
#
# Pure: bytes and the published block in, an outcome out; nothing is sent, counted or allocated here. FORWARD means
# that the packet is to be passed on, with its TTL already stepped. Every other outcome is final, and the packet is as
# it came.
#
#   forward_out (from the TUN)      inner_check -> FIB -> hop
#   forward_in  (from the underlay) sender known? -> coat off -> inner_check -> source ours? destination ours?
#                                   -> congestion marks -> hop
#
# The source check stands first: what an unknown host sends is not even looked at.

from libc.stdint cimport uint8_t, uint32_t

from batch cimport Packet
from block cimport Block, block_owns
from counters cimport (FORWARD, NO_ROUTE, NOT_OURS, OUT_OF_NETWORK, OWN_SOURCE, OWN_SUBNET, SOURCE_MISMATCH,
                       TTL_EXPIRED, UNKNOWN_SENDER, Outcome)
from ecn cimport ecn_in
from encap cimport SOURCE_OFF, SOURCE_STRICT, Rules, coat_off
from fib cimport FIRST_PEER, SLOT_NONE, SLOT_OUTSIDE, SLOT_OWN, fib_ipv4, fib_ipv6
from hop cimport hop_ipv4, hop_ipv6
from inner cimport inner_check
from peer cimport AF_INET, Underlay, peer_find, underlay_equal
from wire.ipv4 cimport Ipv4Header
from wire.ipv6 cimport Ipv6Header
from wire.order cimport load128, ntohl, u128


cdef inline u128 inner_source(int family, const uint8_t *packet) noexcept nogil:
    """Return the source address of a validated packet as a number."""
    if family == AF_INET:
        return ntohl((<const Ipv4Header *>packet).source)
    return load128((<const Ipv6Header *>packet).source)


cdef inline u128 inner_destination(int family, const uint8_t *packet) noexcept nogil:
    """Return the destination address of a validated packet as a number."""
    if family == AF_INET:
        return ntohl((<const Ipv4Header *>packet).destination)
    return load128((<const Ipv6Header *>packet).destination)


cdef inline uint32_t next_hop(const Block *block, u128 address) noexcept nogil:
    """Look an overlay address up."""
    if block.family == AF_INET:
        return fib_ipv4(&block.fib, <uint32_t>address)
    return fib_ipv6(&block.fib, address)


cdef inline Outcome step(const Rules *rules, uint8_t *packet) noexcept nogil:
    """Count this end of the tunnel as a hop, if the backend does."""
    cdef bint alive
    if rules.family == AF_INET:
        alive = hop_ipv4(<Ipv4Header *>packet, rules.ttl_step)
    else:
        alive = hop_ipv6(<Ipv6Header *>packet, rules.ttl_step)
    return FORWARD if alive else TTL_EXPIRED


cdef inline Outcome forward_out(const Block *block, const Rules *rules, uint8_t *arena,
                                Packet *packet) noexcept nogil:
    """Decide on a packet that the kernel gave to the TUN; with FORWARD its descriptor holds the peer's slot."""
    cdef uint8_t *inner = arena + packet.at
    cdef Outcome outcome = inner_check(rules.family, inner, &packet.length)
    if outcome != FORWARD:
        return outcome
    packet.slot = next_hop(block, inner_destination(rules.family, inner))
    if packet.slot >= FIRST_PEER:
        return step(rules, inner)
    if packet.slot == SLOT_OUTSIDE:
        return OUT_OF_NETWORK
    return OWN_SUBNET if packet.slot == SLOT_OWN else NO_ROUTE


cdef inline Outcome check_source(const Block *block, const Rules *rules, const Underlay *sender, u128 source,
                                 uint32_t slot) noexcept nogil:
    """Refuse an inner source that is ours and, in a strict worker, one that the sender does not lease."""
    if slot == SLOT_OWN or (slot < FIRST_PEER and block_owns(block, source)):
        return OWN_SOURCE
    if rules.source_check == SOURCE_STRICT and (
            slot < FIRST_PEER or not underlay_equal(&block.peers.slots[slot].underlay, sender, rules.family)):
        return SOURCE_MISMATCH
    return FORWARD


cdef inline Outcome forward_in(const Block *block, const Rules *rules, const Underlay *sender, uint8_t *arena,
                               Packet *packet) noexcept nogil:
    """Decide on a datagram from the underlay; its descriptor then tells the inner packet and the sender's slot."""
    cdef uint8_t *inner
    cdef u128 source
    cdef Outcome outcome
    packet.slot = peer_find(&block.peers, sender, rules.family)
    if packet.slot == SLOT_NONE and rules.source_check != SOURCE_OFF:
        return UNKNOWN_SENDER
    outcome = coat_off(rules, arena, packet)
    if outcome != FORWARD:
        return outcome
    inner = arena + packet.at
    outcome = inner_check(rules.family, inner, &packet.length)
    if outcome != FORWARD:
        return outcome
    source = inner_source(rules.family, inner)
    outcome = check_source(block, rules, sender, source, next_hop(block, source))
    if outcome != FORWARD:
        return outcome
    if next_hop(block, inner_destination(rules.family, inner)) != SLOT_OWN:
        return NOT_OURS
    if rules.ecn:
        outcome = ecn_in(rules.family, inner, packet.ecn)
        if outcome != FORWARD:
            return outcome
    return step(rules, inner)
