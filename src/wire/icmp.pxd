# Internet Control Message Protocol: ICMP (RFC 792) and ICMPv6 (RFC 4443), which share the shape of an error.
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |      Type     |      Code     |            Checksum           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |  rest: zero; IPv4 "fragmentation needed": 16 bits zero, 16    |
#   |  bits next-hop MTU (RFC 1191, 4); IPv6 "packet too big": MTU  |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |      as much of the offending packet as may be quoted         |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    ICMP_HEADER = 8                     # bytes
    # Specification: RFC 792, RFC 1191.
    ICMP_ECHO_REPLY = 0
    ICMP_UNREACHABLE = 3
    ICMP_UNREACHABLE_NET = 0            # code
    ICMP_FRAGMENTATION_NEEDED = 4       # code
    ICMP_ECHO_REQUEST = 8
    ICMP_TIME_EXCEEDED = 11             # code 0: in transit
    ICMP_TIMESTAMP = 13
    ICMP_TIMESTAMP_REPLY = 14
    ICMP_QUOTE_MAX = 576                # RFC 1812, 4.3.2.3: bytes of the whole error
    # Specification: RFC 4443; redirect: RFC 4861.
    ICMPV6_UNREACHABLE = 1
    ICMPV6_UNREACHABLE_NO_ROUTE = 0     # code
    ICMPV6_PACKET_TOO_BIG = 2
    ICMPV6_TIME_EXCEEDED = 3            # code 0: in transit
    ICMPV6_INFORMATIONAL = 128          # types below are errors
    ICMPV6_REDIRECT = 137
    # Specification: RFC 4861, 4.3, 4.4 and 4.6.1; in `rest`, host order: solicited, and to replace what was known.
    ICMPV6_NEIGHBOUR_SOLICITATION = 135
    ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136
    NEIGHBOUR_ANSWER = 0x60000000
    NEIGHBOUR_HOP_LIMIT = 255
    NEIGHBOUR_TARGET_MAC = 2            # option

cdef packed struct IcmpHeader:
    uint8_t type
    uint8_t code
    uint16_t checksum                   # network order; ICMPv6: pseudo header included
    uint32_t rest                       # network order
