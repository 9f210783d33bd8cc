# ICMP errors to the inner sender: net unreachable, time exceeded, fragmentation needed / packet too big.
#
# Arrives: the offending inner packet, validated, as it came, or one hop older where forwarding had begun (RFC 1812,
# 4.3.2.3). Leaves: a whole IP packet with the error, ready for the TUN; or nothing, where an error must not be sent
# (RFC 1812, 4.3.2.7; RFC 4443, 2.4 (e)): about an ICMP error, about a fragment other than the first, to or about an
# address that is not unicast, about a broken header. Rate limited as both RFCs ask: a bucket per sender, found by
# hash, so that one sender's flood does not silence the error that another one waits for. The caller owns all memory.
# Not handled: source routes are not reversed (RFC 1812 makes that a MAY for errors).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from checksum cimport checksum, pseudo_ipv6
from wire.icmp cimport (ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_HEADER, ICMP_QUOTE_MAX, ICMP_TIMESTAMP,
                        ICMP_TIMESTAMP_REPLY, ICMPV6_INFORMATIONAL, ICMPV6_REDIRECT, IcmpHeader)
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, IPV4_HEADER, IPV4_OFFSET_MASK, PROTOCOL_ICMP, Ipv4Header
from wire.ipv6 cimport (IPV6_HEADER, IPV6_MINIMUM_MTU, IPV6_OFFSET_MASK, NEXT_AUTHENTICATION, NEXT_DESTINATION_OPTIONS,
                        NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ICMPV6, NEXT_ROUTING, Ipv6Extension, Ipv6Fragment,
                        Ipv6Header)
from wire.order cimport htonl, htons, ntohl, ntohs

cdef enum:
    # Specification: RFC 1812, 4.3.2.5: precedence "internetwork control" for errors.
    ERROR_TOS = 0xC0
    # Our choice, as Linux and BSD.
    ERROR_TTL = 64
    # Our choice: the longest error that either family allows, and so the size of a caller's buffer.
    ERROR_MAX = IPV6_MINIMUM_MTU
    # Our choice: 100 errors a second and 50 at once to one sender: enough for a traceroute and a burst of path-MTU
    # discoveries, too little to be worth a flood. 256 buckets bound the whole to 25,600 a second.
    LIMIT_BUCKETS = 256
    LIMIT_INTERVAL = 10_000_000     # nanoseconds
    LIMIT_BURST = 50

cdef struct Limiter:
    int64_t ready[LIMIT_BUCKETS]    # when each bucket would be full again, CLOCK_MONOTONIC nanoseconds


cdef inline bint limiter_take(Limiter *limiter, uint32_t sender, int64_t now) noexcept nogil:
    """Take one error's share from the bucket that `sender` hashes to; False when it is empty."""
    cdef int64_t *ready = &limiter.ready[(sender * 0x9E3779B1U) >> 24]
    if ready[0] < now:
        ready[0] = now
    if ready[0] - now > <int64_t>LIMIT_INTERVAL * (LIMIT_BURST - 1):
        return False
    ready[0] += LIMIT_INTERVAL
    return True


cdef inline bint icmp_allowed_ipv4(const uint8_t *packet, uint32_t length) noexcept nogil:
    """Tell whether an error about this IPv4 packet may be sent to its source."""
    cdef const Ipv4Header *ip = <const Ipv4Header *>packet
    cdef uint32_t header = (packet[0] & 0x0F) * 4
    cdef uint32_t source = ntohl(ip.source)
    cdef uint8_t kind
    if checksum(packet, header) != 0 or ntohs(ip.fragment) & IPV4_OFFSET_MASK:
        return False
    # RFC 1122, 3.2.1.3: 0/8 "this network", 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast.
    if source >> 24 == 0 or source >> 24 == 127 or source > 0xDFFFFFFFU or ntohl(ip.destination) > 0xDFFFFFFFU:
        return False
    if ip.protocol != PROTOCOL_ICMP:
        return True
    if length < header + ICMP_HEADER:
        return False
    kind = packet[header]
    return kind in (ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_TIMESTAMP, ICMP_TIMESTAMP_REPLY)


cdef inline bint is_extension(uint8_t next_header) noexcept nogil:
    """Tell whether a next-header value is that of an extension header."""
    return next_header in (NEXT_HOP_BY_HOP, NEXT_ROUTING, NEXT_FRAGMENT, NEXT_AUTHENTICATION, NEXT_DESTINATION_OPTIONS)


