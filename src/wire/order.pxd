# Byte order: headers hold network order, registers hold the machine's; and the 128-bit number that an IPv6 address is.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t value)
    uint16_t htons(uint16_t value)
    uint32_t ntohl(uint32_t value)
    uint32_t htonl(uint32_t value)

cdef extern from * nogil:
    """
    typedef unsigned __int128 flannel_u128;

    /* Sixteen bytes in network order as a number, and back; memcpy, since an address may lie at any alignment. */
    static inline flannel_u128 flannel_load128(const void *address)
    {
        uint32_t word[4];
        __builtin_memcpy(word, address, sizeof word);
        return (flannel_u128)ntohl(word[0]) << 96 | (flannel_u128)ntohl(word[1]) << 64
             | (flannel_u128)ntohl(word[2]) << 32 | ntohl(word[3]);
    }
    static inline void flannel_store128(void *address, flannel_u128 value)
    {
        uint32_t word[4] = {htonl((uint32_t)(value >> 96)), htonl((uint32_t)(value >> 64)),
                            htonl((uint32_t)(value >> 32)), htonl((uint32_t)value)};
        __builtin_memcpy(address, word, sizeof word);
    }
    """
    # Cython computes with it as with any unsigned integer; only C knows its true width.
    ctypedef unsigned long long u128 "flannel_u128"
    u128 load128 "flannel_load128"(const void *address)
    void store128 "flannel_store128"(void *address, u128 value)
