# User Datagram Protocol (RFC 768).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |          Source port          |        Destination port       |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |             Length            |            Checksum           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint16_t

cdef enum:
    # Specification: RFC 768.
    UDP_HEADER = 8              # bytes
    # Specification: flannel's udp backend, both ends, source and destination.
    FLANNEL_UDP_PORT = 8285

cdef packed struct UdpHeader:
    uint16_t source_port        # network order
    uint16_t destination_port   # network order
    uint16_t length             # network order, bytes, header included
    uint16_t checksum           # network order, over pseudo header, header and data; 0 = none (IPv4 only)
