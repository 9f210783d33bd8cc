# Inner packets that a peer's kernel left for a device to finish, and that came through without one.
#
# A kernel that encapsulates leaves the inner checksum, and the dividing of a super-packet, to the device below. A veth,
# or a virtual machine's card, leaves both undone as long as nobody looks inside; a UDP socket does, and reads one
# datagram with the whole super-packet in it and, where its checksum would stand, the folded sum of the pseudo header.
#
# Arrives: a validated inner packet, and what the socket said of its size. Leaves: how many packets it stands for. One:
# its checksum is finished now, or was. More: a vnet_hdr with which a TUN takes it as it is, and segment.pxd divides it.
#
# A UDP super-packet's size is the sender's (UDP_GRO tells it, datagrams have borders). A TCP one's is not told, and a
# stream has no borders: so its segments are made small enough for any link that the kernel may route them to, for one
# that is too large for it would be dropped. The receiver sees no difference, it takes the super-packet whole.
#
# That a finished checksum looks unfinished happens to one packet in 65,536, and does no harm: finished once more it is
# the same again. Not handled: IPv6 extension headers other than hop-by-hop and destination options.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from checksum cimport fold
from coalesce cimport pseudo
from segment cimport segment_complete
from wire.ipv4 cimport IPV4_DONT_FRAGMENT, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from wire.ipv6 cimport (IPV6_HEADER, IPV6_MINIMUM_MTU, NEXT_DESTINATION_OPTIONS, NEXT_HOP_BY_HOP, Ipv6Extension,
                        Ipv6Header)
from wire.order cimport htons
from wire.tcp cimport TCP_CWR, TCP_HEADER, TcpHeader
from wire.udp cimport UDP_HEADER
from wire.vnet_hdr cimport (VNET_GSO_ECN, VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader)


cdef inline uint32_t transport_of(const uint8_t *packet, uint32_t length, uint8_t *protocol) noexcept nogil:
    """Return where the transport header of an unfragmented packet begins, at most `length`, and its protocol."""
    cdef const Ipv4Header *ip = <const Ipv4Header *>packet
    cdef uint32_t at = IPV6_HEADER
    if packet[0] >> 4 == 4:
        protocol[0] = ip.protocol
        return (packet[0] & 0x0F) * 4 if ip.fragment & ~htons(IPV4_DONT_FRAGMENT) == 0 else length
    protocol[0] = (<const Ipv6Header *>packet).next_header
    while (protocol[0] == NEXT_HOP_BY_HOP or protocol[0] == NEXT_DESTINATION_OPTIONS) and at + 8 <= length:
        protocol[0] = packet[at]
        at += ((<const Ipv6Extension *>(packet + at)).length + 1) * 8
    return min(at, length)


cdef inline bint unfinished(const uint8_t *packet, uint32_t length, VnetHeader *vnet) noexcept nogil:
    """Tell whether a packet's checksum is unfinished, and describe that; `vnet` comes as zeros."""
    cdef uint8_t protocol
    cdef uint16_t field
    cdef uint32_t start = transport_of(packet, length, &protocol)
    cdef uint32_t offset, header
    if protocol == PROTOCOL_TCP and start + TCP_HEADER <= length:
        header = ((<const TcpHeader *>(packet + start)).data_offset >> 4) * 4
        offset = 16
    elif protocol == PROTOCOL_UDP and start + UDP_HEADER <= length:
        header, offset = UDP_HEADER, 6
    else:
        return False
    memcpy(&field, packet + start + offset, 2)
    if field != fold(pseudo(packet, protocol, length - start)):
        return False
    vnet.flags = VNET_NEEDS_CSUM
    vnet.hdr_len = <uint16_t>(start + header)
    vnet.csum_start, vnet.csum_offset = <uint16_t>start, <uint16_t>offset
    return True


cdef inline void describe_segments(const uint8_t *packet, uint32_t length, uint32_t size, uint32_t mtu,
                                   VnetHeader *vnet) noexcept nogil:
    """Say of an unfinished packet how it is to be divided, where it is."""
    cdef const TcpHeader *tcp = <const TcpHeader *>(packet + vnet.csum_start)
    cdef uint32_t header = vnet.hdr_len
    cdef uint32_t least = vnet.csum_start + <uint32_t>TCP_HEADER
    if vnet.csum_offset == 6:
        if size and header + size < length:
            vnet.gso_type, vnet.gso_size = VNET_GSO_UDP_L4, <uint16_t>size
        return
    # A longer packet than the tunnel carries is several; a header beyond the packet, or too short, is none.
    if length > max(mtu, <uint32_t>IPV6_MINIMUM_MTU) and least <= header and header < IPV6_MINIMUM_MTU:
        vnet.gso_type = VNET_GSO_TCPV4 if packet[0] >> 4 == 4 else VNET_GSO_TCPV6
        if tcp.flags & TCP_CWR:
            vnet.gso_type |= VNET_GSO_ECN
        vnet.gso_size = <uint16_t>(IPV6_MINIMUM_MTU - header)


cdef inline uint32_t finish(uint8_t *packet, uint32_t length, uint32_t size, uint32_t mtu,
                            VnetHeader *vnet) noexcept nogil:
    """Return how many packets a packet stands for; where it is one its checksum is right then, as far as it was.

    `size`: payload of each datagram, as the socket told, or 0; `mtu`: of the tunnel, bytes; `vnet`: how to divide it.
    """
    memset(vnet, 0, sizeof(VnetHeader))
    if not unfinished(packet, length, vnet):
        return 1
    describe_segments(packet, length, size, mtu, vnet)
    if vnet.gso_size == 0:
        segment_complete(packet, length, vnet)
        memset(vnet, 0, sizeof(VnetHeader))
        return 1
    return (length - vnet.hdr_len + vnet.gso_size - 1) // vnet.gso_size
