# One GSO super-packet -> n inner packets, as the kernel's tcp_gso_segment() and __udp_gso_segment() divide it.
#
#   super-packet   | IP | TCP | payload 0 | payload 1 | payload 2 |
#   segments       | IP'| TCP'|--------^        each header is written anew, each payload stays where it was read
#                  | IP'| TCP'|----------------------^
#
# Arrives: a validated inner packet with the vnet_hdr that the kernel gave along. Leaves: a Template, made once, and
# from it the header of any segment; the sender gathers header and payload by iovec. Per segment change: IPv4 total
# length, ID (+1 each) and checksum, or IPv6 payload length; TCP sequence, flags (FIN and PSH only on the last, CWR
# only on the first) and checksum, or UDP length and checksum. What does not change is summed once.
#
# The kernel's hdr_len is not used: on forwarded packets it says how much lies in the first buffer, not where the
# headers end. csum_start is, once checked: it is where the transport header begins. Not handled: headers longer than
# HEADER_MAX.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from checksum cimport checksum, fold, pseudo_ipv4, pseudo_ipv6, sum_bytes
from counters cimport BAD_HEADER, BAD_OFFLOAD, FORWARD, Outcome
from wire.ipv4 cimport PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from wire.ipv6 cimport IPV6_HEADER, Ipv6Header
from wire.order cimport htonl, htons, ntohl, ntohs
from wire.tcp cimport TCP_CWR, TCP_FIN, TCP_HEADER, TCP_PSH, TcpHeader
from wire.udp cimport UDP_HEADER, UdpHeader
from wire.vnet_hdr cimport (VNET_GSO_ECN, VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_UDP_L4,
                            VNET_NEEDS_CSUM, VnetHeader)

cdef enum:
    # Our choice: IP and transport header of any packet that a stack sends in bulk: 40 + 60, and room for extensions.
    HEADER_MAX = 192

cdef struct Template:
    uint32_t transport          # offset of the transport header, bytes
    uint32_t header             # offset of the payload: the length of a segment's headers
    uint32_t payload            # bytes in all segments together
    uint32_t size               # bytes of payload per segment, but the last
    uint32_t count              # segments
    uint8_t protocol            # PROTOCOL_TCP or PROTOCOL_UDP
    uint8_t version             # 4 or 6
    uint16_t identification     # of the first segment, host order; IPv4
    uint32_t sequence           # of the first segment, host order; TCP
    uint8_t flags               # of the super-packet; TCP
    uint64_t ip_sum             # of the IPv4 header without total length, ID and checksum
    uint64_t transport_sum      # of pseudo and transport header without length, sequence, flags and checksum


