"""Keys and values of leases: flannel's bytes both ways, and what is refused with its reason."""

import json
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.errors import LeaseError
from flannel_udp.lease import (
    Lease,
    LeaseAttrs,
    decode_attrs,
    decode_lease,
    decode_snapshot,
    encode_attrs,
    parse_subnet_key,
    subnet_key,
)

KEYS = [
    ("10.5.52.0-24", "10.5.52.0/24", None),
    ("10.5.52.0-24&fd00:12:13::-56", "10.5.52.0/24", "fd00:12:13::/56"),
    ("10.5.52.0-24&fc00:0:0:1::-64", "10.5.52.0/24", "fc00:0:0:1::/64"),
    ("0.0.0.0-0&fc00:0:0:1::-64", None, "fc00:0:0:1::/64"),
]


@pytest.mark.parametrize(("key", "v4", "v6"), KEYS)
def test_keys_both_ways(key: str, v4: str | None, v6: str | None) -> None:
    pair = (IPv4Network(v4) if v4 else None), (IPv6Network(v6) if v6 else None)
    assert subnet_key(*pair) == key
    assert parse_subnet_key(key) == pair
    assert parse_subnet_key(f"/coreos.com/network/subnets/{key}") == pair  # anchored at the end only
    assert Lease(*pair, LeaseAttrs(None), None, 1).key == key


def test_keys_are_read_as_tolerantly_as_flannel_reads_them() -> None:
    assert parse_subnet_key("10.5.52.7-24") == (IPv4Network("10.5.52.0/24"), None)
    assert parse_subnet_key("fd00:12:13::-56 10.5.0.0-16") == (IPv4Network("10.5.0.0/16"), None)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "10.5.52.0",
        "10.5.52.0/24",
        "10.5.52.0-32",
        "10.5.52.0-99999999999999999999",
        "10.5.52.256-24",
        "1234.5.6.7-24",
        "10.5.520-24",
        "10x5.52.0-24",
        "10.5x52.0-24",
        "10.5.52.0-24\n",
        "10.5.52.0-24/x",
        "10.5.52.0-24&FD00::-56",
        "10.5.52.0-24&fd00:::-56",
        "10.5.52.0-24&fd00::-128",
        "0.0.0.0-0",
        "١٠.5.52.0-٢٤",
        "10.5.52.0-" + "9" * 5000,
        "10.5.52.0-" + "0" * 5000 + "24",
        "10.5.52.0-24&fd00::-" + "9" * 5000,
        "1." + "1" * 5000,  # takes hours to match
    ],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(LeaseError):
        parse_subnet_key(key)


def test_random_keys_come_back() -> None:
    rng = random.Random(3)
    for _ in range(500):
        v4 = IPv4Network((rng.getrandbits(32), rng.randint(1, 31)), strict=False)
        v6 = IPv6Network((rng.getrandbits(128), rng.randint(1, 127)), strict=False) if rng.random() < 0.5 else None
        assert parse_subnet_key(subnet_key(v4, v6)) == (v4, v6)


MAC = {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}
VALUES = [
    (LeaseAttrs(IPv4Address("192.168.64.3")), b'{"PublicIP":"192.168.64.3","PublicIPv6":null}'),
    (
        LeaseAttrs(IPv4Address("192.168.64.3"), None, "vxlan", MAC),
        (
            b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
        ),
    ),
    (
        LeaseAttrs(IPv4Address("192.168.64.3"), IPv6Address("2001:db8::3"), "vxlan", MAC, {"VNI": 1}),
        (
            b'{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1}}'
        ),
    ),
    (
        LeaseAttrs(IPv4Address("192.168.64.3"), None, "host-gw"),
        b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
    ),
    (LeaseAttrs(None, IPv6Address("fd00::1")), b'{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1"}'),
    (
        LeaseAttrs(IPv4Address("1.2.3.4"), None, "extension", '<a> & "b" \u2028 \u00e9 \x01\t'),
        (
            b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension",'
            b'"BackendData":"\\u003ca\\u003e \\u0026 \\"b\\" \\u2028 \xc3\xa9 \\u0001\\t"}'
        ),
    ),
]


@pytest.mark.parametrize(("attrs", "value"), VALUES)
def test_values_both_ways(attrs: LeaseAttrs, value: bytes) -> None:
    assert encode_attrs(attrs) == value
    assert decode_attrs(value) == attrs


@pytest.mark.parametrize(
    "value",
    [
        b'{"publicip":"1.2.3.4"}',
        b' { "PUBLICIP" : "1.2.3.4", "PublicIPv6" : null, "Later": [1] } ',
        b'{"PublicIP":"1.2.3.4","BackendType":null,"BackendData":null}',
    ],
)
def test_values_are_read_as_tolerantly_as_go_reads_them(value: bytes) -> None:
    assert decode_attrs(value) == LeaseAttrs(IPv4Address("1.2.3.4"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"PublicIP":"1.2.3.4","BackendData":' + b"[" * 900 + b"]" * 900 + b"}", "not JSON"),
        (b'{"PublicIP":"1.2.3.4","BackendData":' + b"9" * 5000 + b"}", "not JSON"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"PublicIP":null}', "PublicIP null"),
        (b'{"PublicIP":16909060}', "PublicIP 16909060"),
        (b'{"PublicIP":"1.2.3"}', 'PublicIP "1.2.3"'),
        (b'{"PublicIP":"fd00::1"}', 'PublicIP "fd00::1"'),
        (b'{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}', 'PublicIPv6 "1.2.3.4"'),
        (b'{"PublicIP":"1.2.3.4","BackendType":1}', "BackendType 1"),
    ],
)
def test_a_bad_value_is_refused_in_one_printable_line(value: bytes, reason: str) -> None:
    with pytest.raises(LeaseError) as caught:
        decode_attrs(value)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


def test_mutated_values_are_read_or_refused_and_nothing_else() -> None:
    rng = random.Random(7)
    for _ in range(5000):
        value = bytearray(rng.choice(VALUES)[1])
        for _ in range(rng.randint(1, 4)):
            value[rng.randrange(len(value))] = rng.randrange(256)
        try:
            attrs = decode_attrs(bytes(value))
        except LeaseError:
            continue
        json.loads(encode_attrs(attrs))


def test_a_bad_entry_is_skipped_and_named() -> None:
    value = b'{"PublicIP":"1.2.3.4","PublicIPv6":null}'
    entries = [("10.5.1.0-24", value, 5, 9.0), ("10.5.2.0-24", b"", 6, None), ("x", value, 7, None)]
    snapshot = decode_snapshot(entries, 8)
    assert snapshot.leases == (decode_lease("10.5.1.0-24", value, 5, 9.0),)
    assert snapshot.revision == 8
    assert [key for key, _ in snapshot.skipped] == ["10.5.2.0-24", "x"]


def test_a_renewed_lease_says_the_same_and_a_moved_one_does_not() -> None:
    lease = decode_lease("10.5.1.0-24", b'{"PublicIP":"1.2.3.4"}', 5, 9.0)
    assert lease.same_as(decode_lease("10.5.1.0-24", b'{"PublicIP":"1.2.3.4"}', 6, 10.0))
    assert not lease.same_as(decode_lease("10.5.1.0-24", b'{"PublicIP":"1.2.3.5"}', 5, 9.0))
    assert not lease.same_as(None)
