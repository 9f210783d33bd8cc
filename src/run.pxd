# Runs: consecutive packets of one size, lane and next hop, to leave as one UDP_SEGMENT message.
#
#   pieces   | coat+header 0 | payload 0 | coat+header 1 | payload 1 | packet 2 | packet 3 | ...   iovecs, no copies
#   starts     ^0                          ^2                          ^4         ^5
#
# Whether they come from one super-packet or are small datagrams of many flows makes no difference: the kernel cuts
# the message at every `size` bytes, and each piece is on the wire what it would have been alone. Only the last packet
# may be shorter. A lane is what further must be alike in one message: the socket that it leaves by, and the ECN bits of
# its outer headers. A run holds pointers into the batch and into its own header space; it is emptied before either is
# used again. The same parts serve where UDP_SEGMENT is refused: then each goes alone, by sendmmsg.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from coalesce cimport iovec
from peer cimport COAT_MAX
from segment cimport HEADER_MAX

cdef enum:
    # Specification: UDP_MAX_SEGMENTS is 128 since Linux 6.9 and 64 before; some older kernels count headers too, so one
    # less.
    RUN_PACKETS = 127
    RUN_PACKETS_OLD = 63
    # Specification: 65,535 less IPv6 and UDP header, the longer pair.
    RUN_BYTES = 65487
    RUN_HEADER = HEADER_MAX + COAT_MAX

cdef struct Run:
    uint32_t slot
    uint32_t lane               # number of a socket << 2 | ECN
    uint32_t size               # bytes of each datagram but the last
    uint32_t count              # datagrams
    uint32_t bytes              # in all of them
    uint32_t used               # pieces
    bint closed                 # the last one is shorter
    uint32_t starts[RUN_PACKETS + 1]
    iovec pieces[2 * RUN_PACKETS]
    uint8_t headers[RUN_PACKETS][RUN_HEADER]


cdef inline void run_clear(Run *run) noexcept nogil:
    """Begin a new run."""
    run.count = run.bytes = run.used = 0
    run.closed = False


cdef inline bint run_takes(const Run *run, uint32_t slot, uint32_t lane, uint32_t length,
                           uint32_t most) noexcept nogil:
    """Tell whether a datagram of `length` bytes may join; `most`: datagrams in a message."""
    if run.count == 0:
        return True
    return (run.slot == slot and run.lane == lane and not run.closed and length <= run.size
            and run.count < most and run.bytes + length <= RUN_BYTES)


cdef inline void run_join(Run *run, uint32_t slot, uint32_t lane, uint32_t length) noexcept nogil:
    """Enter a datagram of `length` bytes, whose pieces run_piece() will add."""
    if run.count == 0:
        run.slot, run.lane, run.size = slot, lane, length
    run.closed = length < run.size
    run.starts[run.count] = run.used
    run.count += 1
    run.bytes += length


cdef inline void run_piece(Run *run, const uint8_t *data, uint32_t length) noexcept nogil:
    """Append bytes to the last datagram; the end of its pieces is the start of the next."""
    run.pieces[run.used].iov_base = <void *>data
    run.pieces[run.used].iov_len = length
    run.used += 1
    run.starts[run.count] = run.used


cdef inline uint32_t run_length(const Run *run, uint32_t index) noexcept nogil:
    """Return the bytes of datagram `index`."""
    return run.size if index + 1 < run.count else run.bytes - run.size * (run.count - 1)


cdef inline uint32_t run_copy(const Run *run, uint32_t index, uint8_t *out, uint32_t room) noexcept nogil:
    """Copy at most `room` bytes of datagram `index` together; return how many."""
    cdef uint32_t filled = 0
    cdef uint32_t length, i
    for i in range(run.starts[index], run.starts[index + 1]):
        length = min(<uint32_t>run.pieces[i].iov_len, room - filled)
        memcpy(out + filled, run.pieces[i].iov_base, length)
        filled += length
    return filled