cdef inline uint32_t segment_transport(const uint8_t *packet, const VnetHeader *vnet) noexcept nogil:
    """Return where the transport header begins, as the kernel says and the IP header confirms; 0 if they disagree."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 0x0F) * 4 if vnet.csum_start == (packet[0] & 0x0F) * 4 else 0
    return vnet.csum_start if vnet.csum_start >= IPV6_HEADER else 0


cdef inline Outcome segment_complete(uint8_t *packet, uint32_t length, const VnetHeader *vnet) noexcept nogil:
    """Finish the checksum of a packet that is no super-packet, where the kernel left that to its device.

    The field holds the folded sum of the pseudo header, so the sum over field and all is what is to be written.
    """
    cdef uint32_t start = vnet.csum_start
    cdef uint32_t field = start + vnet.csum_offset
    cdef uint16_t value
    if not vnet.flags & VNET_NEEDS_CSUM:
        return FORWARD
    if field + 2 > length:
        return BAD_OFFLOAD
    value = checksum(packet + start, length - start)
    if value == 0 and vnet.csum_offset == 6:
        # UDP says "none" with zero; the other zero of one's complement says zero (RFC 768).
        value = 0xFFFF
    memcpy(packet + field, &value, 2)
    return FORWARD


cdef inline Outcome segment_plan(Template *plan, const uint8_t *packet, uint32_t length,
                                 const VnetHeader *vnet) noexcept nogil:
    """Make the template of a super-packet (a validated packet of `length` bytes); FORWARD, or why it cannot be."""
    cdef uint8_t kind = vnet.gso_type & ~<uint8_t>VNET_GSO_ECN
    cdef uint8_t version = packet[0] >> 4
    cdef uint32_t least
    plan.version = version
    plan.transport = segment_transport(packet, vnet)
    plan.size = vnet.gso_size
    if kind == VNET_GSO_UDP_L4:
        plan.protocol = PROTOCOL_UDP
    elif kind == (VNET_GSO_TCPV4 if version == 4 else VNET_GSO_TCPV6):
        plan.protocol = PROTOCOL_TCP
    else:
        return BAD_OFFLOAD
    if plan.transport == 0 or plan.size == 0:
        return BAD_OFFLOAD
    least = TCP_HEADER if plan.protocol == PROTOCOL_TCP else UDP_HEADER
    if plan.transport + least > length:
        return BAD_OFFLOAD
    if version == 4 and (<const Ipv4Header *>packet).protocol != plan.protocol:
        return BAD_OFFLOAD
    plan.header = plan.transport + UDP_HEADER
    if plan.protocol == PROTOCOL_TCP:
        plan.header = plan.transport + ((<const TcpHeader *>(packet + plan.transport)).data_offset >> 4) * 4
    if plan.header < plan.transport + least or plan.header >= length or plan.header > HEADER_MAX:
        return BAD_HEADER
    plan.payload = length - plan.header
    plan.count = (plan.payload + plan.size - 1) // plan.size
    segment_sums(plan, packet)
    return FORWARD


cdef inline void segment_sums(Template *plan, const uint8_t *packet) noexcept nogil:
    """Sum what all segments have in common."""
    cdef uint8_t header[HEADER_MAX]
    cdef Ipv4Header *ip = <Ipv4Header *>header
    cdef TcpHeader *tcp = <TcpHeader *>(header + plan.transport)
    cdef UdpHeader *udp = <UdpHeader *>(header + plan.transport)
    memcpy(header, packet, plan.header)
    if plan.version == 4:
        plan.identification = ntohs(ip.identification)
        ip.total_length = ip.identification = ip.checksum = 0
        plan.ip_sum = sum_bytes(header, plan.transport)
        plan.transport_sum = pseudo_ipv4(ip.source, ip.destination, plan.protocol, 0)
    else:
        plan.transport_sum = pseudo_ipv6((<Ipv6Header *>header).source, (<Ipv6Header *>header).destination,
                                         plan.protocol, 0)
    if plan.protocol == PROTOCOL_TCP:
        plan.sequence = ntohl(tcp.sequence)
        plan.flags = tcp.flags
        tcp.sequence = tcp.checksum = 0
        tcp.flags = 0
    else:
        udp.length = udp.checksum = 0
    plan.transport_sum += sum_bytes(header + plan.transport, plan.header - plan.transport)


cdef inline uint32_t segment_payload(const Template *plan, uint32_t index) noexcept nogil:
    """Return the bytes of payload in segment `index`."""
    cdef uint32_t start = index * plan.size
    return min(plan.size, plan.payload - start)


cdef inline void segment_header(const Template *plan, const uint8_t *packet, uint32_t index,
                                uint8_t *out) noexcept nogil:
    """Write the headers of segment `index`, plan.header bytes; `packet` is the super-packet."""
    cdef uint32_t payload = segment_payload(plan, index)
    cdef uint64_t total
    memcpy(out, packet, plan.header)
    if plan.version == 4:
        segment_ipv4(plan, <Ipv4Header *>out, index, payload)
    else:
        (<Ipv6Header *>out).payload_length = htons(<uint16_t>(plan.header - IPV6_HEADER + payload))
    total = plan.transport_sum + htons(<uint16_t>(plan.header - plan.transport + payload))
    total = sum_bytes(packet + plan.header + index * plan.size, payload, total)
    if plan.protocol == PROTOCOL_TCP:
        segment_tcp(plan, <TcpHeader *>(out + plan.transport), index, total)
    else:
        segment_udp(<UdpHeader *>(out + plan.transport), payload, total)


cdef inline void segment_ipv4(const Template *plan, Ipv4Header *ip, uint32_t index, uint32_t payload) noexcept nogil:
    """Finish the IPv4 header of a segment."""
    ip.total_length = htons(<uint16_t>(plan.header + payload))
    ip.identification = htons(<uint16_t>(plan.identification + index))
    ip.checksum = <uint16_t>~fold(plan.ip_sum + ip.total_length + ip.identification)


cdef inline void segment_tcp(const Template *plan, TcpHeader *tcp, uint32_t index, uint64_t total) noexcept nogil:
    """Finish the TCP header of a segment; `total` sums all but sequence and flags."""
    cdef uint8_t flags = plan.flags
    if index + 1 < plan.count:
        flags &= ~<uint8_t>(TCP_FIN | TCP_PSH)
    if index > 0:
        flags &= ~<uint8_t>TCP_CWR
    tcp.sequence = htonl(plan.sequence + index * plan.size)
    tcp.flags = flags
    # The flags are the second byte of their word.
    tcp.checksum = <uint16_t>~fold(total + tcp.sequence + htons(flags))


cdef inline void segment_udp(UdpHeader *udp, uint32_t payload, uint64_t total) noexcept nogil:
    """Finish the UDP header of a segment; `total` sums all but its length."""
    udp.length = htons(<uint16_t>(UDP_HEADER + payload))
    udp.checksum = <uint16_t>~fold(total + udp.length)
    if udp.checksum == 0:
        udp.checksum = 0xFFFF


cdef inline bint is_super(const VnetHeader *vnet) noexcept nogil:
    """Tell whether a frame is to be divided."""
    return vnet.gso_type != VNET_GSO_NONE
