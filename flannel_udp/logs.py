"""Logs: one line per event on stderr, key=value, rate limited by cause.

    time=2026-11-22T17:24:00.123Z level=warning room=daemon event="unknown sender" address=192.0.2.7 suppressed=41

A cause (unless told otherwise the event's text) may speak BURST times at once and then once per INTERVAL; what was held
back is counted on its next line. `-v=1` adds debug lines, `-v=2` lifts the limit. Any thread may log.
"""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

# Our choice: a start that names a handful of equal events is told whole; a standing fault costs six lines a minute.
BURST = 5
INTERVAL = 10.0
# Our choice: causes may hold an address of a stranger, so what is remembered of them must have an end.
CAUSES = 1024

_DEBUG, _INFO, _WARNING, _ERROR = range(4)
_LEVELS = ("debug", "info", "warning", "error")


@dataclass
class _Bucket:
    tokens: float
    filled: float
    suppressed: int = 0


@dataclass
class Limiter:
    """A token bucket per cause, on a clock that is injected."""

    clock: Callable[[], float] = time.monotonic
    buckets: OrderedDict[tuple[str, str], _Bucket] = field(default_factory=OrderedDict)

    def admit(self, key: tuple[str, str]) -> int | None:
        """The number of lines held back since the last one of this cause, or None when this one is held back too."""
        now = self.clock()
        bucket = self.buckets.setdefault(key, _Bucket(BURST, now))
        self.buckets.move_to_end(key)
        if len(self.buckets) > CAUSES:
            self.buckets.popitem(last=False)
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.filled) / INTERVAL)
        bucket.filled = now
        if bucket.tokens < 1:
            bucket.suppressed += 1
            return None
        bucket.tokens -= 1
        suppressed, bucket.suppressed = bucket.suppressed, 0
        return suppressed


@dataclass
class _Sink:
    """Where all rooms write: threshold, limiter and the lock that keeps lines whole."""

    threshold: int = _INFO
    limited: bool = True
    limiter: Limiter = field(default_factory=Limiter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, room: str, level: int, event: str, cause: str | None, fields: dict[str, object]) -> None:
        with self.lock:
            if level < self.threshold:
                return
            suppressed = self.limiter.admit((room, cause or event)) if self.limited else 0
            if suppressed is None:
                return
            head = {"time": _timestamp(), "level": _LEVELS[level], "room": room, "event": event}
            tail = {"suppressed": suppressed} if suppressed else {}
            line = " ".join(f"{key}={quoted(value)}" for key, value in (*head.items(), *fields.items(), *tail.items()))
            try:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                # A full disk or a closed stderr must not stop the packets, and there is nowhere left to say so.
                return


_sink = _Sink()


def configure(verbosity: int, clock: Callable[[], float] = time.monotonic) -> None:
    """Set how much is told: 0 info and up, 1 debug too, 2 without rate limit. Forgets what was limited before."""
    with _sink.lock:
        _sink.threshold = _DEBUG if verbosity >= 1 else _INFO
        _sink.limited = verbosity < 2
        _sink.limiter = Limiter(clock)


@dataclass(frozen=True)
class RoomLog:
    """The log of one room. `cause` groups lines for the rate limit; fields follow the event in the order given."""

    room: str

    def debug(self, event: str, /, *, cause: str | None = None, **fields: object) -> None:
        """Tell a detail that only a searcher wants."""
        _sink.write(self.room, _DEBUG, event, cause, fields)

    def info(self, event: str, /, *, cause: str | None = None, **fields: object) -> None:
        """Tell what happened as it should."""
        _sink.write(self.room, _INFO, event, cause, fields)

    def warning(self, event: str, /, *, cause: str | None = None, **fields: object) -> None:
        """Tell what somebody may have to mend, while work goes on."""
        _sink.write(self.room, _WARNING, event, cause, fields)

    def error(self, event: str, /, *, cause: str | None = None, **fields: object) -> None:
        """Tell what stopped a part of the work."""
        _sink.write(self.room, _ERROR, event, cause, fields)


def get(room: str) -> RoomLog:
    """The log of the room with this name; may be called before `configure`."""
    return RoomLog(room)


def quoted(value: object) -> str:
    """A value as it stands after key=: bare where nothing in it could mislead, else in double quotes on one line."""
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    if text and not any(char in ' "=\\' or not char.isprintable() for char in text):
        return text
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char) or (char if char.isprintable() else _escape(char)) for char in text) + '"'


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"


def _timestamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
