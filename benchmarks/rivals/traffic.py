"""Senders and receivers for the benchmarks, the same for every contender; standard library only.

    traffic.py sink ADDRESS PORT SIZE SECONDS     count datagrams that arrive; prints {"received", "seconds"}
    traffic.py flood ADDRESS PORT SIZE SECONDS    send as fast as the socket takes them; prints {"sent", "seconds"}
    traffic.py fan ADDRESS PORT SIZE SECONDS      the same to FLOWS addresses from ADDRESS on, one to each in turn
    traffic.py echo ADDRESS PORT SIZE SECONDS     answer each datagram
    traffic.py ask ADDRESS PORT SIZE SECONDS      send one, wait for its answer, and so on; prints times in microseconds
    traffic.py tally ADDRESS PORT SIZE SECONDS    count all datagrams, at most for SECONDS; for each line on its
                                                  standard input prints {"received"}, the number so far
    traffic.py pace ADDRESS PORT SIZE SECONDS     for each line "RATE SECONDS" on its standard input send RATE datagrams
                                                  a second (0: all that the socket takes); prints {"sent", "seconds"}

A further argument pins the program to one processor. Each prints "ready" first. sendmmsg and recvmmsg (through ctypes)
keep the cost of the load generator, which shares the machine with what is measured, small: 64 datagrams in one call,
each a datagram of its own for the kernel from there on.
"""

import ctypes
import ipaddress
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BATCH = 64
FLOWS = 16  # divides BATCH
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
MSG_WAITFORONE = 0x1_0000
RECEIVE_BUFFER = 4 << 20
# The first part of a measurement is left out: caches, neighbours and queues settle.
SETTLING = 0.3
# Seconds; the kernel adds its own slack of 50 us, so that a burst at 100,000 datagrams a second is one of about ten.
NAP = 20e-6

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("iovecs", ctypes.POINTER(_Iovec)),
        ("iovec_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_size_t), ("length", ctypes.c_size_t),  # int and unsigned, with the padding behind each
    )  # fmt: skip


def messages(size: int) -> tuple[Any, object]:
    """Return BATCH messages of `size` bytes, and what must live as long as they do."""
    data = ctypes.create_string_buffer(BATCH * 65536)
    iovecs = (_Iovec * BATCH)()
    made = (_Message * BATCH)()
    for i in range(BATCH):
        iovecs[i] = _Iovec(ctypes.addressof(data) + i * 65536, size)
        made[i].iovecs, made[i].iovec_count = ctypes.pointer(iovecs[i]), 1
    return made, (data, iovecs)


def opened(place: tuple[str, int]) -> socket.socket:
    """Open a socket of the family of an address."""
    return socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET, socket.SOCK_DGRAM)


def ready() -> None:
    print("ready", flush=True)


