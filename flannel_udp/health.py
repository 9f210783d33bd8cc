"""A small HTTP server for probes and scrapes: a handful of pages, one request per connection, a thread for each.

Whoever connects costs a bounded number of threads for a bounded time and nothing else: a connection ends DEADLINE
seconds after it began, whatever it does, and when CONNECTIONS are open, the oldest ends for the newest, so that idle
ones never keep a probe out. Pages are made in the connection's thread, which never touches the daemon's state.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from flannel_udp import logs
from flannel_udp.errors import HealthError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from typing import TypeAlias

    Pages: TypeAlias = "Mapping[str, Callable[[str], Page]]"  # by path; each is given the request's Accept header

# Our choices. A probe and a scrape take milliseconds; a page may wait for the owner thread (daemon.PATIENCE).
CONNECTIONS = 16
DEADLINE = 5.0
BACKLOG = 64
_log = logs.get("health")


@dataclass(frozen=True)
class Page:
    """What a request is answered with."""

    status: int
    body: str
    kind: str = "text/plain; charset=utf-8"


def serve(ip: IPv4Address | IPv6Address, port: int, pages: Pages) -> HealthServer:
    """Listen; HealthError when that cannot be. The unspecified address of either family means all of both, as in Go."""
    try:
        return HealthServer(_listen(ip, port), pages)
    except OSError as error:
        raise HealthError(f"the health server cannot listen at {ip} port {port}: {error.strerror}: choose another with "
                          "--healthz-ip and --healthz-port, or none with --healthz-port=0") from None


class HealthServer:
    """The listening side: one thread that accepts, and one for each connection."""

    def __init__(self, listener: socket.socket, pages: Pages) -> None:
        self.port: int = listener.getsockname()[1]
        self.pages = pages
        self._listener = listener
        self._open: dict[socket.socket, float] = {}  # the oldest first, and when its time is over
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop within a second, connections included; idempotent."""
        if self._wake.fileno() < 0:
            return
        self._wake.close()
        self._thread.join(0.8)
        self._end_those_before(math.inf)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        with self._woken, self._listener:
            while True:
                ready = [descriptor for descriptor, _ in poll.poll(self._patience())]
                if self._woken.fileno() in ready:
                    return
                self._end_those_before(time.monotonic())
                if ready and (client := self._accept()):
                    self._welcome(client)

    def _patience(self) -> float | None:
        """Milliseconds until the time of some connection is over."""
        with self._lock:
            first = min(self._open.values(), default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic()) * 1000 + 1

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except BlockingIOError:
            return None  # the client left before its turn
        except OSError as error:
            _log.warning("connection not accepted", error=error)
            time.sleep(0.1)  # out of descriptors: the listener stays readable and would be polled in a circle
            return None

    def _welcome(self, client: socket.socket) -> None:
        with self._lock:
            crowd = len(self._open)
            live = [one for one, deadline in self._open.items() if deadline < math.inf]
        if crowd >= CONNECTIONS and live:
            self._end(live[0])
        if crowd >= 2 * CONNECTIONS:  # those that were ended have not gone yet: their pages wait for the owner
            client.close()
            return
        with self._lock:
            self._open[client] = time.monotonic() + DEADLINE
        try:
            threading.Thread(target=self._converse, args=(client,), name="health-client", daemon=True).start()
        except RuntimeError as error:  # no room for one more thread on this host
            _log.warning("connection not served", error=error)
            self._forget(client)

    def _converse(self, client: socket.socket) -> None:
        try:
            client.settimeout(DEADLINE)
            _Conversation(client, ("", 0), self)  # type: ignore[arg-type]  # it asks its server for nothing but pages
        except (OSError, ValueError) as error:
            _log.debug("client gave up", error=error)
        finally:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        with self._lock:
            self._open.pop(client, None)
        client.close()

    def _end_those_before(self, deadline: float) -> None:
        with self._lock:
            late = [client for client, end in self._open.items() if end <= deadline and end < math.inf]
        for client in late:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        """Hang up on a client; its thread ends as soon as it reads or writes."""
        with self._lock:
            if client in self._open:
                self._open[client] = math.inf
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class _Conversation(BaseHTTPRequestHandler):
    """One request and its answer. HTTP/1.0: the connection ends with it."""

    server_version = "flannel-udp"
    sys_version = ""

    def do_GET(self) -> None:
        """A page."""
        page = self._page()
        body = page.body.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - named by the standard library

    def log_message(self, *_: Any) -> None:  # noqa: ANN401 - whatever the standard library would write to stderr
        """Say nothing: what strangers send is not for the log."""

    def _page(self) -> Page:
        assert isinstance(self.server, HealthServer)
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            return Page(404, f"here is {', '.join(self.server.pages)}\n")
        try:
            return make(self.headers.get("Accept", ""))
        except Exception as error:  # whatever a page missed: the client is told, the log is told, packets go on
            _log.error("page failed", path=self.path.partition("?")[0], error=repr(error))
            return Page(500, f"this page failed: {error!r}\n")


def _listen(ip: IPv4Address | IPv6Address, port: int) -> socket.socket:
    if ip.is_unspecified:
        with contextlib.suppress(OSError):  # a kernel without IPv6, or the port in use: the other family says which
            return _bound("::", port, both=True)
    return _bound(str(ip), port, both=False)


def _bound(address: str, port: int, *, both: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except BaseException:  # raised again: the descriptor is nobody else's yet
        listener.close()
        raise
    return listener

