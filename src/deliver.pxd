# Into the TUN: frames, merged or whole, and what the kernel says to them. The mirror image of send.pxd.
#
#   TUN_REFUSED   a merged frame goes packet by packet, a super-packet segment by segment: what the kernel does not take
#                 as one it may take singly. UDP is not merged again then, which is said once
#   others        the same for every packet of the frame
#
# On a TAP each frame begins with an Ethernet header: the one that came in the packet's coat, right before it, whose
# destination is this node's MAC.
#
# Owns nothing; works on the Way's frame in the making, whose packets lie in the batch.

from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from block cimport Block
from coalesce cimport Merge, iovec, merge_finish, merge_undo
from counters cimport (BYTES, DELIVERED, FORWARD, FRAMES, SUPER_PACKETS, TUN_REFUSED, Outcome, count_event, count_peer)
from fib cimport FIRST_PEER
from segment cimport HEADER_MAX, Template, segment_header, segment_payload, segment_plan
from tun cimport tun_write, tun_write_pieces
from way cimport Way
from wire.ipv4 cimport PROTOCOL_UDP
from wire.vnet_hdr cimport VNET_GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader


cdef inline void settle(Way *way, const Block *block, Outcome outcome, uint32_t packets,
                        uint32_t length) noexcept nogil:
    """Count packets that were written, of `length` bytes together."""
    cdef uint32_t slot = way.merge_slot
    way.counters.outcome[<int>outcome] += packets
    if outcome != DELIVERED:
        return
    way.counters.event[<int>BYTES] += length
    if slot >= FIRST_PEER:
        count_peer(&way.peers[slot], block.peers.slots[slot].generation, packets, length, way.now)


cdef inline void link_on(const Way *way, iovec *piece, VnetHeader *vnet) noexcept nogil:
    """Have a frame begin with the link header before its first piece; offsets count from there."""
    piece.iov_base = <uint8_t *>piece.iov_base - way.link
    piece.iov_len += way.link
    if vnet.flags & VNET_NEEDS_CSUM:
        vnet.csum_start += <uint16_t>way.link
        vnet.hdr_len += <uint16_t>way.link


cdef inline void link_off(const Way *way, iovec *piece, VnetHeader *vnet) noexcept nogil:
    """Undo link_on()."""
    piece.iov_base = <uint8_t *>piece.iov_base + way.link
    piece.iov_len -= way.link
    if vnet.flags & VNET_NEEDS_CSUM:
        vnet.csum_start -= <uint16_t>way.link
        vnet.hdr_len -= <uint16_t>way.link


cdef inline void write_singly(Way *way, const Block *block) noexcept nogil:
    """Write the packets of a refused frame one by one, as they came."""
    cdef Merge *merge = &way.merge
    cdef const uint8_t *frame
    cdef uint32_t length, i
    merge_undo(merge)
    for i in range(1, merge.count + 1):
        length = <uint32_t>merge.pieces[i].iov_len
        count_event(&way.counters, FRAMES)
        frame = <uint8_t *>merge.pieces[i].iov_base - way.link
        settle(way, block, tun_write(way.tun, frame, way.link + length, way.vnet), 1, length)


cdef inline void flush(Way *way, const Block *block) noexcept nogil:
    """Write the frame in the making, if there is one, and count its packets."""
    cdef Merge *merge = &way.merge
    cdef Outcome outcome
    if merge.head == NULL:
        return
    merge_finish(merge)
    link_on(way, &merge.pieces[1], &merge.vnet)
    if way.vnet:
        outcome = tun_write_pieces(way.tun, merge.pieces, <int>merge.count + 1)
    else:
        outcome = tun_write_pieces(way.tun, &merge.pieces[1], 1)
    link_off(way, &merge.pieces[1], &merge.vnet)
    count_event(&way.counters, FRAMES)
    if outcome == TUN_REFUSED and merge.count > 1:
        # A kernel that grants UDP super-packets and then refuses one is not asked again.
        if merge.protocol == PROTOCOL_UDP:
            way.uso, way.uso_refused = False, EINVAL
        write_singly(way, block)
    else:
        if merge.count > 1:
            count_event(&way.counters, SUPER_PACKETS)
        settle(way, block, outcome, merge.count, merge.length + (merge.count - 1) * merge.header)
    merge.head = NULL


cdef inline void write_segments(Way *way, const Block *block, uint8_t *packet, uint32_t length, uint32_t segments,
                                const VnetHeader *vnet) noexcept nogil:
    """Divide a super-packet that the TUN does not take, and write each segment."""
    cdef uint8_t header[HEADER_MAX]
    cdef VnetHeader plain
    cdef Template plan
    cdef iovec pieces[4]
    cdef uint32_t i
    cdef Outcome outcome = segment_plan(&plan, packet, length, vnet)
    if outcome != FORWARD:
        settle(way, block, outcome, segments, 0)
        return
    memset(&plain, 0, sizeof(plain))
    pieces[0].iov_base, pieces[0].iov_len = &plain, sizeof(plain)
    pieces[1].iov_base, pieces[1].iov_len = packet - way.link, way.link
    pieces[2].iov_base, pieces[2].iov_len = header, plan.header
    for i in range(plan.count):
        segment_header(&plan, packet, i, header)
        pieces[3].iov_base = packet + plan.header + i * plan.size
        pieces[3].iov_len = segment_payload(&plan, i)
        outcome = tun_write_pieces(way.tun, &pieces[0 if way.vnet else 1], 4 if way.vnet else 3)
        count_event(&way.counters, FRAMES)
        settle(way, block, outcome, 1, plan.header + segment_payload(&plan, i))


cdef inline void write_super(Way *way, const Block *block, uint8_t *packet, uint32_t length, uint32_t segments,
                             VnetHeader *vnet) noexcept nogil:
    """Write a super-packet that came as one, and count its segments, of which the law knows one already."""
    cdef iovec pieces[2]
    cdef Outcome outcome = TUN_REFUSED
    way.counters.packets_in += segments - 1
    if way.vnet and (way.uso or vnet.gso_type != VNET_GSO_UDP_L4):
        pieces[0].iov_base, pieces[0].iov_len = vnet, sizeof(VnetHeader)
        pieces[1].iov_base, pieces[1].iov_len = packet, length
        link_on(way, &pieces[1], vnet)
        outcome = tun_write_pieces(way.tun, pieces, 2)
        link_off(way, &pieces[1], vnet)
        count_event(&way.counters, FRAMES)
    if outcome == TUN_REFUSED:
        write_segments(way, block, packet, length, segments, vnet)
        return
    count_event(&way.counters, SUPER_PACKETS)
    settle(way, block, outcome, segments, length + (segments - 1) * vnet.hdr_len)