def sink(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    with opened(place) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        receiver.settimeout(5 + seconds)
        receiver.bind(place)
        made, kept = messages(max(size, 2048))
        ready()
        receiver.recv(65536)
        receiver.settimeout(None)
        # Wakes up the blocking recvmmsg below when nothing arrives any more.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 200_000))
        return count(receiver.fileno(), made, time.monotonic() + SETTLING, seconds - SETTLING, kept)


def count(fd: int, made: object, start: float, seconds: float, kept: object) -> dict[str, float]:
    """Count what arrives from `start` on."""
    del kept  # alive in the caller's frame
    receive = _libc.recvmmsg
    end = start + seconds
    total = 0
    now = time.monotonic()
    while now < end:
        got = receive(fd, made, BATCH, MSG_WAITFORONE, None)
        now = time.monotonic()
        if got > 0 and now >= start:
            total += got
    return {"received": total, "seconds": now - start}


def flood(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    with opened(place) as sender:
        sender.connect(place)
        made, kept = messages(size)
        return send_all(sender.fileno(), made, seconds, kept)


def fan(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    with opened(place) as sender:
        made, kept = messages(size)
        names = [ctypes.create_string_buffer(name) for name in addresses(place)]
        for i in range(BATCH):
            name = names[i % FLOWS]
            made[i].name, made[i].name_length = ctypes.addressof(name), len(name.raw) - 1
        return send_all(sender.fileno(), made, seconds, (kept, names))


def addresses(place: tuple[str, int]) -> list[bytes]:
    """Return FLOWS addresses from a place on, as struct sockaddr_in or sockaddr_in6."""
    first, port = ipaddress.ip_address(place[0]), place[1]
    packed = [(first + i).packed for i in range(FLOWS)]
    if first.version == 4:
        return [struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, one) for one in packed]
    return [struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, one, 0) for one in packed]


def send_all(fd: int, made: object, seconds: float, kept: object) -> dict[str, float]:
    """Send these messages over and over."""
    ready()
    send, sent = _libc.sendmmsg, 0
    start = now = time.monotonic()
    while now < start + seconds:
        sent += max(0, send(fd, made, BATCH, 0))  # a full queue or an ICMP error: the next call tries again
        now = time.monotonic()
    del kept  # alive in the caller's frame
    return {"sent": sent, "seconds": now - start}


def tally(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    del size
    with opened(place) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        receiver.bind(place)
        total = [0]
        threading.Thread(target=count_all, args=(receiver.fileno(), total, seconds), daemon=True).start()
        ready()
        for _ in sys.stdin:
            print(json.dumps({"received": total[0]}), flush=True)
        return {"received": total[0]}


def count_all(fd: int, total: list[int], seconds: float) -> None:
    """Add what arrives to total[0]."""
    made, _kept = messages(2048)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        total[0] += max(0, _libc.recvmmsg(fd, made, BATCH, MSG_WAITFORONE, None))


def pace(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    del seconds
    with opened(place) as sender:
        sender.connect(place)
        made, _kept = messages(size)
        ready()
        for line in sys.stdin:
            rate, duration = map(float, line.split())
            print(json.dumps(offer(sender.fileno(), made, rate, duration)), flush=True)
        return {}


def offer(fd: int, made: object, rate: float, seconds: float) -> dict[str, float]:
    """Send at a rate: whenever something is due, at most BATCH of it; in between a sleep as short as the kernel has."""
    send, sent = _libc.sendmmsg, 0
    start = now = time.monotonic()
    while now < start + seconds:
        due = min(BATCH, int((now - start) * rate) + 1 - sent) if rate else BATCH
        if due > 0:
            sent += max(0, send(fd, made, due, 0))
        else:
            time.sleep(NAP)
        now = time.monotonic()
    return {"sent": sent, "seconds": now - start}


def echo(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    with opened(place) as answering:
        answering.bind(place)
        answering.settimeout(seconds + 2)
        ready()
        buffer = bytearray(max(size, 2048))
        answered = 0
        try:
            while True:
                length, asker = answering.recvfrom_into(buffer)
                answering.sendto(memoryview(buffer)[:length], asker)
                answered += 1
                if buffer[:3] == b"end":
                    break
        except TimeoutError:
            pass
        return {"answered": answered}


def ask(place: tuple[str, int], size: int, seconds: float) -> dict[str, float]:
    with opened(place) as asking:
        asking.connect(place)
        asking.settimeout(1)
        ready()
        question, times, lost = bytes(size), [], 0
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            sent = time.perf_counter_ns()
            try:
                asking.send(question)
                asking.recv(65536)
            except OSError:
                lost += 1
            else:
                times.append(time.perf_counter_ns() - sent)
        asking.send(b"end")
        times = sorted(times[len(times) // 10 :])
        parts = {name: times[int(len(times) * part)] / 1000 for name, part in PARTS.items() if times}
        return {"asked": len(times), "lost": lost, **parts}


PARTS = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
ROLES: dict[str, Callable[[tuple[str, int], int, float], dict[str, float]]] = {
    "sink": sink, "flood": flood, "fan": fan, "echo": echo, "ask": ask, "tally": tally, "pace": pace,
}  # fmt: skip


def main() -> None:
    role, address, port, size, seconds, *cpu = sys.argv[1:]
    if cpu:
        os.sched_setaffinity(0, {int(cpu[0])})
    print(json.dumps(ROLES[role]((address, int(port)), int(size), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
