"""Bytes from place to place over TCP and UDP, compared by their hashes; and the checksums that kernels found wrong."""

import contextlib
import hashlib
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ..conftest import DEADLINE
from .topology import Place

BLOCK = os.urandom(1 << 20)
UDP_SEGMENT = 103  # linux/udp.h
SPOKEN = 10_000
"""Bytes, more than a packet holds."""


def transfer(client: Place, server: Place, address: IPv4Address | IPv6Address, size: int, salt: int = 0) -> None:
    """Send so many bytes to an address of the server, and see that the same arrive; salts make flows differ."""
    sent, block = hashlib.sha256(), (struct.pack("!I", salt) + BLOCK[4:])[:size]
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


def datagrams(client: Place, server: Place, address: IPv4Address | IPv6Address, sizes: Sequence[int],
              segment: int = 0) -> None:
    """Send datagrams, no more than a socket holds, and see each answered with its hash; `segment`: as one message,
    which the kernel divides into datagrams of this size.
    """
    pieces = [os.urandom(size) for size in sizes]
    with server.entered():
        receiver = socket.socket(family_of(address), socket.SOCK_DGRAM)
    with client.entered():
        sender = socket.socket(family_of(address), socket.SOCK_DGRAM)

    def answer() -> None:
        for _ in pieces:
            datagram, asker = receiver.recvfrom(1 << 16)
            receiver.sendto(hashlib.sha256(datagram).digest(), asker)

    with receiver, sender, ThreadPoolExecutor(1) as pool:
        receiver.bind((f"{address}", 0))
        for end in (receiver, sender):
            end.settimeout(DEADLINE)
        sender.connect(receiver.getsockname()[:2])
        answering = pool.submit(answer)
        if segment:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        for message in [b"".join(pieces)] if segment else pieces:
            sender.send(message)
        answers = {sender.recv(1 << 16) for _ in pieces}
        answering.result()
    assert answers == {hashlib.sha256(piece).digest() for piece in pieces}


@contextlib.contextmanager
def conversation(client: Place, server: Place, address: IPv4Address | IPv6Address) -> Iterator[Callable[[], None]]:
    """A TCP connection, to be seen alive again and again: what is yielded sends and answers some bytes."""
    with server.entered():
        listener = socket.create_server((f"{address}", 0), family=family_of(address))
    listener.settimeout(DEADLINE)
    with client.entered():
        asking = socket.create_connection(listener.getsockname()[:2], DEADLINE)
    with listener, asking:
        answering, _ = listener.accept()
        with answering:
            answering.settimeout(DEADLINE)

            def go_on() -> None:
                for one, other in ((asking, answering), (answering, asking)):
                    one.sendall(BLOCK[:SPOKEN])
                    with other.makefile("rb") as heard:
                        assert heard.read(SPOKEN) == BLOCK[:SPOKEN]

            yield go_on


def bad_checksums(place: Place) -> int:
    """InCsumErrors of TCP and UDP, of both families."""

    def read() -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        six = Path("/proc/thread-self/net/snmp6").read_text()
        found = sum(int(count) for count in re.findall(r"^Udp6InCsumErrors\s+(\d+)", six, re.MULTILINE))
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names.startswith(("Tcp:", "Udp:")):
                found += int(values.split()[names.split().index("InCsumErrors")])
        return found

    return place.call(read)


def family_of(address: IPv4Address | IPv6Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
