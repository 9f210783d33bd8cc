"""render: what a value looks like follows from its shape alone."""

import pytest

from flannel_udp import render


def test_a_document_shows_values_tables_and_deeper_parts() -> None:
    shown = render.document({
        "version": "0.1.0",
        "config_problem": None,
        "peers": [
            {"subnet": "10.5.2.0/24", "underlay": "192.0.2.2:8285", "packets_out": 5, "last_heard": 90.0},
            {"subnet": "10.5.20.0/24", "underlay": "192.0.2.22:8285", "packets_out": 50000, "last_heard": None},
        ],
        "counters": {"tun_to_udp": {"packets": 7, "outcomes": {
            "sent": {"count": 5, "meaning": "left for a peer"},
            "no_route": {"count": 12, "meaning": "nobody leases it"},
        }}},
        "threads": ["a", "b"],
        "warnings": [],
    }, now=100.0)
    assert shown == """\
version         0.1.0
config problem  -

PEERS
SUBNET        UNDERLAY         PACKETS OUT  LAST HEARD
10.5.2.0/24   192.0.2.2:8285             5  10s ago
10.5.20.0/24  192.0.2.22:8285        50000  -

COUNTERS: TUN TO UDP
packets  7

COUNTERS: TUN TO UDP: OUTCOMES
          COUNT  MEANING
sent          5  left for a peer
no_route     12  nobody leases it

THREADS
a
b

WARNINGS
(none)"""


def test_objects_of_different_shapes_become_sections() -> None:
    assert render.document({"devices": [{"name": "flannel0"}, {"mtu": 1472}]}) == "DEVICES\nname flannel0\nmtu 1472"
    assert render.document({"fib": {"cells": 256, "sizes": [1, 2]}}) == "FIB\ncells  256\n\nFIB: SIZES\n1\n2"
    assert render.document({"lease": {}, "peers": []}) == "LEASE\n(none)\n\nPEERS\n(none)"


@pytest.mark.parametrize(("key", "value", "shown"), [
    ("last_heard", 100.0, "0s ago"), ("expiry", 100 + 86399, "in 23h59m"), ("started_at", 0, "1m40s ago"),
    ("count", 100, "100"), ("share", 0.12345, "0.123"), ("up", True, "yes"), ("up", False, "no"), ("name", "", "-"),
    ("list", [1, 2], "1, 2"), ("list", [], "-"), ("map", {"a": 1, "b": None}, "a 1, b -"),
    ("text", "two\nlines", "two lines"),
])
def test_plain_values(key: str, value: object, shown: str) -> None:
    assert render.plain(key, value, 100.0) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.9, "0s"), (59, "59s"), (60, "1m0s"), (3600, "1h0m"), (9e4, "1d1h")])
def test_spans_have_two_units(seconds: float, shown: str) -> None:
    assert render.span(seconds) == shown


def test_an_empty_table_has_its_heads() -> None:
    assert render.table(["a_b", "c"], []) == "A B  C"
