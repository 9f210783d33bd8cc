"""Bytes from place to place over TCP, compared by their hashes."""

import hashlib
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

from ..conftest import DEADLINE
from .topology import Place

BLOCK = os.urandom(1 << 20)


def transfer(client: Place, server: Place, address: IPv4Address | IPv6Address, size: int, salt: int = 0) -> None:
    """Send so many bytes to an address of the server, and see that the same arrive; salts make flows differ."""
    sent, block = hashlib.sha256(), struct.pack("!I", salt) + BLOCK[4:]
    with server.entered():
        listener = socket.create_server((f"{address}", 0), family=family_of(address))
    listener.settimeout(DEADLINE)

    def receive() -> str:
        digest = hashlib.sha256()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE)
            while received := connection.recv(1 << 20):
                digest.update(received)
        return digest.hexdigest()

    with listener, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        with client.entered():
            connection = socket.create_connection(listener.getsockname()[:2], DEADLINE)
        with connection:
            for _ in range(size // len(block)):
                connection.sendall(block)
                sent.update(block)
        assert received.result() == sent.hexdigest()


def family_of(address: IPv4Address | IPv6Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
