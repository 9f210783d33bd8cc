"""What a hand that slipped, or an enemy, may write below flannel's prefix."""

from __future__ import annotations

SUBNETS = b"/coreos.com/network/subnets/"
_NODE = b'{"PublicIP":"192.0.2.77","PublicIPv6":null}'

KEYS: dict[str, bytes] = {
    "an empty name": b"",
    "a word": b"readme",
    "not UTF-8": b"10.5.\xff\xfe.0-24",
    "NUL bytes": b"10.5.7.0-24\x00\x00",
    "a folder": b"10.5.7.0-24/more",
    "5,000 digits": b"1" * 5000,
    "many dots and digits": b"1." * 3000 + b"-24",
    "no address": b"10.5.300.0-24",
    "a length of 33": b"10.5.7.0-33",
    "a length of 999,999 digits": b"10.5.7.0-" + b"9" * 20_000,
    "a length with a sign": b"10.5.7.0--24",
    "a newline": b"10.5.7.0-24\nlevel=error",
    "the escape of a terminal": b"\x1b[2J\x1b]0;x\x07",
    "everything": b"0.0.0.0-0",
    "another network": b"192.168.7.0-24",
    "IPv6 only": b"0.0.0.0-0&fd00::-64",
    "a subnet too small": b"10.5.7.128-25",
    "one address": b"10.5.7.1-32",
}
"""Names below subnets/, each with a value that is right."""

VALUES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"lorem ipsum",
    "half of it": _NODE[:20],
    "not UTF-8": b'{"PublicIP":"\xff\xfe"}',
    "NUL bytes": bytes(100),
    "null": b"null",
    "a number": b"12",
    "a list": b"[" + _NODE + b"]",
    "brackets without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 50_000,
    "a huge number": b'{"PublicIP":' + b"9" * 100_000 + b"}",
    "NaN": b'{"PublicIP":NaN}',
    "an address that is a list": b'{"PublicIP":["192.0.2.77"]}',
    "an address too long": b'{"PublicIP":"192.0.2.77.1"}',
    "an address without end": b'{"PublicIP":"' + b"1" * 100_000 + b'"}',
    "no address": b'{"PublicIP":"0.0.0.0"}',
    "a loopback address": b'{"PublicIP":"127.0.0.1"}',
    "a multicast address": b'{"PublicIP":"224.0.0.1"}',
    "a broadcast address": b'{"PublicIP":"255.255.255.255"}',
    "a backend that is a number": b'{"PublicIP":"192.0.2.77","BackendType":7}',
    "another backend": b'{"PublicIP":"192.0.2.77","BackendType":"vxlan","BackendData":{"VNI":1}}',
    "a megabyte": b'{"PublicIP":"192.0.2.77","x":"' + b"x" * 1_000_000,
    "a lone surrogate": b'{"PublicIP":"\\ud800"}',
}
"""Values under a name that is right."""

CONFIGS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"lorem ipsum",
    "a list": b"[]",
    "no network": b"{}",
    "a network of nothing": b'{"Network": "10.5.0.0/33"}',
    "brackets without end": b"[" * 100_000,
    "another backend": b'{"Network": "10.5.0.0/16", "Backend": {"Type": "carrier-pigeon"}}',
    "another network": b'{"Network": "10.99.0.0/16"}',
}
"""Values of the network configuration."""
