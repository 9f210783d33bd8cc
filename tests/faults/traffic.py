"""Numbered datagrams across standing routes, at a known rate: which of them did not arrive."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

    from ..netns.topology import Node

RATE = 100
"""Datagrams a second from each node to each other one."""
_PORT = 7000
_DATAGRAM = struct.Struct("!BBI")  # from, to, number
_LATE = 3.0
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Traffic:
    """All pairs of nodes, from tunnel address to tunnel address."""

    def __init__(self, ends: Sequence[tuple[Node, IPv4Address]]) -> None:
        self.sent = 0
        self._addresses = [str(address) for _, address in ends]
        self._sockets = []
        for node, address in ends:
            with node.entered():
                end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            end.bind((str(address), _PORT))
            self._sockets.append(end)
        self._under_way: dict[bytes, float] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def lost(self) -> int:
        """How many of those sent until now did not arrive since the last question, late ones awaited."""
        now = time.monotonic()
        while [sent for sent in tuple(self._under_way.values()) if sent <= now] and time.monotonic() < now + _LATE:
            time.sleep(0.01)
        gone = [datagram for datagram, sent in tuple(self._under_way.items()) if sent <= now]
        for datagram in gone:
            self._under_way.pop(datagram, None)
        return len(gone)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _send(self) -> None:
        number, due = 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / RATE
            number += 1
            for one, end in enumerate(self._sockets):
                for two, address in enumerate(self._addresses):
                    if one != two:
                        self._send_one(end, _DATAGRAM.pack(one, two, number), address)

    def _send_one(self, end: socket.socket, datagram: bytes, address: str) -> None:
        self._under_way[datagram] = time.monotonic()
        self.sent += 1
        try:
            end.sendto(datagram, (address, _PORT))
        except OSError:
            return  # no route, no device: it stays under way, so is lost

    def _receive(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in self._sockets:
                selector.register(end, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.2):
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        self._under_way.pop(key.fileobj.recv(64), None)
                    except OSError:
                        continue  # an ICMP error that the kernel reports here
