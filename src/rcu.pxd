# Publish a block by one pointer; free the old one when every reader has passed or sleeps (quiescent-state reclamation).
#
# Theory of operation. There is one writer (Python's owner thread) and a few readers (the loops). The writer fills a
# new block, stores its pointer, and raises the epoch: the old block is retired, marked with that epoch. A reader
# notes the epoch that it has seen at the start of each batch, before it loads the pointer, and notes 0 (offline)
# around every sleep. A retired block may go once each reader is offline or has seen its epoch: who has seen it loads
# the newer pointer.
#
#   reader:  seen = epoch  |  fence  |  block = current  | ... batch ... |  seen = 0, sleep
#   writer:  current = new |  fence  |  epoch += 1       | all seen == 0 or >= epoch?  free the old
#
# The two fences exclude the one bad interleaving (a reader wakes while the writer looks): either the writer sees the
# reader awake, or the reader sees the new pointer. No lock, no wake-up, and no reader ever waits. A loop that slept
# for an hour holds nothing back. Blocks are owned here from publish to reclaim; who takes one back frees it or fills
# it again.

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    CACHE_LINE = 64
    # Our choice: two loops per queue, and no machine wants more than 32 queues of one TUN.
    RCU_READERS = 64

cdef extern from * nogil:
    """
    #define flannel_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define flannel_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define flannel_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    uint64_t load_acquire "flannel_load_acquire"(uint64_t *place)
    void store_release "flannel_store_release"(uint64_t *place, uint64_t value)
    void *load_pointer "flannel_load_acquire"(void **place)
    void store_pointer "flannel_store_release"(void **place, void *value)
    void fence "flannel_fence"()

cdef struct Retired:
    # The first member of everything that is published.
    Retired *next
    uint64_t epoch

cdef struct Reader:
    uint64_t seen               # epoch; 0: offline
    uint64_t taken              # 1: a loop has this place
    uint8_t padding[48]         # a cache line each: readers never disturb one another

cdef struct Rcu:
    void *current               # the published block, a Retired first
    uint64_t epoch              # counts publishes, from 1
    Retired *oldest             # retired, not yet reclaimed, in order of epoch
    Retired *newest
    uint8_t padding[32]         # to a cache line: what the writer writes is apart from the readers' places
    Reader readers[RCU_READERS]


cdef inline Rcu *rcu_new() noexcept nogil:
    """Allocate one with nothing published; NULL if memory is short."""
    cdef Rcu *rcu = <Rcu *>aligned_alloc(CACHE_LINE, sizeof(Rcu))
    if rcu != NULL:
        memset(rcu, 0, sizeof(Rcu))
    return rcu


cdef inline void rcu_free(Rcu *rcu) noexcept nogil:
    """Free all that was published and the Rcu itself (or NULL), when there is no reader any more."""
    cdef Retired *block
    if rcu == NULL:
        return
    while rcu.oldest != NULL:
        block = rcu.oldest
        rcu.oldest = block.next
        free(block)
    free(rcu.current)
    free(rcu)


cdef inline void *rcu_online(Rcu *rcu, Reader *reader) noexcept nogil:
    """Begin a batch: return the block that may be read until the next call or rcu_offline()."""
    store_release(&reader.seen, load_acquire(&rcu.epoch))
    fence()
    return load_pointer(&rcu.current)


cdef inline void rcu_offline(Reader *reader) noexcept nogil:
    """Before a sleep: nothing published is in use."""
    store_release(&reader.seen, 0)


cdef inline bint rcu_passed(Rcu *rcu, uint64_t epoch) noexcept nogil:
    """Tell whether no reader can still hold what was retired at `epoch`."""
    cdef uint64_t seen
    cdef int i
    fence()
    for i in range(RCU_READERS):
        seen = load_acquire(&rcu.readers[i].seen)
        if seen != 0 and seen < epoch:
            return False
    return True


cdef inline uint64_t rcu_publish(Rcu *rcu, Retired *block) noexcept nogil:
    """Make `block` the current one, retire its predecessor, and return the epoch of the change."""
    cdef Retired *old = <Retired *>rcu.current
    cdef uint64_t epoch = rcu.epoch + 1
    store_pointer(&rcu.current, block)
    fence()
    store_release(&rcu.epoch, epoch)
    if old != NULL:
        old.next = NULL
        old.epoch = epoch
        if rcu.oldest == NULL:
            rcu.oldest = old
        else:
            rcu.newest.next = old
        rcu.newest = old
    return epoch


cdef inline Retired *rcu_reclaim(Rcu *rcu) noexcept nogil:
    """Take back the oldest retired block that no reader can hold; NULL where there is none."""
    cdef Retired *block = rcu.oldest
    if block == NULL or not rcu_passed(rcu, block.epoch):
        return NULL
    rcu.oldest = block.next
    return block
