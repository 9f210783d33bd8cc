"""The control socket: one versioned JSON request per connection, one answer. Standard library only, both sides.

A connection carries one line each way:

    {"version": 1, "request": {"command": "status"}}
    {"version": 1, "answer": {...}}    or    {"version": 1, "error": "one line"}

The socket is for the user who started the daemon (mode 0600 from its first moment: it is bound in a private directory
and moved into place). Who finds a socket there that nobody answers replaces it; who finds a living daemon gives way.
"""

import contextlib
import fcntl
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flannel_udp import logs
from flannel_udp.errors import ControlError, FlannelUdpError, InstanceError
from flannel_udp.paths import SOCKET_NAME

PROTOCOL = 1
# Our choices: a request is a command and a few words, an answer tells of up to 2^16 peers.
REQUEST_LIMIT = 64 * 1024
ANSWER_LIMIT = 64 * 1024 * 1024
# Our choice: how long one client may take to send, and to receive; connections are served one after another.
CLIENT_DEADLINE = 2.0
_SUN_PATH = 108  # specification: unix(7), sun_path with its final zero byte

Handler = Callable[[dict[str, Any]], Mapping[str, Any]]
_log = logs.get("control")


def socket_path(run_dir: Path) -> Path:
    """Where the daemon with this run directory listens."""
    return run_dir / SOCKET_NAME


def serve(path: Path, handler: Handler) -> "ControlServer":
    """Listen at `path`; InstanceError when a living daemon does already.

    `handler` runs in the server's thread: it posts the request to whoever owns the state and waits, with a deadline of
    its own, for the answer. A FlannelUdpError that it raises is told to the client as it is.
    """
    return ControlServer(path, _listen(path), handler)


