# The street door: datagrams from and to other nodes through a UDP socket. One of the two files that make system calls.
#
# The socket is non-blocking, bound to the node's underlay address. With IP_MTU_DISCOVER = DO every datagram leaves with
# DF set, and one larger than the path MTU comes back as EMSGSIZE instead of being cut up; with DONT, as vxlan's, the
# kernel sends it in fragments, and only a message of several comes back. The kernel keeps what it learned of each path
# (RFC 1191), so nothing is remembered here: path_mtu() asks it. Python opens and closes the sockets
# (flannel_udp/underlay.py). With UDP_SEGMENT a message is cut into datagrams by the kernel or the card; with
# UDP_GRO a message received is several datagrams of one sender and size, and says which size; without it one call
# (recvmmsg) receives several messages.
#
#   errno of a send                                            outcome
#   EMSGSIZE                                                   TOO_BIG, which the loop answers or fragments
#   EAGAIN, ENOBUFS                                            SEND_BUFFER_FULL; the loop waits once per batch on EAGAIN
#   ENETUNREACH EHOSTUNREACH ENETDOWN EHOSTDOWN ECONNREFUSED   UNDERLAY_UNREACHABLE
#   EPERM, EACCES                                              SEND_FORBIDDEN: a firewall's verdict
#   any other                                                  SEND_ERROR
#   EIO, EINVAL, EMSGSIZE for a message of several             its datagrams go one by one; see tun_to_udp.pxd

from libc.errno cimport (EACCES, EAGAIN, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EINTR, EMSGSIZE, ENETDOWN, ENETUNREACH,
                         ENOBUFS, EPERM, errno)
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from batch cimport FRAME_MAX, SLOT, SLOTS
from coalesce cimport iovec
from counters cimport (SEND_BUFFER_FULL, SEND_ERROR, SEND_FORBIDDEN, SENT, TOO_BIG, UNDERLAY_UNREACHABLE, Outcome)
from ecn cimport CE, NOT_ECT
from peer cimport AF_INET, Underlay, sockaddr_in, sockaddr_in6
from run cimport Run

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int MSG_TRUNC
    int MSG_CTRUNC
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *control)
    uint8_t *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t length)
    size_t CMSG_SPACE(size_t length)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int connect(int fd, const sockaddr *to, socklen_t to_length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_IP
    int IPPROTO_IPV6
    int IP_MTU
    int IP_MTU_DISCOVER
    int IP_TOS
    int IP_PMTUDISC_DONT
    int IP_PMTUDISC_DO
    int IPV6_MTU
    int IPV6_MTU_DISCOVER
    int IPV6_TCLASS

cdef enum:
    # Specification: linux/udp.h; written here, since C libraries of old lack them.
    SOL_UDP = 17
    UDP_SEGMENT = 103
    UDP_GRO = 104
    # Our choice: room for the two control messages that are asked for or said, and for one that is not.
    CONTROL = 128

cdef struct Received:
    # A message: `length` bytes that are datagrams of `size` bytes each, the last perhaps shorter.
    uint32_t length
    uint32_t size
    uint8_t ecn                 # of the outer header, where the socket was asked to tell it
    bint whole                  # nothing was cut off, neither bytes nor size


cdef inline socklen_t underlay_length(int family) noexcept nogil:
    """Return the size of a socket address of `family`."""
    return sizeof(sockaddr_in) if family == AF_INET else sizeof(sockaddr_in6)


cdef inline int udp_receive(int fd, uint8_t *place, Underlay *sender, Received *received) noexcept nogil:
    """Receive one message into FRAME_MAX bytes; return 0 or errno (EAGAIN: no more at the moment)."""
    cdef uint8_t control[CONTROL]
    cdef msghdr message
    cdef iovec piece
    cdef ssize_t length
    piece.iov_base, piece.iov_len = place, FRAME_MAX
    memset(&message, 0, sizeof(message))
    memset(received, 0, sizeof(Received))
    message.msg_iov, message.msg_iovlen = &piece, 1
    while True:
        message.msg_name, message.msg_namelen = sender, sizeof(Underlay)
        message.msg_control, message.msg_controllen = control, CONTROL
        length = recvmsg(fd, &message, 0)
        if length >= 0:
            break
        if errno != EINTR:
            return errno
    udp_told(&message, <uint32_t>length, received)
    return 0


cdef inline void udp_told(msghdr *message, uint32_t length, Received *received) noexcept nogil:
    """Say what a message of `length` bytes is, by its flags and control messages."""
    cdef int size = 0
    cdef int tclass = 0
    cdef cmsghdr *said = CMSG_FIRSTHDR(message)
    received.ecn = 0
    while said != NULL:
        if said.cmsg_level == SOL_UDP and said.cmsg_type == UDP_GRO:
            memcpy(&size, CMSG_DATA(said), sizeof(size))
        elif said.cmsg_level == IPPROTO_IP and said.cmsg_type == IP_TOS:
            received.ecn = CMSG_DATA(said)[0] & CE
        elif said.cmsg_level == IPPROTO_IPV6 and said.cmsg_type == IPV6_TCLASS:
            memcpy(&tclass, CMSG_DATA(said), sizeof(tclass))
            received.ecn = tclass & CE
        said = CMSG_NXTHDR(message, said)
    received.length = length
    received.size = <uint32_t>size if size > 0 else length
    received.whole = not message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)


cdef inline bint udp_gro(int fd) noexcept nogil:
    """Tell whether a message of this socket may be several datagrams."""
    cdef int on = 0
    cdef socklen_t length = sizeof(on)
    return getsockopt(fd, SOL_UDP, UDP_GRO, &on, &length) == 0 and on


