# The street door: datagrams from and to other nodes through a UDP socket. One of the two files that make system calls.
#
# The socket is non-blocking, bound to the node's underlay address, with IP_MTU_DISCOVER = DO: every datagram leaves
# with DF set, and one larger than the path MTU comes back as EMSGSIZE instead of being cut up. The kernel keeps what
# it learned of each path (RFC 1191), so nothing is remembered here: path_mtu() asks it. Python opens and closes the
# sockets (flannel_udp/underlay.py).
#
#   errno of a send                                            outcome
#   EMSGSIZE                                                   TOO_BIG, which the loop answers or fragments
#   EAGAIN, ENOBUFS                                            SEND_BUFFER_FULL; the loop waits once per batch on EAGAIN
#   ENETUNREACH EHOSTUNREACH ENETDOWN EHOSTDOWN ECONNREFUSED   UNDERLAY_UNREACHABLE
#   EPERM, EACCES                                              SEND_FORBIDDEN: a firewall's verdict
#   any other                                                  SEND_ERROR

from libc.errno cimport (EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EINTR, EMSGSIZE, ENETDOWN, ENETUNREACH, ENOBUFS,
                         EAGAIN, EPERM, errno)
from libc.stdint cimport uint8_t, uint32_t

from batch cimport FRAME_MAX
from counters cimport (SEND_BUFFER_FULL, SEND_ERROR, SEND_FORBIDDEN, SENT, TOO_BIG, UNDERLAY_UNREACHABLE, Outcome)
from peer cimport AF_INET, Underlay, sockaddr_in, sockaddr_in6

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    ssize_t sendto(int fd, const void *data, size_t length, int flags, const sockaddr *to, socklen_t to_length)
    ssize_t recvfrom(int fd, void *data, size_t length, int flags, sockaddr *sender, socklen_t *sender_length)
    int connect(int fd, const sockaddr *to, socklen_t to_length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_IP
    int IPPROTO_IPV6
    int IP_MTU
    int IP_MTU_DISCOVER
    int IP_PMTUDISC_DONT
    int IP_PMTUDISC_DO
    int IPV6_MTU
    int IPV6_MTU_DISCOVER


cdef inline socklen_t underlay_length(int family) noexcept nogil:
    """Return the size of a socket address of `family`."""
    return sizeof(sockaddr_in) if family == AF_INET else sizeof(sockaddr_in6)


cdef inline ssize_t udp_receive(int fd, uint8_t *datagram, Underlay *sender) noexcept nogil:
    """Receive one datagram into FRAME_MAX bytes; return its length, or -errno (-EAGAIN: no more at the moment)."""
    cdef socklen_t length = sizeof(Underlay)
    cdef ssize_t received = recvfrom(fd, datagram, FRAME_MAX, 0, <sockaddr *>sender, &length)
    while received < 0 and errno == EINTR:
        received = recvfrom(fd, datagram, FRAME_MAX, 0, <sockaddr *>sender, &length)
    return -errno if received < 0 else received


cdef inline int udp_send(int fd, const uint8_t *payload, uint32_t length, const Underlay *to,
                         int family) noexcept nogil:
    """Send one datagram; return 0 or errno."""
    cdef ssize_t sent = sendto(fd, payload, length, 0, <const sockaddr *>to, underlay_length(family))
    while sent < 0 and errno == EINTR:
        sent = sendto(fd, payload, length, 0, <const sockaddr *>to, underlay_length(family))
    return errno if sent < 0 else 0


cdef inline int udp_send_fragmented(int fd, const uint8_t *payload, uint32_t length, const Underlay *to,
                                    int family) noexcept nogil:
    """Send one datagram that may be fragmented on the underlay; return 0 or errno. For rare packets: three calls."""
    cdef int level = IPPROTO_IP if family == AF_INET else IPPROTO_IPV6
    cdef int name = IP_MTU_DISCOVER if family == AF_INET else IPV6_MTU_DISCOVER
    cdef int value = IP_PMTUDISC_DONT
    cdef int error
    setsockopt(fd, level, name, &value, sizeof(value))
    error = udp_send(fd, payload, length, to, family)
    value = IP_PMTUDISC_DO
    setsockopt(fd, level, name, &value, sizeof(value))
    return error


cdef inline uint32_t path_mtu(int fd, const Underlay *to, int family) noexcept nogil:
    """Return the path MTU to an underlay address in bytes, 0 without a route; `fd` is a UDP socket kept for this."""
    cdef int mtu = 0
    cdef socklen_t length = sizeof(mtu)
    if connect(fd, <const sockaddr *>to, underlay_length(family)) < 0:
        return 0
    if family == AF_INET:
        getsockopt(fd, IPPROTO_IP, IP_MTU, &mtu, &length)
    else:
        getsockopt(fd, IPPROTO_IPV6, IPV6_MTU, &mtu, &length)
    return <uint32_t>max(mtu, 0)


cdef inline Outcome send_outcome(int error) noexcept nogil:
    """Name what the kernel said of a send (see the table above)."""
    if error == 0:
        return SENT
    if error == EMSGSIZE:
        return TOO_BIG
    if error == EAGAIN or error == ENOBUFS:
        return SEND_BUFFER_FULL
    if error in (ENETUNREACH, EHOSTUNREACH, ENETDOWN, EHOSTDOWN, ECONNREFUSED):
        return UNDERLAY_UNREACHABLE
    if error == EPERM or error == EACCES:
        return SEND_FORBIDDEN
    return SEND_ERROR