cdef inline bint icmp_allowed_ipv6(const uint8_t *packet, uint32_t length) noexcept nogil:
    """Tell whether an error about this IPv6 packet may be sent to its source; walks its extension headers."""
    cdef const Ipv6Header *ip = <const Ipv6Header *>packet
    cdef const Ipv6Extension *extension
    cdef uint32_t at = IPV6_HEADER
    cdef uint8_t next_header = ip.next_header
    # Multicast, and ::/96 with the unspecified and the loopback address in it, are no unicast sources.
    if ip.source[0] == 0xFF or ip.destination[0] == 0xFF or is_zero96(ip.source):
        return False
    while is_extension(next_header):
        if at + 8 > length:
            return False
        extension = <const Ipv6Extension *>(packet + at)
        if next_header == NEXT_FRAGMENT:
            if ntohs((<const Ipv6Fragment *>extension).offset) & IPV6_OFFSET_MASK:
                return False
            at += 8
        elif next_header == NEXT_AUTHENTICATION:
            at += (extension.length + 2) * 4
        else:
            at += (extension.length + 1) * 8
        next_header = extension.next_header
    if next_header != NEXT_ICMPV6:
        return True
    return at < length and packet[at] >= ICMPV6_INFORMATIONAL and packet[at] != ICMPV6_REDIRECT


cdef inline bint is_zero96(const uint8_t *address) noexcept nogil:
    """Tell whether the first 96 bits of an IPv6 address are zero."""
    cdef int i
    for i in range(12):
        if address[i]:
            return False
    return True


cdef inline uint32_t icmp_error_ipv4(uint8_t *out, const uint8_t *packet, uint32_t length, const uint8_t *own,
                                     uint8_t kind, uint8_t code, uint32_t rest) noexcept nogil:
    """Write the error about `packet` into `out` (ERROR_MAX bytes), sent by `own`; return its length in bytes."""
    cdef Ipv4Header *ip = <Ipv4Header *>out
    cdef IcmpHeader *icmp = <IcmpHeader *>(out + IPV4_HEADER)
    cdef uint32_t quote = min(length, <uint32_t>(ICMP_QUOTE_MAX - IPV4_HEADER - ICMP_HEADER))
    cdef uint32_t total = IPV4_HEADER + ICMP_HEADER + quote
    memset(out, 0, IPV4_HEADER + ICMP_HEADER)
    memcpy(out + IPV4_HEADER + ICMP_HEADER, packet, quote)
    ip.version_ihl = 0x45
    ip.tos = ERROR_TOS
    ip.total_length = htons(<uint16_t>total)
    # Atomic, so its identification means nothing (RFC 6864, 4.1).
    ip.fragment = htons(IPV4_DONT_FRAGMENT)
    ip.ttl = ERROR_TTL
    ip.protocol = PROTOCOL_ICMP
    memcpy(&ip.source, own, 4)
    ip.destination = (<const Ipv4Header *>packet).source
    ip.checksum = checksum(out, IPV4_HEADER)
    icmp.type = kind
    icmp.code = code
    icmp.rest = htonl(rest)
    icmp.checksum = checksum(out + IPV4_HEADER, ICMP_HEADER + quote)
    return total


cdef inline uint32_t icmp_error_ipv6(uint8_t *out, const uint8_t *packet, uint32_t length, const uint8_t *own,
                                     uint8_t kind, uint8_t code, uint32_t rest) noexcept nogil:
    """Write the ICMPv6 error about `packet` into `out` (ERROR_MAX bytes), sent by `own`; return its length."""
    cdef Ipv6Header *ip = <Ipv6Header *>out
    cdef IcmpHeader *icmp = <IcmpHeader *>(out + IPV6_HEADER)
    cdef uint32_t quote = min(length, <uint32_t>(IPV6_MINIMUM_MTU - IPV6_HEADER - ICMP_HEADER))
    memset(out, 0, IPV6_HEADER + ICMP_HEADER)
    memcpy(out + IPV6_HEADER + ICMP_HEADER, packet, quote)
    ip.version_class_flow = htonl(<uint32_t>6 << 28)
    ip.payload_length = htons(<uint16_t>(ICMP_HEADER + quote))
    ip.next_header = NEXT_ICMPV6
    ip.hop_limit = ERROR_TTL
    memcpy(ip.source, own, 16)
    memcpy(ip.destination, (<const Ipv6Header *>packet).source, 16)
    icmp.type = kind
    icmp.code = code
    icmp.rest = htonl(rest)
    icmp.checksum = checksum(out + IPV6_HEADER, ICMP_HEADER + quote,
                             pseudo_ipv6(ip.source, ip.destination, NEXT_ICMPV6, ICMP_HEADER + quote))
    return IPV6_HEADER + ICMP_HEADER + quote
