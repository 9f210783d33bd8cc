"""/metrics: the figures of condition.py in the format of Prometheus, written by its client library.

Names by Prometheus' conventions: base units, counters end in _total. docs/operations.md has the table of all, and a
test compares the two. What the data plane counts is exposed by what it tells, so that a counter that it gains later
is there at once.
"""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

PREFIX = "flannel_udp_"
HANDED_OVER = {"out": "sent", "in": "delivered"}
ANSWERED = "neighbour_told"  # ended here, and yet is no loss
OFFLOAD_STATES = ("granted", "refused", "given up", "off")
CONFIG_STATES = ("changed", "invalid")
_PROCESS = ProcessCollector(registry=None)  # process_cpu_seconds_total and its like, as every client has them


def exposition(figures: Mapping[str, Any], accept: str) -> tuple[str, str]:
    """The figures as text, and which kind of text, of those that the Accept header knows."""
    encode, kind = choose_encoder(accept)
    return encode(_Scrape(figures)).decode(), kind


class _Scrape:
    """One set of figures, as the library wants to be given it."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from _node(self._figures)
        yield from _registry(self._figures["registry"])
        if "lease" in self._figures:
            yield from _lease(self._figures["lease"])
            yield from _paths(self._figures["paths"])
            yield from _peers(self._figures["paths"], self._figures["direct"])
            yield from _packets(self._figures["paths"])
            yield from _events(self._figures["paths"])
        yield from _PROCESS.collect()


def _node(figures: Mapping[str, Any]) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "the program that runs",
                           value={"version": figures["version"], "python": platform.python_version()})
    yield _gauge("ready", "1 while this node is ready, as /readyz says", figures["ready"])
    for state, meaning in zip(CONFIG_STATES, (
            "1 while the registry has another network configuration than the one in use",
            "1 while the registry has no valid network configuration"), strict=True):
        yield _gauge(f"config_{state}", meaning, figures["config"] == state)
    yield _labelled(GaugeMetricFamily, "problem", "1 for each thing that is in trouble; status has the line", ("what",),
                    (((what,), 1) for what in figures["problems"]))


def _registry(registry: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("registry_up", "1 while the registry answers", registry["up"])
    yield _gauge("watch_lag_seconds", "time since the registry was last heard; up to 10 while all is well",
                 registry["lag"])
    for name, key, meaning in (
            ("registry_errors", "errors", "calls of the registry that failed"),
            ("registry_resyncs", "resyncs", "times that everything was compared with a snapshot of the registry"),
            ("registry_skipped_keys", "skipped_keys", "keys in the registry that made no sense"),
            ("lease_renewals", "renewals", "renewals of this node's lease"),
            ("lease_lost_races", "lost_races", "times that another node took a subnet first")):
        yield CounterMetricFamily(PREFIX + name, meaning, registry[key])


def _lease(lease: Mapping[str, Any]) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "lease", "the lease of this node",
                           value={"subnet": lease["subnet"], "ipv6_subnet": lease["ipv6_subnet"]})
    yield _gauge("lease_expiry_timestamp_seconds", "Unix time when the lease ends unless renewed; +Inf: a reservation",
                 math.inf if lease["expiry"] is None else lease["expiry"])
    if lease["age"] is not None:
        yield _gauge("lease_age_seconds", "time since the lease was last written", lease["age"])


def _paths(paths: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """What a data path has one of."""
    for kind, name, key, meaning in (
            (GaugeMetricFamily, "data_path_up", "up", "1 while packets pass"),
            (CounterMetricFamily, "data_path_breaks", "breaks",
             "times that the data path broke, or could not be mended")):
        yield _labelled(kind, name, meaning, ("family",), (((path["family"],), path[key]) for path in paths))
    yield _labelled(GaugeMetricFamily, "offload", "1 for the state that an offload is in",
                    ("family", "offload", "state"),
                    (((path["family"], one["offload"], state.replace(" ", "_")), one["state"] == state)
                     for path in paths for one in path["offloads"] for state in OFFLOAD_STATES))
    for key, meaning in (("routes", "routes in the FIB, this node's own included"), ("cells", "cells of the FIB"),
                         ("bytes", "memory of the FIB and of the peers beside it")):
        yield _labelled(GaugeMetricFamily, f"fib_{key}", meaning, ("family",),
                        (((path["family"],), path["fib"].get(key, 0)) for path in paths))


def _peers(paths: Sequence[Mapping[str, Any]], direct: Mapping[str, Any]) -> Iterator[Metric]:
    """Of each tunnel; of the kernel's routes alone where there is no tunnel."""
    yield _gauge("direct_routes", "nodes that the kernel routes to without a tunnel", direct["peers"])
    for key, meaning in (("peers", "nodes that packets are routed to"),
                         ("skipped_peers", "nodes whose lease cannot be routed to; status says why")):
        yield _labelled(GaugeMetricFamily, key, meaning, ("family",),
                        (((one["family"],), one[key]) for one in paths or [direct]))


def _packets(paths: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Each outcome once: what was handed over or answered, and of the rest why it was dropped."""
    yield _labelled(CounterMetricFamily, "packets", "packets that were sent to a node, or delivered from one",
                    ("direction", "family"), (((way, family), told["outcomes"][HANDED_OVER[way]]["count"])
                                              for family, way, told in _ways(paths)))
    yield _labelled(CounterMetricFamily, "neighbour_answers",
                    "questions for a peer's MAC address that were answered; TAP only",
                    ("direction", "family"), (((way, family), told["outcomes"][ANSWERED]["count"])
                                              for family, way, told in _ways(paths) if ANSWERED in told["outcomes"]))
    yield _labelled(CounterMetricFamily, "dropped_packets", "packets that were dropped, by reason",
                    ("direction", "family", "reason"),
                    (((way, family, reason), outcome["count"]) for family, way, told in _ways(paths)
                     for reason, outcome in told["outcomes"].items() if reason not in (HANDED_OVER[way], ANSWERED)))


def _events(paths: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """What happened besides; `bytes`, `messages` and `frames` set against `packets` tell how well these are bundled."""
    meanings = {name: event["meaning"] for _, _, told in _ways(paths) for name, event in told["events"].items()}
    for name, meaning in meanings.items():
        yield _labelled(CounterMetricFamily, name, meaning, ("direction", "family"),
                        (((way, family), told["events"][name]["count"]) for family, way, told in _ways(paths)))


def _ways(paths: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every path's family and direction, and what was counted there."""
    for path in paths:
        for way, told in path["counters"].items():
            yield path["family"], way, told


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, meaning, float(value))


def _labelled(kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, meaning: str, labels: tuple[str, ...],
              samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = kind(PREFIX + name, meaning, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family
