# Virtual eXtensible LAN (RFC 7348, 5), as Linux and so flannel's vxlan backend read it: any reserved bit set drops
# the frame.
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |R|R|R|R|I|R|R|R|                   Reserved                    |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         VXLAN network identifier (VNI)        |    Reserved   |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

from libc.stdint cimport uint32_t

cdef enum:
    # Specification: RFC 7348; the port is Linux's historical default, which flannel keeps (IANA gave 4789 later).
    VXLAN_HEADER = 8                # bytes
    VXLAN_FLAG_VNI = 0x08000000     # host order, in `flags`
    VXLAN_RESERVED = 0x000000FF     # host order, in `vni`
    FLANNEL_VXLAN_PORT = 8472

cdef packed struct VxlanHeader:
    uint32_t flags                  # network order
    uint32_t vni                    # network order: VNI << 8 | reserved
