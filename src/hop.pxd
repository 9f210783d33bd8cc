# One hop: TTL (IPv4) or hop limit (IPv6) minus the backend's step, the IPv4 header checksum patched.
#
# Arrives: a validated header. Leaves: the same header one hop older, or untouched when its time is over. flannel's udp
# backend counts a hop at either end of the tunnel (step 1); vxlan is a link and counts none (step 0).

from libc.stdint cimport uint8_t, uint16_t

from checksum cimport update16
from wire.ipv4 cimport Ipv4Header
from wire.ipv6 cimport Ipv6Header
from wire.order cimport htons


cdef inline bint hop_ipv4(Ipv4Header *ip, uint8_t step) noexcept nogil:
    """Take `step` from the TTL; False, and nothing written, when none would be left (RFC 1812, 5.3.1)."""
    cdef uint16_t old, new
    if step == 0:
        return True
    if ip.ttl <= step:
        return False
    old = htons(<uint16_t>(ip.ttl << 8 | ip.protocol))
    ip.ttl -= step
    new = htons(<uint16_t>(ip.ttl << 8 | ip.protocol))
    ip.checksum = update16(ip.checksum, old, new)
    return True


cdef inline bint hop_ipv6(Ipv6Header *ip, uint8_t step) noexcept nogil:
    """Take `step` from the hop limit; False, and nothing written, when none would be left (RFC 8200, 3)."""
    if step == 0:
        return True
    if ip.hop_limit <= step:
        return False
    ip.hop_limit -= step
    return True
