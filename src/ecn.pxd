# Congestion marks across the tunnel (RFC 6040): two bits of the TOS octet or traffic class.
#
#   out   the outer header says what the inner says, so that a router on the underlay may mark instead of drop
#   in    inner \ outer    not-ECT   ECT(0)    ECT(1)    CE
#         not-ECT         not-ECT   not-ECT   not-ECT   drop: its receiver could not be told
#         ECT(0)          ECT(0)    ECT(0)    ECT(1)    CE
#         ECT(1)          ECT(1)    ECT(1)    ECT(1)    CE
#         CE              CE        CE        CE        CE
#
# Pure: a validated inner packet and two bits. No transport checksum covers them; IPv4's header checksum is patched.

from libc.stdint cimport uint8_t, uint16_t

from checksum cimport update16
from counters cimport CE_LOST, FORWARD, Outcome
from peer cimport AF_INET
from wire.ipv4 cimport Ipv4Header
from wire.order cimport htons

cdef enum:
    # Specification: RFC 3168, 5.
    NOT_ECT = 0
    ECT_1 = 1
    ECT_0 = 2
    CE = 3


cdef inline uint8_t ecn_of(int family, const uint8_t *packet) noexcept nogil:
    """Return the two bits of a packet."""
    return packet[1] & CE if family == AF_INET else packet[1] >> 4 & CE


cdef inline void ecn_set(int family, uint8_t *packet, uint8_t ecn) noexcept nogil:
    """Write the two bits of a packet."""
    cdef Ipv4Header *ip = <Ipv4Header *>packet
    cdef uint16_t old
    if family != AF_INET:
        packet[1] = <uint8_t>((packet[1] & ~<uint8_t>(CE << 4)) | ecn << 4)
        return
    old = htons(<uint16_t>(ip.version_ihl << 8 | ip.tos))
    ip.tos = <uint8_t>((ip.tos & ~<uint8_t>CE) | ecn)
    ip.checksum = update16(ip.checksum, old, htons(<uint16_t>(ip.version_ihl << 8 | ip.tos)))


cdef inline Outcome ecn_in(int family, uint8_t *packet, uint8_t outer) noexcept nogil:
    """Let what the outer header says reach the inner one; CE_LOST, and nothing written, where it cannot."""
    cdef uint8_t inner = ecn_of(family, packet)
    if outer == CE and inner == NOT_ECT:
        return CE_LOST
    if (outer == CE and inner != CE) or (outer == ECT_1 and inner == ECT_0):
        ecn_set(family, packet, outer)
    return FORWARD
