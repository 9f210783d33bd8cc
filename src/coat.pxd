# VXLAN's coat: what stands between outer UDP header and inner packet, and what must be right about it on arrival.
#
#   | VXLAN: flags, VNI (8) | Ethernet: destination MAC, source MAC, EtherType (14) | inner packet
#
# Arrives: the 22 bytes before an inner packet, and those that are expected before one that is for this node. Leaves:
# FORWARD, or what is wrong with them. Linux drops a frame with any flag or reserved bit that its device does not know,
# where RFC 7348, 5 has them ignored; so does this room, for a bit that is not understood may change what the frame
# means. The source MAC tells nothing, since nobody learns from it, except that it must not be ours: then the frame
# went in a circle, or the sender lies.

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from counters cimport BAD_FLAGS, FORWARD, OTHER_ETHERTYPE, OTHER_MAC, OTHER_VNI, OWN_MAC, Outcome
from wire.ethernet cimport MAC_LENGTH, EthernetHeader
from wire.order cimport htonl
from wire.vxlan cimport VXLAN_HEADER, VXLAN_RESERVED, VxlanHeader

cdef packed struct Coat:
    VxlanHeader vxlan
    EthernetHeader ethernet


cdef inline const uint8_t *coat_mac(const uint8_t *coat) noexcept nogil:
    """Return the destination MAC in a coat: the one of the peer that it is for."""
    return coat + VXLAN_HEADER


cdef inline Outcome coat_check(const Coat *coat, const Coat *expected) noexcept nogil:
    """Tell whether a coat is the expected one, whose destination MAC is this node's; its source MAC is not compared."""
    if (memcmp(coat, expected, VXLAN_HEADER + MAC_LENGTH) == 0
            and coat.ethernet.ethertype == expected.ethernet.ethertype
            and memcmp(coat.ethernet.source, expected.ethernet.destination, MAC_LENGTH) != 0):
        return FORWARD
    return coat_reason(coat, expected)


cdef inline Outcome coat_reason(const Coat *coat, const Coat *expected) noexcept nogil:
    """Name what is wrong with a coat, from the outside in."""
    if coat.vxlan.flags != expected.vxlan.flags or coat.vxlan.vni & htonl(VXLAN_RESERVED):
        return BAD_FLAGS
    if coat.vxlan.vni != expected.vxlan.vni:
        return OTHER_VNI
    if memcmp(coat.ethernet.destination, expected.ethernet.destination, MAC_LENGTH) != 0:
        return OTHER_MAC
    if memcmp(coat.ethernet.source, expected.ethernet.destination, MAC_LENGTH) == 0:
        return OWN_MAC
    return OTHER_ETHERTYPE
