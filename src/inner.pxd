# The inner packet, validated once: past this room version, header length and total length are never checked again.
#
# Arrives: bytes that claim to be one IP packet, from the TUN or out of a datagram. Leaves: the packet's true length
# (what follows it is padding), or the reason why it is none. Not checked: the IPv4 header checksum, which the kernel
# has made or will verify (hop.pxd patches it, so a wrong one stays wrong), and whatever comes after the IP header.

from libc.stdint cimport uint8_t, uint32_t

from counters cimport BAD_HEADER, FORWARD, NOT_IP, OTHER_FAMILY, TRUNCATED, Outcome
from peer cimport AF_INET
from wire.ipv4 cimport IPV4_HEADER, Ipv4Header
from wire.ipv6 cimport IPV6_HEADER, Ipv6Header
from wire.order cimport ntohs


cdef inline Outcome inner_ipv4(const uint8_t *packet, uint32_t *length) noexcept nogil:
    """Validate an IPv4 packet of at least one byte (RFC 791, 3.1); `length` becomes its total length."""
    cdef const Ipv4Header *ip = <const Ipv4Header *>packet
    cdef uint32_t header = (packet[0] & 0x0F) * 4
    cdef uint32_t total
    if length[0] < IPV4_HEADER:
        return TRUNCATED
    total = ntohs(ip.total_length)
    if header < IPV4_HEADER or total < header:
        return BAD_HEADER
    if total > length[0]:
        return TRUNCATED
    length[0] = total
    return FORWARD


cdef inline Outcome inner_ipv6(const uint8_t *packet, uint32_t *length) noexcept nogil:
    """Validate an IPv6 packet of at least one byte (RFC 8200, 3); `length` becomes header plus payload."""
    cdef const Ipv6Header *ip = <const Ipv6Header *>packet
    cdef uint32_t total
    if length[0] < IPV6_HEADER:
        return TRUNCATED
    total = IPV6_HEADER + ntohs(ip.payload_length)
    if total > length[0]:
        return TRUNCATED
    length[0] = total
    return FORWARD


cdef inline uint32_t inner_total(int family, const uint8_t *packet) noexcept nogil:
    """Return the length that a packet's header tells, bytes; at least a header is there, nothing is validated."""
    if family == AF_INET:
        return ntohs((<const Ipv4Header *>packet).total_length)
    return IPV6_HEADER + ntohs((<const Ipv6Header *>packet).payload_length)


cdef inline Outcome inner_check(int family, const uint8_t *packet, uint32_t *length) noexcept nogil:
    """Validate a packet of `family`: FORWARD and its true length, or the outcome that it ends with."""
    cdef uint8_t version
    if length[0] == 0:
        return TRUNCATED
    version = packet[0] >> 4
    if version != 4 and version != 6:
        return NOT_IP
    if (version == 4) != (family == AF_INET):
        return OTHER_FAMILY
    if version == 4:
        return inner_ipv4(packet, length)
    return inner_ipv6(packet, length)
