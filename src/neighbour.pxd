# Neighbour questions on a TAP: "which MAC has this address?", ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).
#
# Arrives: an Ethernet frame that the kernel gave to the TAP. Leaves: the address that is asked for, and the answer, to
# be written back. It is known without asking anybody: the address lies in the subnet of a peer, whose coat holds its
# MAC. So no question ever leaves this node, nothing is flooded, and what no peer leases stays unanswered.
#
# Pure. Not answered: a probe whether an address is free (ARP from 0.0.0.0, discovery from ::, RFC 5227, RFC 4862), for
# the answer would forbid the kernel to use it.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from checksum cimport checksum, pseudo_ipv6
from wire.arp cimport ARP_HARDWARE_ETHERNET, ARP_REPLY, ARP_REQUEST, ArpHeader
from wire.ethernet cimport ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, MAC_LENGTH, EthernetHeader
from wire.icmp cimport (ICMP_HEADER, ICMPV6_NEIGHBOUR_ADVERTISEMENT, ICMPV6_NEIGHBOUR_SOLICITATION, NEIGHBOUR_ANSWER,
                        NEIGHBOUR_HOP_LIMIT, NEIGHBOUR_TARGET_MAC, IcmpHeader)
from wire.ipv6 cimport IPV6_HEADER, NEXT_ICMPV6, Ipv6Header
from wire.order cimport htonl, htons, load128, ntohl, u128

cdef enum:
    # The longest answer: Ethernet, IPv6, and an advertisement with target (16) and the target's MAC as an option (8).
    NEIGHBOUR_MAX = 14 + IPV6_HEADER + ICMP_HEADER + 16 + 8


cdef inline bint is_arp(const uint8_t *frame) noexcept nogil:
    """Tell whether a frame's EtherType is ARP's."""
    return (<const EthernetHeader *>frame).ethertype == htons(ETHERTYPE_ARP)


cdef inline bint is_solicitation(const uint8_t *packet, uint32_t length) noexcept nogil:
    """Tell whether a validated IPv6 packet asks for a neighbour, and may be answered.

    One that was routed is no question (RFC 4861, 7.1.1), but a packet for the node that it is sent to.
    """
    cdef const Ipv6Header *ip = <const Ipv6Header *>packet
    return (length >= IPV6_HEADER + ICMP_HEADER + 16 and ip.next_header == NEXT_ICMPV6
            and ip.hop_limit == NEIGHBOUR_HOP_LIMIT and packet[IPV6_HEADER] == ICMPV6_NEIGHBOUR_SOLICITATION
            and load128(ip.source) != 0)


cdef inline bint arp_asks(const ArpHeader *arp, uint32_t length) noexcept nogil:
    """Tell whether an ARP packet of `length` bytes asks for an IPv4 address, and may be answered."""
    return (length >= sizeof(ArpHeader) and arp.hardware_type == htons(ARP_HARDWARE_ETHERNET)
            and arp.protocol_type == htons(ETHERTYPE_IPV4) and arp.hardware_length == MAC_LENGTH
            and arp.protocol_length == 4 and arp.operation == htons(ARP_REQUEST) and arp.sender_protocol != 0)


cdef inline u128 asked_for(int version, const uint8_t *question) noexcept nogil:
    """Return the address that a question wants the MAC of, host order; `question`: what follows the Ethernet header."""
    if version == 4:
        return ntohl((<const ArpHeader *>question).target_protocol)
    return load128(question + IPV6_HEADER + ICMP_HEADER)


cdef inline uint32_t arp_answer(uint8_t *out, const ArpHeader *asked, const uint8_t *mac) noexcept nogil:
    """Write the frame that says `mac`; return its length in bytes."""
    cdef EthernetHeader *ethernet = <EthernetHeader *>out
    cdef ArpHeader *arp = <ArpHeader *>(out + sizeof(EthernetHeader))
    memcpy(ethernet.destination, asked.sender_hardware, MAC_LENGTH)
    memcpy(ethernet.source, mac, MAC_LENGTH)
    ethernet.ethertype = htons(ETHERTYPE_ARP)
    arp[0] = asked[0]
    arp.operation = htons(ARP_REPLY)
    memcpy(arp.target_hardware, asked.sender_hardware, MAC_LENGTH)
    arp.target_protocol = asked.sender_protocol
    memcpy(arp.sender_hardware, mac, MAC_LENGTH)
    arp.sender_protocol = asked.target_protocol
    return sizeof(EthernetHeader) + sizeof(ArpHeader)


cdef inline uint32_t neighbour_answer(uint8_t *out, const uint8_t *asked, const uint8_t *to,
                                      const uint8_t *mac) noexcept nogil:
    """Write the frame to MAC `to` that answers an IPv6 packet that asks (RFC 4861, 4.4); return its length in bytes."""
    cdef EthernetHeader *ethernet = <EthernetHeader *>out
    cdef Ipv6Header *ip = <Ipv6Header *>(out + sizeof(EthernetHeader))
    cdef uint8_t *icmp = <uint8_t *>ip + IPV6_HEADER
    cdef uint8_t *option = icmp + ICMP_HEADER + 16
    cdef uint32_t length = ICMP_HEADER + 16 + 8
    memset(out, 0, NEIGHBOUR_MAX)
    memcpy(ethernet.destination, to, MAC_LENGTH)
    memcpy(ethernet.source, mac, MAC_LENGTH)
    ethernet.ethertype = htons(ETHERTYPE_IPV6)
    ip.version_class_flow = htonl(<uint32_t>6 << 28)
    ip.payload_length = htons(<uint16_t>length)
    ip.next_header = NEXT_ICMPV6
    ip.hop_limit = NEIGHBOUR_HOP_LIMIT
    memcpy(ip.source, asked + IPV6_HEADER + ICMP_HEADER, 16)
    memcpy(ip.destination, (<const Ipv6Header *>asked).source, 16)
    (<IcmpHeader *>icmp).type = ICMPV6_NEIGHBOUR_ADVERTISEMENT
    (<IcmpHeader *>icmp).rest = htonl(NEIGHBOUR_ANSWER)
    memcpy(icmp + ICMP_HEADER, asked + IPV6_HEADER + ICMP_HEADER, 16)
    option[0], option[1] = NEIGHBOUR_TARGET_MAC, 1
    memcpy(option + 2, mac, MAC_LENGTH)
    (<IcmpHeader *>icmp).checksum = checksum(icmp, length, pseudo_ipv6(ip.source, ip.destination, NEXT_ICMPV6, length))
    return NEIGHBOUR_MAX
