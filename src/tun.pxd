# The front door: inner packets from and to the kernel through a TUN device. One of the two files that make system
# calls.
#
# Arrives and leaves: bare IP packets, one per call, since the device was opened with IFF_NO_PI (flannel_udp/tun.py).
# The descriptor is non-blocking and Python's; this room neither opens nor closes it.

from libc.errno cimport EAGAIN, EINTR, EIO, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from posix.unistd cimport read, write

from batch cimport FRAME_MAX
from counters cimport DELIVERED, TUN_DOWN, TUN_FULL, TUN_REFUSED, Outcome


cdef inline ssize_t tun_read(int fd, uint8_t *frame) noexcept nogil:
    """Read one packet into FRAME_MAX bytes; return its length, or -errno (-EAGAIN: no more at the moment)."""
    cdef ssize_t length = read(fd, frame, FRAME_MAX)
    while length < 0 and errno == EINTR:
        length = read(fd, frame, FRAME_MAX)
    return -errno if length < 0 else length


cdef inline Outcome tun_write(int fd, const uint8_t *packet, uint32_t length) noexcept nogil:
    """Give one packet to the kernel; return DELIVERED or why the kernel did not take it."""
    cdef ssize_t written = write(fd, packet, length)
    while written < 0 and errno == EINTR:
        written = write(fd, packet, length)
    if written >= 0:
        return DELIVERED
    if errno == EIO:
        return TUN_DOWN
    if errno == EAGAIN or errno == ENOBUFS or errno == ENOMEM:
        return TUN_FULL
    return TUN_REFUSED