cdef inline bint udp_fragments(int fd, int family) noexcept nogil:
    """Tell whether the kernel may send a datagram of this socket in fragments."""
    cdef int how = 0
    cdef socklen_t length = sizeof(how)
    if family == AF_INET:
        return getsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &how, &length) == 0 and how == IP_PMTUDISC_DONT
    return getsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &how, &length) == 0 and how == IP_PMTUDISC_DONT


cdef inline int udp_receive_many(int fd, uint8_t *slots, Underlay *senders, mmsghdr *messages,
                                 uint8_t *controls) noexcept nogil:
    """Receive up to SLOTS datagrams, each into its SLOT; return how many, or -errno (-EAGAIN: none at the moment).

    `messages`: SLOTS of them, for udp_told(); `senders` as many; `controls`: SLOTS times CONTROL bytes, or NULL where
    nothing but flags is told.
    """
    cdef iovec pieces[SLOTS]
    cdef int received = -1
    cdef int i
    memset(messages, 0, SLOTS * sizeof(mmsghdr))
    for i in range(SLOTS):
        pieces[i].iov_base, pieces[i].iov_len = slots + i * SLOT, FRAME_MAX
        messages[i].msg_hdr.msg_iov, messages[i].msg_hdr.msg_iovlen = &pieces[i], 1
        messages[i].msg_hdr.msg_name, messages[i].msg_hdr.msg_namelen = &senders[i], sizeof(Underlay)
        if controls != NULL:
            messages[i].msg_hdr.msg_control = controls + i * CONTROL
            messages[i].msg_hdr.msg_controllen = CONTROL
    while received < 0:
        received = recvmmsg(fd, messages, SLOTS, 0, NULL)
        if received < 0 and errno != EINTR:
            return -errno
    return received


cdef inline void udp_address(msghdr *message, const Underlay *to, int family, iovec *pieces,
                             size_t count) noexcept nogil:
    """Fill a message header: one datagram, or the parts of several, to one node."""
    memset(message, 0, sizeof(msghdr))
    message.msg_name, message.msg_namelen = <void *>to, underlay_length(family)
    message.msg_iov, message.msg_iovlen = pieces, count


cdef inline void udp_say(msghdr *message, uint8_t *control, int level, int kind, const void *value,
                         size_t length) noexcept nogil:
    """Add a control message; `control`: CONTROL zero bytes, the same for all of one message."""
    cdef cmsghdr *said = <cmsghdr *>(control + message.msg_controllen)
    said.cmsg_level, said.cmsg_type, said.cmsg_len = level, kind, CMSG_LEN(length)
    memcpy(CMSG_DATA(said), value, length)
    message.msg_control = control
    message.msg_controllen += CMSG_SPACE(length)


cdef inline void udp_mark(msghdr *message, uint8_t *control, int family, uint32_t lane) noexcept nogil:
    """Have the outer headers carry the lane's ECN bits; the socket's own are none."""
    cdef int ecn = lane & CE
    if ecn == NOT_ECT:
        return
    if family == AF_INET:
        udp_say(message, control, IPPROTO_IP, IP_TOS, &ecn, sizeof(ecn))
    else:
        udp_say(message, control, IPPROTO_IPV6, IPV6_TCLASS, &ecn, sizeof(ecn))


cdef inline int udp_send_run(int fd, Run *run, const Underlay *to, int family) noexcept nogil:
    """Send a run as one message that the kernel cuts into datagrams; return 0 or errno."""
    cdef uint8_t control[CONTROL]
    cdef uint16_t size = <uint16_t>run.size
    cdef msghdr message
    cdef ssize_t sent = -1
    udp_address(&message, to, family, run.pieces, run.used)
    memset(control, 0, sizeof(control))
    udp_say(&message, control, SOL_UDP, UDP_SEGMENT, &size, sizeof(size))
    udp_mark(&message, control, family, run.lane)
    while sent < 0:
        sent = sendmsg(fd, &message, 0)
        if sent < 0 and errno != EINTR:
            return errno
    return 0


cdef inline int udp_send_from(int fd, Run *run, uint32_t first, const Underlay *to, int family,
                              mmsghdr *messages) noexcept nogil:
    """Send a run's datagrams from `first` on, each alone; return how many the kernel took, or -errno if not one.

    `messages`: RUN_PACKETS of them, to work with.
    """
    cdef uint8_t control[CONTROL]
    cdef uint32_t i
    cdef int sent = -1
    memset(control, 0, sizeof(control))
    for i in range(first, run.count):
        udp_address(&messages[i].msg_hdr, to, family, &run.pieces[run.starts[i]], run.starts[i + 1] - run.starts[i])
        # All say the same, so that they can share it.
        udp_mark(&messages[i].msg_hdr, control, family, run.lane)
    while sent < 0:
        sent = sendmmsg(fd, messages + first, run.count - first, 0)
        if sent < 0 and errno != EINTR:
            return -errno
    return sent


cdef inline int udp_send_fragmented(int fd, Run *run, uint32_t index, const Underlay *to, int family) noexcept nogil:
    """Send one datagram of a run that may be fragmented on the underlay; return 0 or errno. Rare: three calls."""
    cdef int level = IPPROTO_IP if family == AF_INET else IPPROTO_IPV6
    cdef int name = IP_MTU_DISCOVER if family == AF_INET else IPV6_MTU_DISCOVER
    cdef int value = IP_PMTUDISC_DONT
    cdef uint8_t control[CONTROL]
    cdef msghdr message
    cdef int error
    udp_address(&message, to, family, &run.pieces[run.starts[index]], run.starts[index + 1] - run.starts[index])
    memset(control, 0, sizeof(control))
    udp_mark(&message, control, family, run.lane)
    setsockopt(fd, level, name, &value, sizeof(value))
    error = errno if sendmsg(fd, &message, 0) < 0 else 0
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
