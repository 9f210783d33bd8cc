"""health: pages over HTTP; whoever connects and misbehaves keeps nobody out and costs a bounded part of the daemon."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from flannel_udp import health
from flannel_udp.errors import HealthError
from flannel_udp.health import HealthServer, Page, serve

from ..conftest import DEADLINE, wait_until

LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture
def server() -> Iterator[HealthServer]:
    def echo(accept: str) -> Page:
        return Page(200, f"wants {accept}", "text/strange")

    def broken(_: str) -> Page:
        raise ZeroDivisionError("a bug")

    opened = serve(LOOPBACK, 0, {"/fine": lambda _: Page(200, "fine\n"), "/ill": lambda _: Page(503, "ill\n"),
                                 "/echo": echo, "/broken": broken})
    yield opened
    opened.close()
    wait_until(lambda: threads() == 0, "every thread has ended")


def threads() -> int:
    return sum(thread.name.startswith("health") for thread in threading.enumerate())


def get(server: HealthServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE)


def hung_up(client: socket.socket) -> bool:
    """Read to the end; whether there was nothing but it."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_pages_have_their_status_and_kind(server: HealthServer) -> None:
    assert get(server, "/fine") == (200, "text/plain; charset=utf-8", "fine\n")
    assert get(server, "/fine?verbose=1")[0] == 200
    assert get(server, "/ill")[::2] == (503, "ill\n")
    assert get(server, "/echo", Accept="text/x") == (200, "text/strange", "wants text/x")
    assert get(server, "/fine", "HEAD")[::2] == (200, "")
    status, _, body = get(server, "/nowhere")
    assert (status, body) == (404, "here is /fine, /ill, /echo, /broken\n")
    assert get(server, "/fine", "POST")[0] == 501


def test_a_page_that_fails_is_told_to_the_client_and_to_the_log(
        server: HealthServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert get(server, "/broken")[::2] == (500, "this page failed: ZeroDivisionError('a bug')\n")
    assert 'event="page failed" path=/broken' in capfd.readouterr().err
    assert get(server, "/fine")[0] == 200


@pytest.mark.parametrize("garbage", [
    b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"a" * 70000 + b"\r\n\r\n", b"\xff\xfe" * 50 + b"\n\n", bytes(1 << 20),
], ids=range(9))
def test_garbage_ends_its_own_connection_only(server: HealthServer, garbage: bytes) -> None:
    # The server may have had enough of it at any moment.
    with connect(server) as client, contextlib.suppress(OSError):
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    assert get(server, "/fine")[0] == 200


def test_slow_clients_are_hung_up_on(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time is no way to stay."""
    monkeypatch.setattr(health, "DEADLINE", 0.5)
    with connect(server) as silent, connect(server) as drip:
        gone = threading.Event()

        def trickle() -> None:
            try:
                while not gone.wait(0.05):
                    drip.sendall(b"G")
            except OSError:
                return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert hung_up(silent)
            assert hung_up(drip)
        finally:
            gone.set()
            thread.join()
    wait_until(lambda: threads() == 1, "their threads have ended")


def test_connections_without_end_keep_nobody_out(server: HealthServer) -> None:
    crowd = [connect(server) for _ in range(10 * health.CONNECTIONS)]
    try:
        assert get(server, "/fine")[0] == 200
        assert threads() <= 2 * health.CONNECTIONS + 1
        wait_until(lambda: threads() <= health.CONNECTIONS + 1, "who came first has gone for who came last")
        assert hung_up(crowd[0])
    finally:
        for client in crowd:
            client.close()


def test_pages_that_wait_are_no_more_than_twice_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTIONS", 3)
    gate, waiting = threading.Event(), threading.Semaphore(0)

    def wait(_: str) -> Page:
        waiting.release()
        gate.wait(DEADLINE)
        return Page(200, "at last\n")

    server = serve(LOOPBACK, 0, {"/wait": wait})
    clients = []
    try:
        for _ in range(6):
            clients.append(connect(server))
            clients[-1].sendall(b"GET /wait HTTP/1.0\r\n\r\n")
            assert waiting.acquire(timeout=DEADLINE)
        assert threads() == 7
        clients.append(connect(server))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            clients[-1].sendall(b"GET /wait HTTP/1.0\r\n\r\n")
        assert hung_up(clients[-1])
        assert not waiting.acquire(blocking=False)  # nobody began to make that page
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1  # those who are hung up on are not looked after in a circle
    finally:
        gate.set()
        server.close()
        for client in clients:
            client.close()
    wait_until(lambda: threads() == 0, "every thread has ended")


def test_close_is_quick_whoever_is_connected(server: HealthServer) -> None:
    with connect(server) as silent:
        wait_until(lambda: threads() == 2, "it is served")
        before = time.monotonic()
        server.close()
        assert time.monotonic() - before < 1
        assert hung_up(silent)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_no_descriptor_is_left(server: HealthServer) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    get(server, "/fine")
    before = descriptors()
    for _ in range(20):
        get(server, "/fine")
        connect(server).close()
    wait_until(lambda: descriptors() <= before, "all are closed")


def test_a_port_in_use_is_one_line_with_the_remedy(server: HealthServer) -> None:
    with pytest.raises(HealthError, match=rf"127.0.0.1 port {server.port}: Address already in use.*--healthz-port"):
        serve(LOOPBACK, server.port, {})
    with pytest.raises(HealthError, match=r"192.0.2.77 port .*Cannot assign"):
        serve(ip_address("192.0.2.77"), 0, {})


@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
def test_the_unspecified_address_is_both_families(ip: str) -> None:
    opened = serve(ip_address(ip), 0, {"/fine": lambda _: Page(200, "fine\n")})
    try:
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, opened.port), timeout=DEADLINE) as client:
                client.sendall(b"GET /fine HTTP/1.0\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.0 200 OK"
    finally:
        opened.close()


def test_a_kernel_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., socket.socket] = socket.socket

    def without(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, os.strerror(97))
        return make(family, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("flannel_udp.health.socket.socket", without)
        opened = serve(ip_address("0.0.0.0"), 0, {"/fine": lambda _: Page(200, "fine\n")})
    try:
        assert get(opened, "/fine")[0] == 200
    finally:
        opened.close()
