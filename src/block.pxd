# The block: all that the control plane publishes to the loops, in one allocation.
#
#   | Block: sizes and pointers | cells or buckets of the FIB | peer slots | peers by address | addresses of ours |
#
# Theory of operation. The builder (worker.pyx) keeps one private block, the draft, and changes it cell by cell. To
# publish is to copy the draft as a whole, to point the copy's pointers at its own parts, and to hand it to rcu.pxd.
# Nothing in a published block changes any more. Who calls block_new() owns the block and frees it with free().

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from fib cimport Fib, Subnet
from peer cimport Peer, PeerTable
from rcu cimport CACHE_LINE, Retired, aligned_alloc
from wire.order cimport u128

cdef struct Own:
    uint8_t tunnel[16]          # this node's tunnel address, network order (IPv4: the first 4): source of ICMP errors
    uint32_t capacity
    uint32_t count
    u128 *addresses             # of this node beside those of its own subnet, host order

cdef struct Block:
    Retired retired
    size_t size                 # bytes, all parts included
    int family                  # AF_INET or AF_INET6
    Fib fib
    PeerTable peers
    Own own


cdef inline size_t block_part(size_t *cursor, size_t size) noexcept nogil:
    """Take `size` bytes at the cursor, from the next cache line on; return where they begin."""
    cdef size_t start = (cursor[0] + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    cursor[0] = start + size
    return start


cdef inline size_t block_place(Block *block, char *base) noexcept nogil:
    """Point the block's pointers at its parts, given its sizes and where it lies; return its size in bytes."""
    cdef size_t cursor = sizeof(Block)
    cdef size_t cells = block_part(&cursor, <size_t>block.fib.cell_count * sizeof(uint32_t))
    cdef size_t buckets = block_part(&cursor, (<size_t>block.fib.bucket_mask + 1) * sizeof(Subnet))
    cdef size_t slots = block_part(&cursor, <size_t>block.peers.capacity * sizeof(Peer))
    cdef size_t by_address = block_part(&cursor, (<size_t>block.peers.bucket_mask + 1) * sizeof(uint32_t))
    cdef size_t addresses = block_part(&cursor, <size_t>block.own.capacity * sizeof(u128))
    cdef size_t end = block_part(&cursor, 0)
    block.fib.cells = <uint32_t *>(base + cells)
    block.fib.buckets = <Subnet *>(base + buckets)
    block.peers.slots = <Peer *>(base + slots)
    block.peers.buckets = <uint32_t *>(base + by_address)
    block.own.addresses = <u128 *>(base + addresses)
    return end


cdef inline Block *block_new(const Block *sizes) noexcept nogil:
    """Allocate a block of the family, FIB and sizes that `sizes` holds, all its parts zero; NULL if memory is short."""
    cdef Block plan = sizes[0]
    cdef Block *block
    plan.size = block_place(&plan, NULL)
    block = <Block *>aligned_alloc(CACHE_LINE, plan.size)
    if block != NULL:
        memset(block, 0, plan.size)
        block[0] = plan
        block_place(block, <char *>block)
    return block


cdef inline void block_copy(Block *target, const Block *source) noexcept nogil:
    """Make `target`, of the same size, a copy of `source`."""
    memcpy(target, source, source.size)
    block_place(target, <char *>target)


cdef inline bint block_owns(const Block *block, u128 address) noexcept nogil:
    """Tell whether an address (host order) outside the own subnet is one of this node's."""
    cdef uint32_t i
    for i in range(block.own.count):
        if block.own.addresses[i] == address:
            return True
    return False
