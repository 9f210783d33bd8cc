# n inner packets -> runs -> super-packets with a vnet_hdr: the mirror image of segment.pxd, as strict as the kernel's
# GRO.
#
# Arrives: validated inner packets in order. Leaves: frames for the TUN. A Merge holds the frame in the making: the
# first packet, whose headers grow with it, and the payloads of those that continue it, where they lie. A packet that
# does not continue it ends it; so frames leave in the order of their first packets, and no packet ever overtakes
# another.
#
# What continues a flow (kernel: net/ipv4/tcp_offload.c, udp_offload.c, af_inet.c): same addresses, ports, TOS, TTL
# and DF; no IPv4 options, no fragments, no IPv6 extension headers; IPv4 ID counted on,
# unless DF makes it meaningless.
#   TCP: the next sequence number, the same acknowledgment, window, urgent pointer and options; payload, none longer
#        than the first; only ACK, PSH and ECE set, ECE alike. A shorter one or PSH is the last.
#   UDP: with a checksum; payload, none longer than the first; a shorter one is the last.
# A merged frame claims a right checksum, so the checksums of its parts are verified first: a wrong one is not laundered
# but passed on as it came. What is not merged leaves verbatim.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from checksum cimport checksum, fold, pseudo_ipv4, pseudo_ipv6
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, IPV4_HEADER, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from wire.ipv6 cimport IPV6_HEADER, Ipv6Header
from wire.order cimport htons, ntohl, ntohs
from wire.tcp cimport TCP_ACK, TCP_ECE, TCP_HEADER, TCP_PSH, TcpHeader
from wire.udp cimport UDP_HEADER, UdpHeader
from wire.vnet_hdr cimport (VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef enum:
    # Specification: the kernel's GRO merges at most this many, and its UDP GSO divides into no more.
    MERGE_PACKETS = 64
    # Specification: the largest IP packet.
    MERGE_BYTES = 65535
    # TCP flags with which a segment may be merged.
    TCP_MERGEABLE = TCP_ACK | TCP_PSH | TCP_ECE

cdef struct Merge:
    uint8_t *head               # the first packet; NULL: nothing in the making
    uint32_t length             # bytes of the frame so far, headers included
    uint32_t transport          # offset of the transport header; 0: cannot be continued
    uint32_t header             # offset of the payload
    uint32_t size               # bytes of payload in the first packet
    uint32_t count              # packets
    uint32_t sequence           # expected next, host order; TCP
    bint verified               # the first packet's checksum is right
    bint closed                 # the last one was shorter, or had PSH
    uint8_t protocol
    VnetHeader vnet             # of the frame, once finished
    iovec pieces[MERGE_PACKETS + 1]     # vnet_hdr, first packet, payloads


cdef inline uint32_t transport_offset(const uint8_t *packet, uint8_t *protocol) noexcept nogil:
    """Return where a mergeable packet's transport header begins, and its protocol; 0 if it must stay alone."""
    cdef const Ipv4Header *ip = <const Ipv4Header *>packet
    if packet[0] >> 4 == 6:
        protocol[0] = (<const Ipv6Header *>packet).next_header
        return IPV6_HEADER
    protocol[0] = ip.protocol
    # 0x45: no options. Beside DF nothing may stand among the flags and the offset.
    return IPV4_HEADER if packet[0] == 0x45 and ntohs(ip.fragment) & ~<uint16_t>IPV4_DONT_FRAGMENT == 0 else 0


cdef inline uint32_t payload_offset(const uint8_t *packet, uint32_t length, uint32_t transport,
                                    uint8_t protocol) noexcept nogil:
    """Return where a mergeable packet's payload begins; 0 if there is none, or if it must stay alone."""
    cdef const TcpHeader *tcp = <const TcpHeader *>(packet + transport)
    cdef const UdpHeader *udp = <const UdpHeader *>(packet + transport)
    cdef uint32_t header
    if protocol == PROTOCOL_TCP and length > transport + TCP_HEADER:
        header = (tcp.data_offset >> 4) * 4
        if header < TCP_HEADER or tcp.flags & ~<uint8_t>TCP_MERGEABLE or not tcp.flags & TCP_ACK:
            return 0
    elif protocol == PROTOCOL_UDP and length > transport + UDP_HEADER:
        header = UDP_HEADER
        if udp.checksum == 0 or ntohs(udp.length) != length - transport:
            return 0
    else:
        return 0
    return transport + header if transport + header < length else 0


cdef inline uint64_t pseudo(const uint8_t *packet, uint8_t protocol, uint32_t length) noexcept nogil:
    """Sum the pseudo header of a packet whose transport part has `length` bytes."""
    cdef const Ipv4Header *ip4 = <const Ipv4Header *>packet
    cdef const Ipv6Header *ip6 = <const Ipv6Header *>packet
    if packet[0] >> 4 == 4:
        return pseudo_ipv4(ip4.source, ip4.destination, protocol, <uint16_t>length)
    return pseudo_ipv6(ip6.source, ip6.destination, protocol, length)


cdef inline bint verifies(const uint8_t *packet, uint32_t length, uint32_t transport, uint8_t protocol) noexcept nogil:
    """Tell whether a packet's transport checksum is right, and the IPv4 header's with it."""
    if packet[0] >> 4 == 4 and checksum(packet, IPV4_HEADER) != 0:
        return False
    return checksum(packet + transport, length - transport, pseudo(packet, protocol, length - transport)) == 0


cdef inline void merge_begin(Merge *merge, uint8_t *packet, uint32_t length, bint uso) noexcept nogil:
    """Make `packet` the first of a frame; `uso`: the TUN takes UDP super-packets."""
    merge.head = packet
    merge.length = length
    merge.count = 1
    merge.verified = merge.closed = False
    merge.header = 0
    merge.transport = transport_offset(packet, &merge.protocol)
    if merge.transport and (merge.protocol == PROTOCOL_TCP or uso):
        merge.header = payload_offset(packet, length, merge.transport, merge.protocol)
    merge.size = length - merge.header
    if merge.header and merge.protocol == PROTOCOL_TCP:
        merge.sequence = ntohl((<TcpHeader *>(packet + merge.transport)).sequence) + merge.size
        merge.closed = (<TcpHeader *>(packet + merge.transport)).flags & TCP_PSH != 0
    merge.pieces[1].iov_base = packet
    merge.pieces[1].iov_len = length


cdef inline bint same_network(const Merge *merge, const uint8_t *packet) noexcept nogil:
    """Tell whether the IP header continues the frame's."""
    cdef const Ipv4Header *a = <const Ipv4Header *>merge.head
    cdef const Ipv4Header *b = <const Ipv4Header *>packet
    if packet[0] >> 4 == 6:
        # Version, class, flow label; next header, hop limit; addresses. All but the payload length.
        return memcmp(merge.head, packet, 4) == 0 and memcmp(merge.head + 6, packet + 6, 34) == 0
    if a.tos != b.tos or a.ttl != b.ttl or a.fragment != b.fragment or memcmp(&a.source, &b.source, 8) != 0:
        return False
    return a.fragment != 0 or ntohs(b.identification) == <uint16_t>(ntohs(a.identification) + merge.count)


cdef inline bint same_flow(const Merge *merge, const uint8_t *packet) noexcept nogil:
    """Tell whether the transport header continues the frame's."""
    cdef const TcpHeader *a = <const TcpHeader *>(merge.head + merge.transport)
    cdef const TcpHeader *b = <const TcpHeader *>(packet + merge.transport)
    if memcmp(a, b, 4) != 0:
        return False
    if merge.protocol == PROTOCOL_UDP:
        return True
    if ntohl(b.sequence) != merge.sequence or a.acknowledgment != b.acknowledgment or a.window != b.window:
        return False
    # Header length, and flags that are younger than the others: AE of AccECN. An urgent pointer, without URG, says
    # nothing, but the frame has room for one only.
    if a.data_offset != b.data_offset or a.urgent_pointer != b.urgent_pointer:
        return False
    return (a.flags ^ b.flags) & TCP_ECE == 0 and memcmp(a + 1, b + 1, merge.header - merge.transport - TCP_HEADER) == 0


cdef inline bint merge_add(Merge *merge, uint8_t *packet, uint32_t length) noexcept nogil:
    """Add a packet to the frame in the making; False, and nothing changed, if it does not continue it."""
    cdef uint8_t protocol
    cdef uint32_t payload
    if not merge.header or merge.closed or merge.count == MERGE_PACKETS or packet[0] != merge.head[0]:
        return False
    if transport_offset(packet, &protocol) != merge.transport or protocol != merge.protocol:
        return False
    if payload_offset(packet, length, merge.transport, protocol) != merge.header:
        return False
    payload = length - merge.header
    if payload > merge.size or merge.length + payload > MERGE_BYTES:
        return False
    if not same_network(merge, packet) or not same_flow(merge, packet):
        return False
    if not merge.verified:
        merge.verified = verifies(merge.head, merge.header + merge.size, merge.transport, protocol)
    if not merge.verified or not verifies(packet, length, merge.transport, protocol):
        return False
    merge_take(merge, packet, payload)
    return True


cdef inline void merge_take(Merge *merge, uint8_t *packet, uint32_t payload) noexcept nogil:
    """Append a packet that fits."""
    cdef TcpHeader *tcp = <TcpHeader *>(packet + merge.transport)
    merge.count += 1
    merge.pieces[merge.count].iov_base = packet + merge.header
    merge.pieces[merge.count].iov_len = payload
    merge.length += payload
    merge.closed = payload < merge.size
    if merge.protocol == PROTOCOL_TCP:
        merge.sequence += payload
        if tcp.flags & TCP_PSH:
            merge.closed = True
            (<TcpHeader *>(merge.head + merge.transport)).flags |= TCP_PSH


cdef inline void merge_finish(Merge *merge) noexcept nogil:
    """Complete the frame's vnet_hdr and, if packets were merged, its headers; write pieces[0 .. count] then."""
    cdef Ipv4Header *ip = <Ipv4Header *>merge.head
    cdef uint32_t transport_length = merge.length - merge.transport
    cdef uint16_t partial
    memset(&merge.vnet, 0, sizeof(VnetHeader))
    merge.pieces[0].iov_base = &merge.vnet
    merge.pieces[0].iov_len = sizeof(VnetHeader)
    if merge.count == 1:
        return
    if merge.head[0] >> 4 == 4:
        ip.total_length = htons(<uint16_t>merge.length)
        ip.checksum = 0
        ip.checksum = checksum(merge.head, IPV4_HEADER)
    else:
        (<Ipv6Header *>merge.head).payload_length = htons(<uint16_t>transport_length)
    # The kernel finishes it from the pseudo header's sum, as it does for what its own stack sends.
    partial = fold(pseudo(merge.head, merge.protocol, transport_length))
    merge.vnet.flags = VNET_NEEDS_CSUM
    merge.vnet.hdr_len = <uint16_t>merge.header
    merge.vnet.gso_size = <uint16_t>merge.size
    merge.vnet.csum_start = <uint16_t>merge.transport
    if merge.protocol == PROTOCOL_TCP:
        (<TcpHeader *>(merge.head + merge.transport)).checksum = partial
        merge.vnet.csum_offset = 16
        merge.vnet.gso_type = VNET_GSO_TCPV4 if merge.head[0] >> 4 == 4 else VNET_GSO_TCPV6
    else:
        (<UdpHeader *>(merge.head + merge.transport)).length = htons(<uint16_t>transport_length)
        (<UdpHeader *>(merge.head + merge.transport)).checksum = partial
        merge.vnet.csum_offset = 6
        merge.vnet.gso_type = VNET_GSO_UDP_L4


cdef inline void merge_undo(Merge *merge) noexcept nogil:
    """After merge_finish(): make pieces[1 .. count] the packets that came, each whole."""
    cdef Ipv4Header *ip = <Ipv4Header *>merge.head
    cdef uint8_t *transport = merge.head + merge.transport
    cdef uint32_t length = merge.header + merge.size - merge.transport
    cdef uint32_t i
    if merge.count > 1 and merge.head[0] >> 4 == 4:
        ip.total_length = htons(<uint16_t>(merge.header + merge.size))
        ip.checksum = 0
        ip.checksum = checksum(merge.head, IPV4_HEADER)
    elif merge.count > 1:
        (<Ipv6Header *>merge.head).payload_length = htons(<uint16_t>length)
    if merge.count > 1 and merge.protocol == PROTOCOL_TCP:
        # A first packet with PSH is never continued, so a PSH there came with the last one.
        (<TcpHeader *>transport).flags &= ~<uint8_t>TCP_PSH
        (<TcpHeader *>transport).checksum = 0
        (<TcpHeader *>transport).checksum = checksum(transport, length, pseudo(merge.head, merge.protocol, length))
    elif merge.count > 1:
        (<UdpHeader *>transport).length = htons(<uint16_t>length)
        (<UdpHeader *>transport).checksum = 0
        (<UdpHeader *>transport).checksum = checksum(transport, length, pseudo(merge.head, merge.protocol, length))
        if (<UdpHeader *>transport).checksum == 0:
            (<UdpHeader *>transport).checksum = 0xFFFF
    for i in range(2, merge.count + 1):
        merge.pieces[i].iov_base = <uint8_t *>merge.pieces[i].iov_base - merge.header
        merge.pieces[i].iov_len += merge.header
