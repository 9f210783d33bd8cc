"""Leases as values, and their two forms in a registry: key and JSON value, byte for byte as flannel writes them.

    key     10.5.52.0-24    or    10.5.52.0-24&fd00:12:13::-56    or, without IPv4,    0.0.0.0-0&fd00:12:13::-56
    value   {"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...}}

Writing follows Go's encoding/json (order of fields, no blanks, <, > and & escaped). Reading is as tolerant as Go (keys
in any case, unknown ones ignored); what cannot be read raises LeaseError with the reason, for the caller to skip.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from flannel_udp.errors import LeaseError
from flannel_udp.foreign_json import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

A = TypeVar("A", IPv4Address, IPv6Address)

# flannel's expression to the letter, dots that match anything included; anchored at the end only, so that a key may
# carry any prefix.
_KEY: Final = re.compile(r"([0-9]+\.[0-9]+.[0-9]+.[0-9]+)-([0-9]+)(?:&([a-f0-9:]+)-([0-9]+))?\Z", re.DOTALL)
_KEY_MAX_CHARS: Final = 128  # our choice: twice the longest pair of subnets; matching takes the cube of it
_KEY_MAX_LEN4: Final = 31  # specification: flannel reads the lengths as 5 and 7 bits
_KEY_MAX_LEN6: Final = 127
# Our choice: how many keys, and how many values of which size, are read but once. A start reads the same snapshot
# twice, whoever loses a race reads it again, and a renewal changes neither.
_REMEMBERED: Final = 1 << 14
_REMEMBERED_BYTES: Final = 512
_GO_ESCAPES: Final = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


@dataclass(frozen=True)
class LeaseAttrs:
    """What a node tells its peers about itself; data None means that the field is not written."""

    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: Any = None
    backend_v6_data: Any = None


@dataclass(frozen=True)
class Lease:
    """A subnet given to a node; without an expiry (unix time) it is a reservation and stays for ever."""

    subnet: IPv4Network | None
    ipv6_subnet: IPv6Network | None
    attrs: LeaseAttrs
    expiry: float | None
    revision: int

    @cached_property
    def key(self) -> str:
        """The lease's key as flannel writes it."""
        return subnet_key(self.subnet, self.ipv6_subnet)

    @property
    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """That of each family it has one of."""
        return tuple(subnet for subnet in (self.subnet, self.ipv6_subnet) if subnet)

    def same_as(self, other: Lease | None) -> bool:
        """Whether both say the same to a data plane: all but expiry and revision, which each renewal changes."""
        if other is None:
            return False
        return (self.subnet, self.ipv6_subnet, self.attrs) == (other.subnet, other.ipv6_subnet, other.attrs)


@dataclass(frozen=True)
class Snapshot:
    """All readable leases at one revision, and the keys that could not be read, each with its reason."""

    leases: tuple[Lease, ...]
    revision: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LeaseEvent:
    """One change below subnets/: a lease put or deleted; `problem` says why a put has no readable lease."""

    kind: Literal["put", "delete"]
    key: str
    revision: int
    lease: Lease | None = None
    problem: str = ""


def subnet_key(subnet: IPv4Network | None, ipv6_subnet: IPv6Network | None) -> str:
    """Write the key of a subnet or of a pair of subnets."""
    key = f"{subnet.network_address}-{subnet.prefixlen}" if subnet else "0.0.0.0-0"
    return f"{key}&{ipv6_subnet.network_address}-{ipv6_subnet.prefixlen}" if ipv6_subnet else key


