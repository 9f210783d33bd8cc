"""The lab's sockets: one JSON message a packet, descriptors beside it.

A lab's door is an abstract unix socket in the network namespace of the user who called `lab up`. It has no file: it is
gone with the supervisor, however that ends. The name carries the user's id, so that each user has labs of their own.
"""

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

MESSAGE_LIMIT = 128 * 1024  # our choice: the status of the largest lab is a third of it
DESCRIPTOR_LIMIT = 8  # our choice: the namespaces of one place, and one to spare


def door_address(name: str) -> bytes:
    """Return the abstract address of this user's lab `name`."""
    return f"\0flannel-udp/lab/{os.geteuid()}/{name}".encode()


def open_socket() -> socket.socket:
    """Make an unconnected socket for the door."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets of the door's kind."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message; the receiver gets duplicates of the descriptors."""
    socket.send_fds(connection, [json.dumps(message).encode()], list(descriptors))


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive one message and the descriptors that came with it, which are the caller's to close; None at the end."""
    flags = socket.MSG_CMSG_CLOEXEC
    octets, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_LIMIT, DESCRIPTOR_LIMIT, flags)
    return (json.loads(octets), descriptors) if octets else None


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end, as this process's namespaces number them."""
    octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", octets)
    return pid, uid
