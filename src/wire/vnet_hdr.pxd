# struct virtio_net_hdr: what a TUN with IFF_VNET_HDR puts before each frame (virtio 1.2, 5.1.6; Linux
# uapi/linux/virtio_net.h).
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |     flags     |    gso_type   |            hdr_len            |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |            gso_size           |           csum_start          |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |          csum_offset          |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    # Specification: virtio 1.2; GSO_UDP_L4 since Linux 6.2.
    VNET_HDR = 10                   # bytes
    VNET_NEEDS_CSUM = 1             # flags
    VNET_DATA_VALID = 2
    VNET_GSO_NONE = 0               # gso_type
    VNET_GSO_TCPV4 = 1
    VNET_GSO_TCPV6 = 4
    VNET_GSO_UDP_L4 = 5
    VNET_GSO_ECN = 0x80

cdef packed struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len                # host order, all fields, unless TUNSETVNETLE or -BE says otherwise
    uint16_t gso_size               # bytes of payload per segment
    uint16_t csum_start             # offset from the byte after this header
    uint16_t csum_offset            # offset from csum_start
