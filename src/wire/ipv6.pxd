# Internet Protocol version 6 (RFC 8200, 3) and the shape shared by its extension headers (4).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |Version| Traffic class |               Flow label              |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         Payload length        |  Next header  |   Hop limit   |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                    Source address (16 bytes)                  |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                 Destination address (16 bytes)                |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # Specification: RFC 8200.
    IPV6_HEADER = 40                # bytes
    IPV6_MINIMUM_MTU = 1280         # 5: every link carries this much
    IPV6_OFFSET_MASK = 0xFFF8       # host order, in the fragment header's offset field
    # Specification: IANA "protocol numbers", those that are IPv6 extension headers.
    NEXT_HOP_BY_HOP = 0
    NEXT_ROUTING = 43
    NEXT_FRAGMENT = 44
    NEXT_AUTHENTICATION = 51        # RFC 4302: its length counts words of 4 bytes, minus 2
    NEXT_ICMPV6 = 58
    NEXT_NONE = 59
    NEXT_DESTINATION_OPTIONS = 60

cdef packed struct Ipv6Header:
    uint32_t version_class_flow     # network order
    uint16_t payload_length         # network order, bytes after this header
    uint8_t next_header
    uint8_t hop_limit
    uint8_t source[16]
    uint8_t destination[16]

cdef packed struct Ipv6Extension:
    uint8_t next_header
    uint8_t length                  # words of 8 bytes, the first not counted

cdef packed struct Ipv6Fragment:
    uint8_t next_header
    uint8_t reserved
    uint16_t offset                 # network order: offset << 3 | reserved << 1 | more fragments
    uint32_t identification         # network order
