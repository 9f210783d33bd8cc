# A flow as a number: equal for all packets of one flow, spread evenly over different flows.
#
# By it a sender's port is chosen on the underlay (RFC 7348, 5), whose routers and cards spread by outer ports what they
# cannot see inside. Arrives: a validated inner packet. Leaves: a hash of its addresses, protocol and, where the packet
# shows them, ports. Not shown are those of fragments, all of them, so that a datagram's fragments stay together; nor
# those behind IPv6 extension headers, whose packets go by their addresses alone.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from peer cimport AF_INET
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from wire.ipv6 cimport IPV6_HEADER, Ipv6Header
from wire.order cimport htons


cdef inline uint64_t flow_mix(uint64_t state, uint64_t word) noexcept nogil:
    """Take one word in; an odd factor near the golden ratio, and the high bits brought down."""
    state = (state ^ word) * 0x9E3779B97F4A7C15ULL
    return state ^ state >> 32


cdef inline uint32_t flow_hash(int family, const uint8_t *packet, uint32_t length) noexcept nogil:
    """Return the hash of a packet's flow, 32 bits."""
    cdef const Ipv4Header *ip4 = <const Ipv4Header *>packet
    cdef const Ipv6Header *ip6 = <const Ipv6Header *>packet
    cdef uint64_t words[4]
    cdef uint64_t state
    cdef uint32_t ports = 0
    cdef uint32_t transport = IPV6_HEADER
    cdef uint8_t protocol
    cdef int i
    if family == AF_INET:
        transport = (packet[0] & 0x0F) * 4
        protocol = ip4.protocol
        memcpy(words, &ip4.source, 8)
        state = flow_mix(protocol, words[0])
        if ip4.fragment & ~htons(IPV4_DONT_FRAGMENT):
            return <uint32_t>flow_mix(state, 0)
    else:
        protocol = ip6.next_header
        memcpy(words, ip6.source, 32)
        state = protocol
        for i in range(4):
            state = flow_mix(state, words[i])
    if (protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP) and transport + 4 <= length:
        memcpy(&ports, packet + transport, 4)
    return <uint32_t>flow_mix(state, ports)
