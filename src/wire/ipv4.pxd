# Internet Protocol version 4 (RFC 791, 3.1; DS and ECN fields: RFC 2474, RFC 3168).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |Version|  IHL  |    DSCP   |ECN|          Total length         |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         Identification        |0|D|M|     Fragment offset     |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |      TTL      |    Protocol   |        Header checksum        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                         Source address                        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                      Destination address                      |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                Options, 0 to 40 bytes, padded to 4            |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # Specification: RFC 791.
    IPV4_HEADER = 20                # bytes without options
    IPV4_HEADER_MAX = 60
    IPV4_DONT_FRAGMENT = 0x4000     # host order, in `fragment`
    IPV4_MORE_FRAGMENTS = 0x2000
    IPV4_OFFSET_MASK = 0x1FFF       # units of 8 bytes
    # Specification: IANA "protocol numbers"; IPv6 counts its next headers by the same registry.
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17

cdef packed struct Ipv4Header:
    uint8_t version_ihl             # version << 4 | header length in words of 4 bytes
    uint8_t tos                     # DSCP << 2 | ECN
    uint16_t total_length           # network order, bytes, header included
    uint16_t identification         # network order
    uint16_t fragment               # network order, flags and offset
    uint8_t ttl
    uint8_t protocol
    uint16_t checksum               # network order
    uint32_t source                 # network order
    uint32_t destination            # network order
