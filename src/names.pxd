# What each outcome and event is called, and what it means: told once, here, for counters, metrics and documents.
#
# Not a room of the loops: it makes Python objects.

from counters cimport (EVENTS, OUTCOMES, BAD_FLAGS, BAD_HEADER, BAD_OFFLOAD, BATCHES, BYTES, CE_LOST, DELIVERED,
                       FRAMES, ICMP_LIMITED, ICMP_NOT_ALLOWED, ICMP_SENT, MESSAGES, NEIGHBOUR_TOLD, NEIGHBOUR_UNKNOWN,
                       NOT_IP, NOT_OURS, NO_ROUTE, OTHER_ETHERTYPE, OTHER_FAMILY, OTHER_MAC, OTHER_VNI,
                       OUTER_FRAGMENTED, OUT_OF_NETWORK, OWN_MAC, OWN_SOURCE, OWN_SUBNET, RECEIVE_ERRORS,
                       SEND_BUFFER_FULL, SEND_ERROR, SEND_FORBIDDEN, SEND_WAITS, SENT, SOURCE_MISMATCH, SUPER_PACKETS,
                       TOO_BIG, TRUNCATED, TTL_EXPIRED, TUN_DOWN, TUN_FULL, TUN_REFUSED, UNDERLAY_UNREACHABLE,
                       UNKNOWN_SENDER, WAKE_UPS)


cdef inline tuple outcome_names():
    """Return (name, direction "out" | "in" | "both", meaning) of each outcome, in the order of the enum."""
    cdef dict told = {
        SENT: ("sent", "out", "handed to the underlay socket"),
        DELIVERED: ("delivered", "in", "written into the TUN"),
        NOT_IP: ("not_ip", "both", "neither IPv4 nor IPv6"),
        BAD_FLAGS: ("bad_flags", "in", "VXLAN flags or reserved bits that stand for nothing this node knows"),
        OTHER_VNI: ("other_vni", "in", "of another VXLAN network"),
        OTHER_MAC: ("other_mac", "in", "the inner frame is for another MAC address than this node's"),
        OWN_MAC: ("own_mac", "in", "the inner frame claims to come from this node's MAC address"),
        NEIGHBOUR_TOLD: ("neighbour_told", "out",
                         "asked for a peer's MAC address, and answered from the leases; TAP only"),
        NEIGHBOUR_UNKNOWN: ("neighbour_unknown", "out", "asked for a MAC address that no lease tells; TAP only"),
        OTHER_ETHERTYPE: ("other_ethertype", "both", "the inner frame holds no packet of this overlay's family"),
        OTHER_FAMILY: ("other_family", "both", "an IP packet of the family that this overlay does not carry"),
        BAD_OFFLOAD: ("bad_offload", "out", "an unfinished packet whose vnet_hdr does not fit it"),
        BAD_HEADER: ("bad_header", "both", "header length or total length that cannot be"),
        TRUNCATED: ("truncated", "both", "shorter than its header says"),
        NO_ROUTE: ("no_route", "out", "inside the network, but no node leases the destination's subnet"),
        OWN_SUBNET: ("own_subnet", "out", "for this node's own subnet, where the kernel has no route of its own to it"),
        OUT_OF_NETWORK: ("out_of_network", "out", "destination outside the overlay network"),
        NOT_OURS: ("not_ours", "in", "destination outside this node's subnet"),
        TTL_EXPIRED: ("ttl_expired", "both", "TTL or hop limit ended at this end of the tunnel"),
        TOO_BIG: ("too_big", "out", "larger than the path to the peer carries, and not to be fragmented"),
        UNKNOWN_SENDER: ("unknown_sender", "in", "from an underlay address that no peer has (--source-check)"),
        SOURCE_MISMATCH: ("source_mismatch", "in",
                          "from a peer that does not lease its source (--source-check=strict)"),
        CE_LOST: ("ce_lost", "in", "marked as congested on the underlay, and unable to tell its receiver (RFC 6040)"),
        OWN_SOURCE: ("own_source", "in", "inner source is this node's own address"),
        SEND_BUFFER_FULL: ("send_buffer_full", "out", "the socket's buffer or the interface's queue stayed full"),
        UNDERLAY_UNREACHABLE: ("underlay_unreachable", "out", "this node has no way to the peer's underlay address"),
        SEND_FORBIDDEN: ("send_forbidden", "out", "a firewall on this node forbids sending to the peer"),
        SEND_ERROR: ("send_error", "out", "the kernel refused the datagram for another reason; the log names it"),
        TUN_DOWN: ("tun_down", "in", "the TUN device is down"),
        TUN_FULL: ("tun_full", "in", "the kernel had no memory or room for the packet"),
        TUN_REFUSED: ("tun_refused", "in", "the TUN device refused the packet"),
    }
    return tuple([told[i] for i in range(<int>OUTCOMES)])


cdef inline tuple event_names():
    """Return (name, meaning) of each event, in the order of the enum."""
    cdef dict told = {
        WAKE_UPS: ("wake_ups", "times that the loop slept and was woken"),
        BATCHES: ("batches", "batches of one or more packets"),
        MESSAGES: ("messages", "messages to or from the underlay socket, of one or more datagrams"),
        FRAMES: ("frames", "frames from or to the TUN, of one or more packets"),
        SUPER_PACKETS: ("super_packets", "frames that were divided or merged"),
        ICMP_SENT: ("icmp_sent", "ICMP errors written into the TUN for the inner sender"),
        ICMP_NOT_ALLOWED: ("icmp_not_allowed", "ICMP errors that the RFCs forbid to send"),
        ICMP_LIMITED: ("icmp_limited", "ICMP errors above the rate limit"),
        OUTER_FRAGMENTED: ("outer_fragmented", "packets that went out in fragments, being too big but without DF"),
        RECEIVE_ERRORS: ("receive_errors", "errors that the socket reported instead of a datagram"),
        SEND_WAITS: ("send_waits", "waits for room in the socket's buffer"),
        BYTES: ("bytes", "bytes of the packets that were sent or delivered, without any coat"),
    }
    return tuple([told[i] for i in range(<int>EVENTS)])
