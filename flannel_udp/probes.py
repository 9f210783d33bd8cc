"""What is told over HTTP (health.py): /healthz, /readyz and /metrics, made of what the owner thread answers.

    /healthz   200 while the owner thread answers, at the start too; 503 when it does not: restart this process
    /readyz    200 while nothing is missing for this node to do its work, else 503 and a line for each that is
    /metrics   the figures, for Prometheus
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flannel_udp.errors import ControlError
from flannel_udp.health import HealthServer, Page, serve
from flannel_udp.metrics import exposition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flannel_udp.options import NodeOptions

    Ask = Callable[[dict[str, Any]], Mapping[str, Any]]


def open_probes(options: NodeOptions, ask: Ask) -> HealthServer:
    """Serve the three pages; `ask` puts a question to the owner thread, and raises ControlError without an answer."""
    return serve(options.healthz_ip, options.healthz_port, {
        "/healthz": lambda _: _healthz(ask),
        "/readyz": lambda _: _readyz(ask),
        "/metrics": lambda accept: _metrics(ask, accept),
    })


def _healthz(ask: Ask) -> Page:
    try:
        ask({"command": "health"})
    except ControlError as error:
        return Page(503, f"flannel-udp is not well: {error}\n")
    return Page(200, "flannel-udp is running\n")


def _readyz(ask: Ask) -> Page:
    try:
        missing = ask({"command": "health"})["missing"]
    except ControlError as error:
        missing = [str(error)]
    if missing:
        return Page(503, "\n".join(["flannel-udp is not ready", *missing, ""]))
    return Page(200, "flannel-udp is ready\n")


def _metrics(ask: Ask, accept: str) -> Page:
    try:
        figures = ask({"command": "metrics"})
    except ControlError as error:
        return Page(503, f"{error}\n")
    body, kind = exposition(figures, accept)
    return Page(200, body, kind)
