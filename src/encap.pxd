# Coat on, coat off: the header prefix between the outer UDP header and the inner packet.
#
# A coat is bytes made ready once per peer and copied before each packet (peer.pxd). flannel's udp backend wears none:
# the datagram's payload is the bare inner packet, so its coat has length 0 and both functions come to nothing. What a
# backend is, a worker knows only as the record Rules; no loop asks for a backend's name.

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from batch cimport Packet
from coat cimport Coat, coat_check
from counters cimport FORWARD, TRUNCATED, Outcome
from peer cimport Peer

cdef enum SourceCheck:
    SOURCE_OFF          # any sender, as flannel
    SOURCE_KNOWN        # the outer source is the underlay address of some peer
    SOURCE_STRICT       # ... of the very peer that leases the inner source

cdef struct Rules:
    int family              # AF_INET or AF_INET6, of overlay and underlay alike
    uint8_t coat_length     # bytes, at most COAT_MAX
    uint8_t ttl_step        # hops that the tunnel counts at this end
    uint8_t source_check    # a SourceCheck
    uint16_t overhead       # bytes that the tunnel adds to an inner packet: outer IP, UDP, coat
    bint checked            # the coat of what arrives must be as expected
    bint ecn                # congestion marks pass between inner and outer header (ecn.pxd)
    Coat expected


cdef inline void coat_on(const Rules *rules, const Peer *peer, uint8_t *packet) noexcept nogil:
    """Put the peer's coat into the gap before the packet."""
    memcpy(packet - rules.coat_length, peer.coat, rules.coat_length)


cdef inline Outcome coat_off(const Rules *rules, const uint8_t *arena, Packet *packet) noexcept nogil:
    """Check the coat, if there is anything to check, and step over it: the descriptor then tells the inner packet."""
    cdef Outcome outcome
    if packet.length < rules.coat_length:
        return TRUNCATED
    if rules.checked:
        outcome = coat_check(<const Coat *>(arena + packet.at), &rules.expected)
        if outcome != FORWARD:
            return outcome
    packet.at += rules.coat_length
    packet.length -= rules.coat_length
    return FORWARD
