# Address Resolution Protocol, in its only living form: IPv4 over Ethernet (RFC 826).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         Hardware type         |         Protocol type         |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   | Hardware len  | Protocol len  |           Operation           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |          Sender: hardware address (6), protocol (4)           |
#   +                                                               +
#   |          Target: hardware address (6), protocol (4)           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # Specification: RFC 826, IANA "ARP parameters".
    ARP_HARDWARE_ETHERNET = 1
    ARP_REQUEST = 1
    ARP_REPLY = 2

cdef packed struct ArpHeader:
    uint16_t hardware_type      # network order
    uint16_t protocol_type      # network order, an EtherType
    uint8_t hardware_length     # bytes
    uint8_t protocol_length     # bytes
    uint16_t operation          # network order
    uint8_t sender_hardware[6]
    uint32_t sender_protocol    # network order
    uint8_t target_hardware[6]
    uint32_t target_protocol    # network order
