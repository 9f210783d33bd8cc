# A batch: one arena of bytes, and descriptors that say by offset and length what lies in it.
#
#   arena   | gap | packet 0 | gap | packet 1 |   | gap | packet 2 | ...            | room for one more full frame |
#                 ^at  length^                                       ^cursor
#
# Every pass of a loop (read, decide, dress or write) goes over the descriptors of one batch. Each read lands at the
# cursor, so that headers lie packed and not 64 KiB apart. The gap before a packet from the TUN holds its vnet_hdr,
# and then its coat; datagrams that came together lie together, without gaps. The batch ends when the door has no
# more, at BATCH_PACKETS, or when less than a full frame fits. One loop owns a batch and its arena, for ever; nothing
# is allocated per packet. Invariant: at + length <= ARENA for each descriptor, and at >= BATCH_GAP for those from the
# TUN. Where one call receives many datagrams, each of any size (no UDP_GRO), the arena is in SLOTS instead, and ends
# with the last.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from counters cimport FORWARD

cdef enum:
    # Our choice, measured: a batch of this size is still in the second-level cache when its last pass comes.
    ARENA = 1 << 18
    # Our choice: twice what one message can hold.
    BATCH_PACKETS = 256
    # Our choice: room for a vnet_hdr (10) or the longest coat (22), and packets aligned.
    BATCH_GAP = 32
    # Specification: the largest IP packet, and so the largest frame or datagram that a door can give (RFC 791, 3.1).
    FRAME_MAX = 65535
    # Our choice: datagrams that one call receives. Measured with small ones, the way in takes a fifth less time so.
    SLOTS = 64
    # Our choice: FRAME_MAX and more, an odd number of cache lines, so that headers do not share the cache's sets. Of a
    # slot only those pages exist that a datagram has reached.
    SLOT = 1041 * 64

cdef struct Packet:
    uint32_t at                 # offset of the packet in the arena
    uint32_t length             # bytes
    uint32_t slot               # next hop: a slot of the FIB
    uint16_t message            # place of its sender among the batch's; tun_to_udp: number of the socket to leave by
    uint16_t size               # udp_to_tun: payload of each datagram in a UDP super-packet that came as one; or 0
    uint8_t outcome             # an Outcome
    uint8_t ecn                 # udp_to_tun: of the outer header

cdef struct Batch:
    uint8_t *arena              # ARENA bytes, or SLOTS of SLOT if that is more
    uint32_t cursor
    uint32_t count
    uint32_t messages
    Packet packets[BATCH_PACKETS]


cdef inline void batch_clear(Batch *batch) noexcept nogil:
    """Begin a new batch; what lay in the arena is forgotten."""
    batch.cursor = 0
    batch.count = 0
    batch.messages = 0


cdef inline bint batch_has_room(const Batch *batch, uint32_t packets) noexcept nogil:
    """Tell whether one more full frame, of so many packets, would fit with the gap before it."""
    return batch.count + packets <= BATCH_PACKETS and batch.cursor + BATCH_GAP + FRAME_MAX <= ARENA


cdef inline Packet *batch_add(Batch *batch, uint32_t at, uint32_t length) noexcept nogil:
    """Describe a packet that was read."""
    cdef Packet *packet = &batch.packets[batch.count]
    packet.at = at
    packet.length = length
    packet.slot = 0
    packet.outcome = FORWARD
    packet.message = <uint16_t>batch.messages
    packet.size = packet.ecn = 0
    batch.count += 1
    return packet


cdef inline void batch_pass(Batch *batch, uint32_t end) noexcept nogil:
    """Move on behind what was read up to offset `end`."""
    batch.cursor = (end + 15) & ~<uint32_t>15
    batch.messages += 1