def ask(path: Path, request: Mapping[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """Send one request to the daemon that listens at `path`, give its answer; ControlError tells why there is none."""
    deadline = time.monotonic() + timeout
    line = json.dumps({"version": PROTOCOL, "request": dict(request)}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout)
            with _short_name(path) as name:
                client.connect(name)
            client.setblocking(False)
            _send(client, line, deadline)
            answer = _receive_line(client, ANSWER_LIMIT, deadline)
    except FileNotFoundError:
        raise ControlError(f"no daemon listens at {path}: is `flannel-udp run` up, and with this --run-dir?") from None
    except ConnectionRefusedError:
        raise ControlError(f"no daemon listens at {path}: the socket was left behind by one that was killed") from None
    except PermissionError:
        raise ControlError(f"{path}: permission denied: ask as the user who started the daemon") from None
    except TimeoutError:
        raise ControlError(f"the daemon at {path} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from None
    return _opened_answer(path, answer)


class ControlServer:
    """The listening side; one thread, which serves one connection at a time and never touches the daemon's state."""

    def __init__(self, path: Path, listener: socket.socket, handler: Handler) -> None:
        self.path = path
        self._listener = listener
        self._inode = path.stat().st_ino
        self._handler = handler
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening within a second and remove the socket, unless another one stands there by now; idempotent."""
        if self._wake.fileno() < 0:
            return
        self._wake.close()
        # A handler that waits for the very thread that closes must not hold it up; its thread ends by itself later.
        self._thread.join(0.8)
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._listener.close()

    def _serve(self) -> None:
        with self._woken:
            while self._wake.fileno() >= 0 and _ready(self._listener, select.POLLIN, None, self._woken):
                try:
                    client, _ = self._listener.accept()
                except BlockingIOError:
                    continue  # the client left before its turn
                except OSError as error:
                    _log.warning("connection not accepted", error=error)
                    time.sleep(0.1)  # out of descriptors: the listener stays readable and would be polled in a circle
                    continue
                with client:
                    self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        """One request, one answer; whatever the client does wrong ends with its connection."""
        client.setblocking(False)
        try:
            line = _receive_line(client, REQUEST_LIMIT, time.monotonic() + CLIENT_DEADLINE, self._woken)
            answer = self._answer(line)
            _send(client, answer + b"\n", time.monotonic() + CLIENT_DEADLINE, self._woken)
        except OSError as error:
            _log.debug("client gave up", error=error)

    def _answer(self, line: bytes) -> bytes:
        try:
            return json.dumps({"version": PROTOCOL, "answer": dict(self._handler(_opened_request(line)))}).encode()
        except FlannelUdpError as error:
            told = str(error)
        except Exception as error:  # whatever a handler missed: the client is told, the log is told, packets go on
            _log.error("request failed", error=repr(error))
            told = f"the daemon failed to answer: {error!r}"
        return json.dumps({"version": PROTOCOL, "error": told}).encode()


def _opened_request(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ControlError(f"the request is not one line of at most {REQUEST_LIMIT} bytes")
    message = _opened(line)
    if message.get("version") != PROTOCOL:
        raise ControlError(f"this daemon speaks version {PROTOCOL} of the control protocol, the request was version "
                           f"{message.get('version')!r}: use the flannel-udp that the daemon was started from")
    request = message.get("request")
    if not isinstance(request, dict):
        raise ControlError("the request is not a JSON object")
    return request


def _opened_answer(path: Path, line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ControlError(f"the daemon at {path} hung up in the middle of its answer")
    message = _opened(line)
    if isinstance(error := message.get("error"), str):
        raise ControlError(error)
    if message.get("version") != PROTOCOL:
        raise ControlError(f"the daemon at {path} speaks version {message.get('version')!r} of the control protocol, "
                           f"this command version {PROTOCOL}: use the flannel-udp that the daemon was started from")
    if not isinstance(answer := message.get("answer"), dict):
        raise ControlError(f"the answer of the daemon at {path} is not a JSON object")
    return answer


def _opened(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("not a line of JSON") from None
    if not isinstance(message, dict):
        raise ControlError("not a JSON object")
    return message


# -- the socket file --------------------------------------------------------------------------------------------------


def _listen(path: Path) -> socket.socket:
    """A listening socket that stands at `path`, mode 0600."""
    import tempfile  # costs milliseconds that those who only ask need not pay

    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _turn(path.parent), tempfile.TemporaryDirectory(prefix=".control-", dir=path.parent) as private:
            if _living(path):
                raise InstanceError(f"another daemon listens at {path}: give this one a --run-dir of its own")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                _bind(listener, Path(private, SOCKET_NAME), path)
            except BaseException:  # raised again: the descriptor is nobody else's yet
                listener.close()
                raise
            return listener
    except OSError as error:
        raise ControlError(f"{path}: the control socket cannot be made: {error.strerror or error}") from None


def _bind(listener: socket.socket, private: Path, path: Path) -> None:
    with _short_name(private) as name:
        listener.bind(name)
    private.chmod(0o600)
    listener.listen(16)
    private.rename(path)


@contextlib.contextmanager
def _turn(directory: Path, patience: float = 2.0) -> Iterator[None]:
    """Let only one starting daemon at a time look at the socket of this directory and replace it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InstanceError(f"another daemon is starting in {directory}") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _living(path: Path) -> bool:
    """Whether somebody listens at `path`; only a socket may be replaced, never a file of another kind."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"{path} is there and not a socket: move it away, or choose another --run-dir")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            with _short_name(path) as name:
                probe.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True  # its queue of clients is full
    return True


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address, however deep the directory lies."""
    if len(os.fsencode(path)) < _SUN_PATH:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


# -- bytes with a deadline --------------------------------------------------------------------------------------------


def _ready(sock: socket.socket, event: int, deadline: float | None, woken: socket.socket | None = None) -> bool:
    """Wait until `sock` is ready: False when `woken` hung up first; TimeoutError past the deadline."""
    poll = select.poll()
    poll.register(sock, event)
    if woken is not None:
        poll.register(woken, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        events = poll.poll(left)
        if not events:
            raise TimeoutError
        return woken is None or all(fd != woken.fileno() for fd, _ in events)


def _receive_line(sock: socket.socket, limit: int, deadline: float, woken: socket.socket | None = None) -> bytes:
    """Bytes up to and with the first newline; without one when the peer hung up or `limit` is reached."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < limit:
        if not _ready(sock, select.POLLIN, deadline, woken):
            raise ConnectionAbortedError("the daemon stops")
        with contextlib.suppress(BlockingIOError):
            part = sock.recv(min(65536, limit - len(line)))
            if not part:
                break
            line += part
    return bytes(line)


def _send(sock: socket.socket, data: bytes, deadline: float, woken: socket.socket | None = None) -> None:
    rest = memoryview(data)
    while rest:
        if not _ready(sock, select.POLLOUT, deadline, woken):
            raise ConnectionAbortedError("the daemon stops")
        with contextlib.suppress(BlockingIOError):
            rest = rest[sock.send(rest):]
