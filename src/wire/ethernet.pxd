# Ethernet II header (IEEE 802.3 clause 3.1.1; type field: RFC 894 for IPv4, RFC 2464 for IPv6).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                      Destination address                      |
#   +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                               |                               |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
#   |                         Source address                        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |           EtherType           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    MAC_LENGTH = 6                  # bytes
    # Specification: IANA "IEEE 802 numbers".
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_IPV6 = 0x86DD

cdef packed struct EthernetHeader:
    uint8_t destination[6]
    uint8_t source[6]
    uint16_t ethertype          # network order
