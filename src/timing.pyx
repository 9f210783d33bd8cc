# Rooms run in loops of their own, to be timed: flannel_udp._timing, for benchmarks/micro only.
#
# Like probe.pyx a window into the rooms, but each function does the same work `repeats` times without a Python object
# in between, on memory that stays where it is, as in a loop's arena: so what is timed is the room. It returns how many
# packets or frames came of it, by which a test sees that the work was done. Look-ups are timed by probe.pyx's Node.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from batch cimport Packet
from checksum cimport checksum as room_checksum
from coat cimport Coat
from coalesce cimport Merge, merge_add, merge_begin, merge_finish
from counters cimport FORWARD
from encap cimport Rules, coat_off, coat_on
from hop cimport hop_ipv4
from icmp cimport ERROR_MAX, icmp_error_ipv4
from peer cimport COAT_MAX, Peer
from run cimport Run, run_clear, run_join, run_piece, run_takes
from segment cimport HEADER_MAX, Template, segment_header, segment_plan
from wire.ipv4 cimport IPV4_HEADER, Ipv4Header
from wire.vnet_hdr cimport VnetHeader

cdef extern from *:
    """
    /* Nothing may be known of memory across this: else a loop over unchanged bytes would be run once. */
    static inline void flannel_udp_forget(void) { __asm__ volatile("" ::: "memory"); }
    """
    void forget "flannel_udp_forget"() noexcept nogil


cdef uint8_t *_memory(size_t size) except NULL:
    """Return zeroed memory; the caller frees it."""
    cdef uint8_t *made = <uint8_t *>calloc(1, max(size, <size_t>1))
    if made == NULL:
        raise MemoryError
    return made


def checksum(bytes data not None, uint32_t repeats):
    """Sum the data; return how often the sum came out the same."""
    cdef const uint8_t *at = data
    cdef uint32_t length = len(data)
    cdef uint16_t first = room_checksum(at, length)
    cdef uint32_t same = 0
    cdef uint32_t _turn
    with nogil:
        for _turn in range(repeats):
            forget()
            same += room_checksum(at, length) == first
    return same


def hop(bytes packet not None, uint32_t repeats):
    """Take a hop from the TTL of an IPv4 packet, which is then put back; return how many were still alive."""
    cdef uint8_t header[HEADER_MAX]
    cdef const uint8_t *fresh = packet
    cdef uint32_t alive = 0
    cdef uint32_t _turn
    if len(packet) < IPV4_HEADER:
        raise ValueError("not an IPv4 packet")
    with nogil:
        for _turn in range(repeats):
            memcpy(header, fresh, IPV4_HEADER)
            forget()
            alive += hop_ipv4(<Ipv4Header *>header, 1)
            forget()
    return alive


def segment(bytes packet not None, bytes vnet_hdr not None, uint32_t repeats):
    """Divide a valid super-packet: its template, and every segment's header; return how many segments."""
    cdef const uint8_t *at = packet
    cdef uint32_t length = len(packet)
    cdef uint8_t header[HEADER_MAX]
    cdef VnetHeader vnet
    cdef Template plan
    cdef uint64_t made = 0
    cdef uint32_t _turn, k
    if len(vnet_hdr) != sizeof(VnetHeader):
        raise ValueError(f"a vnet_hdr has {sizeof(VnetHeader)} bytes")
    memcpy(&vnet, <const uint8_t *>vnet_hdr, sizeof(VnetHeader))
    with nogil:
        for _turn in range(repeats):
            forget()
            if segment_plan(&plan, at, length, &vnet) != FORWARD:
                break
            for k in range(plan.count):
                segment_header(&plan, at, k, header)
                forget()
            made += plan.count
    return made


