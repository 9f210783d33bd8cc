"""systemd's notification protocol (sd_notify(3)): ready, status, stopping, and the watchdog's food.

    READY=1\nSTATUS=subnet 10.5.20.0/24, ...      a datagram to the socket that NOTIFY_SOCKET names
    WATCHDOG=1                                    at least twice in each WATCHDOG_USEC, or systemd kills and restarts

Without NOTIFY_SOCKET nobody is told, and all of this does nothing. The owner thread alone uses it: that it comes around
to feed the watchdog is what the watchdog wants to know.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from flannel_udp import logs

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_log = logs.get("notify")


class Supervisor:
    """Whoever started this process and wants to be told. Takes the variables away, which are not for our children."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ,
                 clock: Callable[[], float] = time.monotonic) -> None:
        name = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._clock = clock
        self._status = ""
        self._interval = _interval(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        self._feed_at = 0.0

    def ready(self) -> None:
        """The start is over."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def status(self, line: str) -> None:
        """How things are, for `systemctl status`; told when it is another than before."""
        if line != self._status:
            self._status = line
            self._tell("STATUS=" + " ".join(line.splitlines()))

    def feed(self) -> None:
        """Keep the watchdog quiet, if there is one and it is time."""
        if self._interval and self._clock() >= self._feed_at and self._tell("WATCHDOG=1"):
            self._feed_at = self._clock() + self._interval

    def _tell(self, *lines: str) -> bool:
        """Send a datagram, never waiting for room: the packets' owner has no time for a supervisor that has none."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.warning("systemd cannot be told", cause="notify", socket=self._address.replace("\0", "@"),
                         reason=error.strerror or error)
            return False
        return True


def _interval(microseconds: str, pid: str) -> float:
    """Seconds between two feedings, half of what is asked for; 0 where no watchdog waits for this process."""
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 2e6
