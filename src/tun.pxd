# The front door: inner packets from and to the kernel through a TUN device. One of the two files that make system
# calls.
#
# Arrives and leaves: one frame per call. With IFF_VNET_HDR a vnet_hdr stands before each, and a frame may be a
# super-packet of up to 64 KiB with an unfinished checksum; without it a frame is a bare IP packet (IFF_NO_PI, both). On
# a TAP an Ethernet header, the link header, stands between the two. The descriptor is non-blocking and Python's; this
# room neither opens nor closes it.

from libc.errno cimport EAGAIN, EINTR, EIO, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from posix.unistd cimport read

from batch cimport FRAME_MAX
from coalesce cimport iovec
from counters cimport DELIVERED, TUN_DOWN, TUN_FULL, TUN_REFUSED, Outcome
from wire.vnet_hdr cimport VNET_HDR, VnetHeader

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int fd, const iovec *pieces, int count)


cdef inline ssize_t tun_read(int fd, uint8_t *frame, bint vnet, uint32_t link) noexcept nogil:
    """Read one packet of up to FRAME_MAX bytes to `frame`, its vnet_hdr and link header to just before it.

    `link`: bytes of the link header.

    Return the packet's length, or -errno (-EAGAIN: no more at the moment).
    """
    cdef uint32_t before = (VNET_HDR if vnet else 0) + link
    cdef ssize_t length = read(fd, frame - before, before + FRAME_MAX)
    while length < 0 and errno == EINTR:
        length = read(fd, frame - before, before + FRAME_MAX)
    if length < 0:
        return -errno
    return max(length - <ssize_t>before, 0)


cdef inline Outcome tun_write_pieces(int fd, const iovec *pieces, int count) noexcept nogil:
    """Give one frame to the kernel, in pieces; return DELIVERED or why the kernel did not take it."""
    cdef ssize_t written = writev(fd, pieces, count)
    while written < 0 and errno == EINTR:
        written = writev(fd, pieces, count)
    if written >= 0:
        return DELIVERED
    if errno == EIO:
        return TUN_DOWN
    if errno == EAGAIN or errno == ENOBUFS or errno == ENOMEM:
        return TUN_FULL
    return TUN_REFUSED


cdef inline Outcome tun_write(int fd, const uint8_t *frame, uint32_t length, bint vnet) noexcept nogil:
    """Give one frame to the kernel as it is: under a vnet_hdr of zeros, so that the kernel verifies its checksums."""
    cdef VnetHeader plain
    cdef iovec pieces[2]
    plain.flags = plain.gso_type = 0
    plain.hdr_len = plain.gso_size = plain.csum_start = plain.csum_offset = 0
    pieces[0].iov_base, pieces[0].iov_len = &plain, sizeof(VnetHeader)
    pieces[1].iov_base, pieces[1].iov_len = <void *>frame, length
    if vnet:
        return tun_write_pieces(fd, pieces, 2)
    return tun_write_pieces(fd, &pieces[1], 1)