cdef uint32_t _merge_all(Merge *merge, uint8_t *arena, const uint8_t *fresh, const uint32_t *starts, uint32_t count,
                         bint uso) noexcept nogil:
    """Merge all packets of the arena into frames; return how many. What a frame writes into its first is put back."""
    cdef uint32_t frames = 0
    cdef uint32_t head = 0
    cdef uint32_t i
    merge_begin(merge, arena, starts[1], uso)
    for i in range(1, count + 1):
        if i < count and merge_add(merge, arena + starts[i], starts[i + 1] - starts[i]):
            continue
        merge_finish(merge)
        forget()
        frames += 1
        memcpy(arena + starts[head], fresh + starts[head], min(starts[head + 1] - starts[head], <uint32_t>HEADER_MAX))
        if i < count:
            head = i
            merge_begin(merge, arena + starts[i], starts[i + 1] - starts[i], uso)
    return frames


def coalesce(list packets not None, bint uso, uint32_t repeats):
    """Merge valid packets that lie one behind the other; return how many frames."""
    cdef bytes joined = b"".join(packets)
    cdef const uint8_t *fresh = joined
    cdef uint32_t count = len(packets)
    cdef uint8_t *arena
    cdef uint32_t *starts
    cdef Merge *merge
    cdef uint64_t frames = 0
    cdef uint32_t _turn, i
    if not packets:
        return 0
    arena = _memory(len(joined))
    starts = <uint32_t *>_memory((count + 1) * sizeof(uint32_t))
    merge = <Merge *>_memory(sizeof(Merge))
    memcpy(arena, fresh, len(joined))
    for i in range(count):
        starts[i + 1] = starts[i] + <uint32_t>len(packets[i])
    with nogil:
        for _turn in range(repeats):
            frames += _merge_all(merge, arena, fresh, starts, count, uso)
    free(arena)
    free(starts)
    free(merge)
    return frames


def encap(int coat_length, uint32_t size, uint32_t repeats):
    """Put a peer's coat before a packet of `size` bytes and take it off; return how often that left the packet.

    A coat of vxlan's length is checked.
    """
    cdef Rules rules
    cdef Peer peer
    cdef Packet described
    cdef uint8_t *arena
    cdef uint32_t whole = 0
    cdef uint32_t _turn
    if not 0 <= coat_length <= COAT_MAX:
        raise ValueError(f"coat_length {coat_length}: at most {COAT_MAX}")
    memset(&rules, 0, sizeof(Rules))
    memset(&peer, 0, sizeof(Peer))
    rules.coat_length = <uint8_t>coat_length
    rules.checked = coat_length == sizeof(Coat)
    # As expected, which is zeros, but for a source MAC that is not ours.
    peer.coat[COAT_MAX - 3] = 1
    arena = _memory(COAT_MAX + size)
    with nogil:
        for _turn in range(repeats):
            coat_on(&rules, &peer, arena + COAT_MAX)
            described.at, described.length = COAT_MAX - rules.coat_length, size + rules.coat_length
            forget()
            whole += coat_off(&rules, arena, &described) == FORWARD and described.at == COAT_MAX
    free(arena)
    return whole


def run(uint32_t size, uint32_t packets, uint32_t most, uint32_t repeats):
    """Make runs of datagrams of one size, each in one piece, at most `most` in each; return how many runs."""
    cdef uint8_t *data = _memory(size)
    cdef Run *making = <Run *>_memory(sizeof(Run))
    cdef uint64_t runs = 0
    cdef uint32_t _turn, _packet
    with nogil:
        for _turn in range(repeats):
            for _packet in range(packets):
                if not run_takes(making, 2, 0, size, most):
                    runs += 1
                    run_clear(making)
                run_join(making, 2, 0, size)
                run_piece(making, data, size)
                forget()
            runs += 1
            run_clear(making)
    free(data)
    free(making)
    return runs


def icmp_error(bytes packet not None, bytes own not None, int kind, int code, uint32_t repeats):
    """Write the ICMP error about a valid IPv4 packet; return the bytes of all of them."""
    cdef const uint8_t *at = packet
    cdef const uint8_t *source = own
    cdef uint32_t length = len(packet)
    cdef uint8_t *out = <uint8_t *>malloc(ERROR_MAX)
    cdef uint64_t written = 0
    cdef uint32_t _turn
    if out == NULL:
        raise MemoryError
    with nogil:
        for _turn in range(repeats):
            forget()
            written += icmp_error_ipv4(out, at, length, source, kind, code, 0)
    free(out)
    return written
