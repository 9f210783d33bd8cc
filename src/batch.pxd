# A batch: one arena of bytes, and descriptors that say by offset and length what lies in it.
#
#   arena   | gap | packet 0 | gap | packet 1 |   | gap | packet 2 | ...            | room for one more full frame |
#                 ^at  length^                                       ^cursor
#
# Every pass of a loop (read, decide, dress, send) goes over the descriptors of one batch. Each read lands at the
# cursor, so that headers lie packed and not 64 KiB apart; the gap before a packet is where its coat goes. The batch
# ends when the door has no more, at BATCH_PACKETS, or when less than a full frame fits. One loop owns a batch and its
# arena, for ever; nothing is allocated per packet. Invariant: at + length <= ARENA for each descriptor, and at >= the
# coat's length.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    # Our choice: the size of the second-level cache of the machines measured.
    ARENA = 1 << 20
    # Our choice: 64 packets keep the wait of the first one below what a reader notices.
    BATCH_PACKETS = 64
    # Specification: the largest IP packet, and so the largest frame or datagram that a door can give (RFC 791, 3.1).
    FRAME_MAX = 65535

cdef struct Packet:
    uint32_t at                 # offset of the packet in the arena
    uint32_t length             # bytes
    uint32_t slot               # next hop: a slot of the FIB
    uint32_t outcome            # an Outcome

cdef struct Batch:
    uint8_t *arena              # ARENA bytes
    uint32_t cursor
    uint32_t count
    Packet packets[BATCH_PACKETS]


cdef inline void batch_clear(Batch *batch) noexcept nogil:
    """Begin a new batch; what lay in the arena is forgotten."""
    batch.cursor = 0
    batch.count = 0


cdef inline bint batch_has_room(const Batch *batch, uint32_t gap) noexcept nogil:
    """Tell whether one more full frame, with a gap before it, would fit."""
    return batch.count < BATCH_PACKETS and batch.cursor + gap + FRAME_MAX <= ARENA


cdef inline void batch_add(Batch *batch, uint32_t gap, uint32_t length) noexcept nogil:
    """Describe the packet of `length` bytes that was read at cursor + gap, and move on."""
    cdef Packet *packet = &batch.packets[batch.count]
    packet.at = batch.cursor + gap
    packet.length = length
    batch.count += 1
    batch.cursor = (packet.at + length + 15) & ~<uint32_t>15