@lru_cache(_REMEMBERED)
def parse_subnet_key(key: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """Read a key, host bits masked off; LeaseError if it names no subnet."""
    if len(key) > _KEY_MAX_CHARS:
        raise LeaseError(f"longer than {_KEY_MAX_CHARS} characters")
    match = _KEY.search(key)
    if match is None:
        raise LeaseError('no subnet key such as "10.5.52.0-24"')
    text4, len4, text6, len6 = match.groups()
    if int(len4) > _KEY_MAX_LEN4 or (len6 and int(len6) > _KEY_MAX_LEN6):
        raise LeaseError(f"prefix length above {_KEY_MAX_LEN4} (IPv4) or {_KEY_MAX_LEN6} (IPv6)")
    try:
        subnet = IPv4Network((text4, int(len4)), strict=False)
        ipv6_subnet = IPv6Network((text6, int(len6)), strict=False) if text6 else None
    except ValueError as error:
        raise LeaseError(str(error)) from None
    if subnet.prefixlen == 0 and ipv6_subnet is None:
        raise LeaseError("the whole address space is no subnet")
    return (subnet if subnet.prefixlen else None), ipv6_subnet


def encode_attrs(attrs: LeaseAttrs) -> bytes:
    """Write a lease's value."""
    fields: dict[str, Any] = {
        "PublicIP": str(attrs.public_ip or "0.0.0.0"),  # noqa: S104 flannel's way to write "none"
        "PublicIPv6": None if attrs.public_ipv6 is None else str(attrs.public_ipv6),
    }
    if attrs.backend_type:
        fields["BackendType"] = attrs.backend_type
    if attrs.backend_data is not None:
        fields["BackendData"] = attrs.backend_data
    if attrs.backend_v6_data is not None:
        fields["BackendV6Data"] = attrs.backend_v6_data
    # Outside of strings JSON has none of the escaped characters, so the whole text can be translated.
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES).encode()


def decode_attrs(value: bytes) -> LeaseAttrs:
    """Read a lease's value; LeaseError says what cannot be read."""
    return _decode_again(value) if len(value) <= _REMEMBERED_BYTES else _decode(value)


def _decode(value: bytes) -> LeaseAttrs:
    try:
        obj = read_json(value)
    except ValueError:
        raise LeaseError(f"value is not JSON: {_shorten(value)}" if value else "value is empty") from None
    if not isinstance(obj, dict):
        raise LeaseError(f"value is not a JSON object: {_shorten(value)}")
    fields = {key.casefold(): item for key, item in obj.items()}
    kind = fields.get("backendtype")
    if kind is not None and not isinstance(kind, str):
        raise LeaseError(f"BackendType {_shorten(json.dumps(kind))}: not a text")
    ip = _read_address("PublicIP", fields.get("publicip", "0.0.0.0"), IPv4Address)  # noqa: S104 absent: none
    ipv6 = None if fields.get("publicipv6") is None else _read_address("PublicIPv6", fields["publicipv6"], IPv6Address)
    return LeaseAttrs(ip, ipv6, kind or "", fields.get("backenddata"), fields.get("backendv6data"))


_decode_again = lru_cache(_REMEMBERED)(_decode)


def decode_lease(key: str, value: bytes, revision: int, expiry: float | None) -> Lease:
    """Read an entry of a registry; LeaseError gives the reason without the key."""
    subnet, ipv6_subnet = parse_subnet_key(key)
    return Lease(subnet, ipv6_subnet, decode_attrs(value), expiry, revision)


def decode_snapshot(entries: Iterable[tuple[str, bytes, int, float | None]], revision: int) -> Snapshot:
    """Read many entries (key, value, revision, expiry); one that cannot be read touches no other."""
    leases, skipped = [], []
    for key, value, changed, expiry in entries:
        try:
            leases.append(decode_lease(key, value, changed, expiry))
        except LeaseError as error:
            skipped.append((key, str(error)))
    return Snapshot(tuple(leases), revision, tuple(skipped))


def _read_address(name: str, value: object, make: Callable[[str], A]) -> A | None:
    """Read an address; the unspecified one is flannel's way to write none."""
    try:
        address = make(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None:
        raise LeaseError(f"{name} {_shorten(json.dumps(value))}: not an address")
    return address if int(address) else None


def _shorten(text: str | bytes) -> str:
    """Fit foreign text into a line of the log."""
    shown = text if isinstance(text, str) else ascii(text)[1:]
    return shown if len(shown) <= 60 else shown[:57] + "..."
