"""metrics: each thing that is counted is exposed exactly once, in Prometheus' format, as docs/operations.md tells."""

import math
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from flannel_udp._dataplane import EVENTS, OUTCOMES
from flannel_udp.forwarder import DIRECTIONS, Encapsulation, Forwarder
from flannel_udp.metrics import PREFIX, exposition
from flannel_udp.offload import TUN_OFFLOADS, UDP_OFFLOADS, Granted, Refusal, report

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"
OFFLOADS = report([Granted(("tun_csum", "udp_segment"), (Refusal(("tun_tso4",), "Invalid argument"),))],
                  {"udp_segment": "Input/output error"})


def figures(peers: int = 1, **changed: Any) -> dict[str, Any]:  # noqa: ANN401 - any figure
    """What condition.py gives, over a real data plane."""
    forwarder = Forwarder(IPv4Network("10.0.0.0/8"), 24, Encapsulation(0, 1, 28))
    for number in range(peers):
        forwarder.set_peer(IPv4Network(((10 << 24) + (number << 8), 24)), IPv4Address("192.0.2.2") + number, 8285)
    forwarder.publish()
    return {
        "version": "0.1.0", "ready": True, "config": "changed", "problems": ["route", 'odd "one"\n'],
        "registry": {"up": False, "lag": 71.5, "renewals": 1, "resyncs": 2, "lost_races": 3, "skipped_keys": 4,
                     "errors": 5},
        "lease": {"subnet": "10.5.1.0/24", "ipv6_subnet": "", "expiry": 1.8e9, "age": 12.5},
        "paths": [{"family": "ipv4", "up": True, "breaks": 6, "offloads": OFFLOADS, "peers": peers, "skipped_peers": 7,
                   **forwarder.status()}],
        "direct": {"family": "none", "peers": 8, "skipped_peers": 9},
        **changed}


def families(told: dict[str, Any]) -> dict[str, Metric]:
    """By name without prefix; each name once."""
    text, kind = exposition(told, "")
    assert kind.startswith("text/plain; version=0.0.4")
    parsed = list(parse_text(text))
    assert len({family.name for family in parsed}) == len(parsed)
    return {family.name.removeprefix(PREFIX): family for family in parsed}


