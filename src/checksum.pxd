# The Internet checksum: one's complement sum of 16-bit words (RFC 1071), its pseudo headers, and its incremental
# update.
#
# Arrives: bytes at any alignment, of any length. Leaves: sums and checksums in the byte order of the data itself. The
# sum does not care in which order the bytes of a word are read as long as all words are read alike (RFC 1071, 2 (B)),
# so words are read natively, nothing is swapped, and a result is stored into its header field as it is. Owns no
# memory. Not handled: data beyond 16 GiB, where the 64-bit accumulator could overflow.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wire.order cimport htonl, htons


cdef extern from *:
    """
    /* In C, for Cython cannot give one loop to two kinds of processor. Lanes that do not depend on one another are what
       the compiler turns into vectors, and several of them are in flight at a time. Our choice, measured
       (benchmarks/micro/bench_checksum.py): with 16 lanes 1.3 times as fast as with one, with AVX2 twice. */
    #define SUM_LANES 16
    #define SUM_BLOCK (SUM_LANES * sizeof(uint32_t))
    struct sum_word { uint32_t value; } __attribute__((packed));

    static inline __attribute__((always_inline)) uint64_t sum_lanes(const uint8_t *data, size_t blocks) {
        const struct sum_word *words = (const struct sum_word *)data;
        uint64_t lanes[SUM_LANES] = {0};
        uint64_t total = 0;
        for (size_t first = 0; first < blocks * SUM_LANES; first += SUM_LANES)
            for (int i = 0; i < SUM_LANES; i++)
                lanes[i] += words[first + i].value;
        for (int i = 0; i < SUM_LANES; i++)
            total += lanes[i];
        return total;
    }

    #ifdef __x86_64__
    __attribute__((target("avx2"))) static uint64_t sum_blocks_avx2(const uint8_t *data, size_t blocks) {
        return sum_lanes(data, blocks);
    }
    #endif

    static inline uint64_t sum_blocks(const uint8_t *data, size_t blocks) {
    #ifdef __x86_64__
        if (__builtin_cpu_supports("avx2"))
            return sum_blocks_avx2(data, blocks);
    #endif
        return sum_lanes(data, blocks);
    }
    """
    enum:
        SUM_BLOCK
    uint64_t sum_blocks(const uint8_t *data, size_t blocks) nogil


cdef packed struct Word:
    # Packed, hence of alignment 1.
    uint32_t value


cdef inline uint64_t sum_bytes(const uint8_t *data, size_t length, uint64_t total=0) noexcept nogil:
    """Add `length` bytes, taken as 16-bit words, a last odd byte padded with zero, to an unfolded sum."""
    cdef const Word *words
    cdef uint32_t tail = 0
    cdef size_t i
    if length >= SUM_BLOCK:
        total += sum_blocks(data, length // SUM_BLOCK)
        data += length // SUM_BLOCK * SUM_BLOCK
        length %= SUM_BLOCK
    words = <const Word *>data
    for i in range(length >> 2):
        total += words[i].value
    memcpy(&tail, data + (length & ~<size_t>3), length & 3)
    return total + tail


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Fold an unfolded sum into 16 bits with end-around carry."""
    total = <uint32_t>total + (total >> 32)
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total


cdef inline uint16_t checksum(const uint8_t *data, size_t length, uint64_t total=0) noexcept nogil:
    """Return the checksum field for `length` bytes plus `total`; 0 when data that holds its field is right."""
    return <uint16_t>~fold(sum_bytes(data, length, total))


cdef inline uint64_t pseudo_ipv4(uint32_t source, uint32_t destination, uint8_t protocol,
                                 uint16_t length) noexcept nogil:
    """Sum the IPv4 pseudo header (RFC 768; RFC 9293, 3.1): addresses in network order, payload length in bytes."""
    return <uint64_t>source + destination + htons(protocol) + htons(length)


cdef inline uint64_t pseudo_ipv6(const uint8_t *source, const uint8_t *destination, uint8_t protocol,
                                 uint32_t length) noexcept nogil:
    """Sum the IPv6 pseudo header (RFC 8200, 8.1): addresses of 16 bytes, length of the upper-layer packet in bytes."""
    return sum_bytes(source, 16, sum_bytes(destination, 16)) + htonl(length) + htons(protocol)


cdef inline uint16_t update16(uint16_t field, uint16_t old, uint16_t new) noexcept nogil:
    """Return the checksum field after one 16-bit word changed from `old` to `new` (RFC 1624, equation 3)."""
    cdef uint32_t total = <uint16_t>~field + <uint32_t><uint16_t>~old + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>~total
