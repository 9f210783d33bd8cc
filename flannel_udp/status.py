"""What the daemon tells of itself when it is asked, and the problems that it has now."""

from __future__ import annotations

import os
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from flannel_udp import logs

if TYPE_CHECKING:
    from flannel_udp.backend.carrier import Carrier
    from flannel_udp.forwarder import PeerStatus
    from flannel_udp.underlay import ExternalInterface

_log = logs.get("daemon")

try:
    # Of the program that runs: by the time of a question another may be installed, or none.
    VERSION = version("flannel-udp")
except PackageNotFoundError:
    VERSION = "not installed"


class Problems:
    """What is in trouble now: said once in the log, kept for the status."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def note(self, what: str, line: str) -> None:
        """Say that `what` is in trouble; an empty line says that it is well again."""
        before = self._lines.pop(what, "")
        if line:
            self._lines[what] = line
        if line and line != before:
            _log.warning(line, cause=what)
        elif before and not line:
            _log.info("problem is gone", problem=before)

    def of(self, what: str) -> str | None:
        """The problem that `what` has, if any."""
        return self._lines.get(what)

    def items(self) -> list[tuple[str, str]]:
        """All problems, by what is in trouble."""
        return list(self._lines.items())

    def lines(self) -> list[str]:
        """All problems."""
        return list(self._lines.values())


def status(started_at: float, external: ExternalInterface, carrier: Carrier, problems: Problems) -> dict[str, Any]:
    """Everything, as values for JSON."""
    lease, measured = carrier.lease, carrier.status()
    assert lease is not None
    return {
        "version": VERSION,
        "pid": os.getpid(),
        "started_at": started_at,
        "backend": carrier.backend.name,
        "config_problem": problems.of("config"),
        "lease": {**_texts({"subnet": lease.subnet, "ipv6_subnet": lease.ipv6_subnet,
                            "public_ip": lease.attrs.public_ip, "public_ipv6": lease.attrs.public_ipv6}),
                  "expiry": lease.expiry, "reserved": lease.expiry is None},
        "external_interface": {"name": external.name, "index": external.index, "mtu": external.mtu,
                               **_texts({"address": external.address, "ipv6_address": external.address6,
                                         "reason": external.reason})},
        "devices": carrier.devices(),
        "offloads": measured.pop("offloads"),
        "peers": [peer_row(peer) for peer in carrier.peers()],
        "direct_routes": carrier.routes.told(),
        "skipped_peers": [{"lease": key, "reason": reason} for key, reason in carrier.skipped()],
        **measured,
        "threads": [{"name": thread.name, "native_id": thread.native_id, "alive": thread.is_alive()}
                    for thread in threading.enumerate()],
        "warnings": problems.lines() + carrier.warnings(),
    }


def peer_row(peer: PeerStatus) -> dict[str, Any]:
    """One peer as values for JSON."""
    # Not asdict(), which copies every address deeply: seconds for a network full of peers.
    return {**vars(peer), "subnet": str(peer.subnet), "underlay": str(peer.underlay)}


def _texts(values: dict[str, object]) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in values.items()}