def samples(told: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """By name and values of labels; each series once."""
    found = [((sample.name.removeprefix(PREFIX), *sample.labels.values()), sample.value)
             for family in families(told).values() for sample in family.samples]
    assert len(dict(found)) == len(found)
    return dict(found)


def counted(told: dict[str, Any], kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every counter of the data plane: direction, name, and where its count stands."""
    for direction in DIRECTIONS:
        for name, counter in told["paths"][0]["counters"][direction][kind].items():
            yield direction, name, counter


def test_every_outcome_is_exposed_exactly_once() -> None:
    told, numbers = figures(), count(1_000_003, 7)
    for _, _, counter in counted(told, "outcomes"):
        counter["count"] = next(numbers)
    exposed = samples(told)
    seen = 0
    for direction, name, counter in counted(told, "outcomes"):
        own = {"sent": "packets_total", "delivered": "packets_total", "neighbour_told": "neighbour_answers_total"}
        key = (own.get(name, "dropped_packets_total"), direction, "ipv4", *([] if name in own else [name]))
        assert [series for series, value in exposed.items() if value == counter["count"]] == [key]
        seen += 1
    assert seen == sum(2 if way == "both" else 1 for _, way, _ in OUTCOMES)
    packets = [value for (name, *_), value in exposed.items()
               if name in ("packets_total", "neighbour_answers_total", "dropped_packets_total")]
    assert len(packets) == seen
    assert sum(packets) == sum(counter["count"] for _, _, counter in counted(told, "outcomes"))


def test_every_event_is_exposed_exactly_once() -> None:
    told, numbers = figures(), count(1_000_003, 7)
    for _, _, counter in counted(told, "events"):
        counter["count"] = next(numbers)
    exposed = samples(told)
    for direction, name, counter in counted(told, "events"):
        assert [series for series, value in exposed.items() if value == counter["count"]] == [
            (f"{name}_total", direction, "ipv4")]
    assert len(list(counted(told, "events"))) == 2 * len(EVENTS)


def test_figures_of_the_node() -> None:
    told = figures()
    exposed = samples(told)
    expected = {
        "ready": 1, "config_changed": 1, "config_invalid": 0, "registry_up": 0, "watch_lag_seconds": 71.5,
        "lease_renewals_total": 1, "registry_resyncs_total": 2, "lease_lost_races_total": 3,
        "registry_skipped_keys_total": 4, "registry_errors_total": 5, "lease_expiry_timestamp_seconds": 1.8e9,
        "lease_age_seconds": 12.5, "direct_routes": 8}
    assert {name: exposed[name,] for name in expected} == expected
    of_the_path = {"data_path_up": 1, "data_path_breaks_total": 6, "peers": 1, "skipped_peers": 7, "fib_routes": 1,
                   "fib_cells": 65536}
    assert {name: exposed[name, "ipv4"] for name in of_the_path} == of_the_path
    assert exposed["fib_bytes", "ipv4"] > 65536
    assert exposed["problem", "route"] == exposed["problem", 'odd "one"\n'] == 1
    assert families(told)["build_info"].samples[0].labels["version"] == "0.1.0"
    assert families(told)["lease_info"].samples[0].labels == {"subnet": "10.5.1.0/24", "ipv6_subnet": ""}
    assert exposed["process_start_time_seconds",] > 1e9


def test_without_a_tunnel_peers_are_those_of_the_kernels_routes() -> None:
    exposed = samples(figures(paths=[]))
    assert (exposed["peers", "none"], exposed["skipped_peers", "none"]) == (8, 9)


def test_each_offload_is_in_one_state() -> None:
    exposed = samples(figures())
    states = {(offload, state): value for (name, _, offload, state), value in
              ((key, value) for key, value in exposed.items() if key[0] == "offload")}
    assert {offload for offload, _ in states} == {*TUN_OFFLOADS, *UDP_OFFLOADS}
    assert len(states) == 4 * 8
    assert sum(states.values()) == 8
    for offload, state in (("tun_csum", "granted"), ("tun_tso4", "refused"), ("udp_segment", "given_up"),
                           ("udp_gro", "off")):
        assert states[offload, state] == 1


def test_a_reservation_ends_never_and_a_lease_not_written_has_no_age() -> None:
    exposed = samples(figures(lease={"subnet": "10.5.1.0/24", "ipv6_subnet": "", "expiry": None, "age": None}))
    assert exposed["lease_expiry_timestamp_seconds",] == math.inf
    assert ("lease_age_seconds",) not in exposed


def test_before_there_is_a_data_path_there_is_what_there_is() -> None:
    told = {name: value for name, value in figures().items()
            if name in ("version", "ready", "config", "problems", "registry")}
    exposed = samples(told)
    assert ("ready",) in exposed
    assert ("data_path_up", "ipv4") not in exposed


def test_each_family_is_told_apart_and_a_backend_without_any_has_none() -> None:
    path, = figures()["paths"]
    both = samples(figures(paths=[path, {**path, "family": "ipv6", "up": False}]))
    assert (both["data_path_up", "ipv4"], both["data_path_up", "ipv6"]) == (1, 0)
    assert len(both) - len(samples(figures())) == sum(key[-1] == "ipv6" or "ipv6" in key for key in both)
    assert not [key for key in samples(figures(paths=[])) if "ipv4" in key]


def test_who_asks_for_openmetrics_gets_it() -> None:
    text, kind = exposition(figures(), "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    strict = {family.name for family in parse_openmetrics(text)}
    assert {f"{PREFIX}packets", f"{PREFIX}ready"} <= strict


def test_a_scrape_costs_the_same_however_many_peers_there_are() -> None:
    assert len(samples(figures(3))) == len(samples(figures(10_000)))
    assert samples(figures(10_000))["peers", "ipv4"] == 10_000


@pytest.mark.parametrize("family", families(figures()).values(), ids=lambda family: family.name)
def test_names_are_as_prometheus_wants_them(family: Metric) -> None:
    """What `promtool check metrics` complains of."""
    assert re.fullmatch(r"(flannel_udp|process)(_[a-z0-9]+)+", family.name)
    assert family.documentation
    for sample in family.samples:
        assert sample.name.endswith("_total") == (family.type == "counter")
    assert not re.search(r"gauge|counter|milli|micro|minutes|hours|kilo|percent", family.name)


def test_the_guide_tells_of_every_metric() -> None:
    """The table of docs/operations.md: name, type, labels and meaning, in the order of the scrape."""
    rows = re.findall(r"^\| `(flannel_udp_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", GUIDE.read_text(), re.MULTILINE)
    assert rows == [tuple(row) for row in documented()]


def documented() -> Iterator[tuple[str, str, str, str]]:
    """Its rows, as they must be."""
    for name, family in families(figures()).items():
        if not name.startswith("process_"):
            labels = ", ".join(f"`{label}`" for label in family.samples[0].labels)
            yield family.samples[0].name, family.type, labels or "-", family.documentation
