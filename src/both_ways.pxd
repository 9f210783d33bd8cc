# One thread for both directions: a batch out, a batch in, and one sleep for both.
#
# On one or two cores this costs a quarter less CPU than two threads and answers sooner, since a request and its answer
# find the same thread awake; with more cores two threads move more. The two Ways stay apart: nothing is shared but the
# thread. What it does for a packet is told in tun_to_udp.pxd and udp_to_tun.pxd.

from posix.time cimport timespec

from tun_to_udp cimport out_batch
from udp_to_tun cimport in_batch
from way cimport POLLIN, Way, pollfd, wait_for_any


cdef inline int both_ways(Way *out, Way *into) noexcept nogil:
    """Run until stop (0) or until one of the doors fails (-errno)."""
    cdef timespec at_once
    cdef pollfd fds[3]
    cdef int more_out, more_in, awake
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    fds[1].fd, fds[1].events = out.tun, POLLIN
    fds[2].fd, fds[2].events = into.udp, POLLIN
    while True:
        more_out = out_batch(out)
        more_in = in_batch(into) if more_out >= 0 else more_out
        if more_in < 0:
            return more_in
        awake = wait_for_any(out, fds, 3, &at_once if more_out or more_in else NULL)
        if awake <= 0:
            return awake
