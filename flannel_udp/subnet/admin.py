"""What an administrator does to leases: reserve a subnet, release one. Each write is a compare-and-swap.

A reservation is an entry without an expiry. With a public address it waits for the node of that address, and stays that
node's; without one it is nobody's, and keeps the subnet from being given away.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING, Final, TypeVar

from flannel_udp.config import parse_network_config
from flannel_udp.errors import Conflict, LeaseError
from flannel_udp.lease import LeaseAttrs, decode_attrs, encode_attrs, parse_subnet_key, subnet_key
from flannel_udp.subnet.choose import Subnets, fits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flannel_udp.config import NetworkConfig
    from flannel_udp.registry import Entry, Registry

T = TypeVar("T")

_TRIES: Final = 20  # our choice: lost races before giving up; each is somebody else's write


def read_subnets(words: Iterable[str]) -> Subnets:
    """Read 10.5.1.0/24, or with the subnet of the other family beside it, or a key of the registry."""
    found: Subnets = (None, None)
    for word in words:
        one = _read_word(word)
        if any(old and new for old, new in zip(found, one, strict=True)):
            raise LeaseError(f"{word}: a second subnet of one family; a lease has one of each")
        found = (found[0] or one[0], found[1] or one[1])
    return found


def reserve(registry: Registry, subnets: Subnets, wanted: LeaseAttrs) -> LeaseAttrs:
    """Reserve a free subnet, or make a lease that stands a reservation; whose it is now."""
    config = parse_network_config(registry.read_config().text)
    if not fits(config, subnets):
        raise LeaseError(f"{_told(subnets)} is none of the network's subnets: {_expected(config)}")
    return _insist(lambda: _reserve(registry, subnets, wanted))


def release(registry: Registry, word: str) -> tuple[str, LeaseAttrs | None]:
    """Delete the lease or reservation of a subnet; its key, and whose it was (None: what stood there was no lease)."""
    seen: list[LeaseAttrs | None] = []
    return _insist(lambda: _release(registry, word, seen))


def _reserve(registry: Registry, subnets: Subnets, wanted: LeaseAttrs) -> LeaseAttrs:
    key = subnet_key(*subnets)
    listing = registry.snapshot()
    for entry in listing.entries:
        if entry.key == key:
            return _convert(registry, entry, wanted)
        if _overlap(_subnets(entry.key), subnets):
            raise LeaseError(f"{_told(subnets)} overlaps {entry.key}, {_whose(entry.value)}")
    registry.create(key, encode_attrs(wanted), None, listing.revision)
    return wanted


def _convert(registry: Registry, entry: Entry, wanted: LeaseAttrs) -> LeaseAttrs:
    """Take the expiry from a lease, and keep what it says; nobody's reservation may become somebody's."""
    try:
        attrs = decode_attrs(entry.value)
    except LeaseError as error:
        raise LeaseError(f"{entry.key}: {error}; release it first") from None
    if not _anybody(wanted) or (attrs.public_ip, attrs.public_ipv6) == (wanted.public_ip, wanted.public_ipv6):
        wanted = attrs
    elif _anybody(attrs):
        raise LeaseError(f"{entry.key} is already {_whose(entry.value)}: release it first")
    if entry.expiry is not None or wanted != attrs:
        value = entry.value if wanted == attrs else encode_attrs(wanted)
        registry.update(entry.key, value, None, entry.revision)
    return wanted


def _release(registry: Registry, word: str, seen: list[LeaseAttrs | None]) -> tuple[str, LeaseAttrs | None]:
    """Delete what stands there; a second try only what the first one `seen` found, not what an heir has put there."""
    entry = _find(registry.snapshot().entries, word)
    try:
        owner = decode_attrs(entry.value)
    except LeaseError:
        owner = None
    seen.append(owner)
    if owner != seen[0]:
        raise LeaseError(f"{entry.key} changed hands meanwhile, it is {_whose(entry.value)}: look, and try again")
    registry.delete(entry.key, entry.revision)
    return entry.key, owner


def _find(entries: Iterable[Entry], word: str) -> Entry:
    """The entry of this key, or with this subnet in it."""
    standing = list(entries)
    for entry in standing:
        if entry.key == word:
            return entry
    wanted = {subnet for subnet in _read_word(word) if subnet}
    found = [entry for entry in standing if wanted <= set(_subnets(entry.key))]
    if not found:
        raise LeaseError(f"{word}: neither leased nor reserved")
    if len(found) > 1:
        raise LeaseError(f"{word}: several have it, name one: {', '.join(entry.key for entry in found)}")
    return found[0]


def _insist(write: Callable[[], T]) -> T:
    """Write by what stands now, and again if it changed meanwhile."""
    for _ in range(_TRIES):
        try:
            return write()
        except Conflict:
            continue
    raise LeaseError(f"others wrote first, {_TRIES} times: try again")


def _read_word(word: str) -> Subnets:
    try:
        if "/" not in word:
            return parse_subnet_key(word)
        subnet = ip_network(word)
    except (LeaseError, ValueError) as error:
        raise LeaseError(f"{word}: expected a subnet such as 10.5.1.0/24 ({error})") from None
    return (subnet, None) if isinstance(subnet, IPv4Network) else (None, subnet)


def _subnets(key: str) -> Subnets:
    try:
        return parse_subnet_key(key)
    except LeaseError:
        return None, None


def _overlap(one: Subnets, other: Subnets) -> bool:
    return bool(one[0] and other[0] and one[0].overlaps(other[0])) or bool(
        one[1] and other[1] and one[1].overlaps(other[1]))


def _anybody(attrs: LeaseAttrs) -> bool:
    return attrs.public_ip is not None or attrs.public_ipv6 is not None


def _whose(value: bytes) -> str:
    try:
        attrs = decode_attrs(value)
    except LeaseError:
        return "of which the value cannot be read"
    return f"{attrs.public_ip or attrs.public_ipv6}'s" if _anybody(attrs) else "reserved for nobody"


def _told(subnets: Subnets) -> str:
    return " with ".join(str(subnet) for subnet in subnets if subnet)


def _expected(config: NetworkConfig) -> str:
    ranges = [f"a /{length} from {low} to {high}" for low, high, length in (
        (config.subnet_min, config.subnet_max, config.subnet_len),
        (config.ipv6_subnet_min, config.ipv6_subnet_max, config.ipv6_subnet_len)) if low is not None]
    return f"expected {' and '.join(ranges)}"
