# Transmission Control Protocol (RFC 9293, 3.1).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |          Source port          |        Destination port       |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                        Sequence number                        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                     Acknowledgment number                     |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   | Offset| Rsvd  |C|E|U|A|P|R|S|F|             Window            |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |            Checksum           |         Urgent pointer        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # Specification: RFC 9293; CWR and ECE: RFC 3168.
    TCP_HEADER = 20             # bytes without options
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_URG = 0x20
    TCP_ECE = 0x40
    TCP_CWR = 0x80

cdef packed struct TcpHeader:
    uint16_t source_port        # network order
    uint16_t destination_port   # network order
    uint32_t sequence           # network order
    uint32_t acknowledgment     # network order
    uint8_t data_offset         # header length in words of 4 bytes << 4
    uint8_t flags
    uint16_t window             # network order
    uint16_t checksum           # network order, over pseudo header, header and data
    uint16_t urgent_pointer     # network order
