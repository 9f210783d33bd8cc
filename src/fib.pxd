# The FIB: overlay destination -> peer slot.
#
# flannel leases subnets of one length, so the network is an array of cells, one per possible subnet, and a look-up is a
# subtraction, a shift and one load:
#
#     network 10.5.0.0/16, SubnetLen 24             cells
#     10.5.52.7 - 10.5.0.0 = 0.0.52.7               ...| 51 | 52 | 53 |...
#     0.0.52.7 >> 8        = 52      ---------------------->|
#                                                     peer slot of the node that leases 10.5.52.0/24
#
# IPv6 is the same on 128-bit numbers. A network of more than 2^22 cells (IPv6 only) keeps its leased subnets in a
# hash table instead: open addressing, linear probing, never more than half full, so that a miss ends soon.
#
# Arrives: a destination as a number. Leaves: a slot, or one of the three reserved ones that say why there is none. The
# tables belong to the block (block.pxd) that holds this struct; published ones are read only. Not handled here:
# overlapping leases, which the builder (worker.pyx) resolves before it writes a cell.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wire.order cimport u128

cdef enum:
    # Our choice: 16 MiB of cells, and the largest array that a publish can still copy in a few milliseconds.
    FIB_MAX_CELLS = 1 << 22

cdef enum:
    SLOT_NONE = 0           # inside the network, leased by nobody
    SLOT_OWN = 1            # this node's own subnet
    SLOT_OUTSIDE = 2        # not in the network
    FIRST_PEER = 3

cdef struct Subnet:
    # A bucket of the hashed shape; slot SLOT_NONE marks an empty one.
    u128 number             # address >> shift
    uint32_t slot

cdef struct Fib:
    u128 network            # the network's first address
    u128 mask               # ones where the network's prefix is
    uint8_t shift           # bits of an address inside one subnet
    uint32_t cell_count     # 0: the hashed shape
    uint32_t bucket_mask    # buckets - 1, a power of two less one
    uint32_t *cells
    Subnet *buckets


cdef inline uint32_t fib_ipv4(const Fib *fib, uint32_t destination) noexcept nogil:
    """Return the slot for an IPv4 destination (host order)."""
    cdef uint32_t cell = (destination - <uint32_t>fib.network) >> fib.shift
    if cell >= fib.cell_count:
        return SLOT_OUTSIDE
    return fib.cells[cell]


cdef inline uint32_t fib_bucket(const Fib *fib, u128 number) noexcept nogil:
    """Return the index of the bucket that holds subnet `number`, or of the empty one where it would go."""
    cdef uint64_t key = (<uint64_t>number ^ <uint64_t>(number >> 64)) * 0x9E3779B97F4A7C15ULL
    cdef uint32_t index = <uint32_t>(key >> 32) & fib.bucket_mask
    while fib.buckets[index].slot != SLOT_NONE and fib.buckets[index].number != number:
        index = (index + 1) & fib.bucket_mask
    return index


cdef inline uint32_t fib_ipv6(const Fib *fib, u128 destination) noexcept nogil:
    """Return the slot for an IPv6 destination (host order)."""
    if destination & fib.mask != fib.network:
        return SLOT_OUTSIDE
    if fib.cell_count == 0:
        return fib.buckets[fib_bucket(fib, destination >> fib.shift)].slot
    return fib.cells[<uint32_t>((destination - fib.network) >> fib.shift)]


cdef inline void fib_hash_set(Fib *fib, u128 number, uint32_t slot) noexcept nogil:
    """Enter or change a subnet of the hashed shape; the caller has made sure that there is room."""
    cdef uint32_t index = fib_bucket(fib, number)
    fib.buckets[index].number = number
    fib.buckets[index].slot = slot


cdef inline void fib_hash_delete(Fib *fib, u128 number) noexcept nogil:
    """Remove a subnet of the hashed shape, if it is there, and re-enter what probed past it."""
    cdef uint32_t index = fib_bucket(fib, number)
    cdef Subnet moved
    fib.buckets[index].slot = SLOT_NONE
    index = (index + 1) & fib.bucket_mask
    while fib.buckets[index].slot != SLOT_NONE:
        moved = fib.buckets[index]
        fib.buckets[index].slot = SLOT_NONE
        fib_hash_set(fib, moved.number, moved.slot)
        index = (index + 1) & fib.bucket_mask
