"""flannel's network configuration: JSON text in, a checked value out, or one line that says what is wrong.

The JSON is read as Go's encoding/json reads it into flannel's struct: a key matches whatever its case, unknown keys are
ignored, the last of several equal keys counts, types are strict (`24` is a number, `"24"` is not), and null leaves a
flag or number unset while for an address it is an error. After that come flannel's own rules and defaults, and
one rule that flannel forgets: a range whose end lies before its start is refused here, not at the first lease.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Generic, NoReturn, TypeVar

from flannel_udp._dataplane import (
    UDP_OVERHEAD_V4,
    UDP_OVERHEAD_V6,
    UDP_PORT,
    VXLAN_OVERHEAD_V4,
    VXLAN_OVERHEAD_V6,
    VXLAN_PORT,
)
from flannel_udp.errors import ConfigError
from flannel_udp.foreign_json import read_json

# flannel's backends; which of them this program has is for the table in backend/ to say.
BACKEND_TYPES: Final = ("udp", "vxlan", "host-gw", "wireguard", "ipip", "ipsec", "extension", "alloc", "tencent-vpc")
IPV4_MTU_MIN: Final = 68  # specification: RFC 791, 3.2, and Linux for a device with IPv4
IPV6_MTU_MIN: Final = 1280  # specification: RFC 8200, 5, and Linux for a device with IPv6
UDP_MTUS_MIN: Final = {4: IPV4_MTU_MIN + UDP_OVERHEAD_V4, 6: IPV6_MTU_MIN + UDP_OVERHEAD_V6}
VXLAN_MTUS_MIN: Final = {4: IPV4_MTU_MIN + VXLAN_OVERHEAD_V4, 6: IPV6_MTU_MIN + VXLAN_OVERHEAD_V6}
# On the wire a VNI has 24 bits (RFC 7348, 5), but it stands in the devices' names, of at most 15 characters (IFNAMSIZ,
# linux/if.h): flannel.VNI, and flannel-v6.VNI. With more flannel does not start either.
VNIS_MOST: Final = {4: 9_999_999, 6: 9_999}


@dataclass(frozen=True)
class NetworkConfig:
    """A valid network configuration, defaults filled in; a family that is not enabled has no network and length 0.

    Two are equal if they mean the same, whatever their text.
    """

    enable_ipv4: bool
    enable_ipv6: bool
    enable_nftables: bool
    network: IPv4Network | None
    subnet_len: int
    subnet_min: IPv4Address | None
    subnet_max: IPv4Address | None
    ipv6_network: IPv6Network | None
    ipv6_subnet_len: int
    ipv6_subnet_min: IPv6Address | None
    ipv6_subnet_max: IPv6Address | None
    backend_type: str
    backend: Mapping[str, Any] = field(hash=False)
    text: str = field(compare=False)


@dataclass(frozen=True)
class UdpConfig:
    """The udp backend's keys. `mtu` stands for the external interface's MTU, from which the overhead is taken off,
    as flannel's vxlan has it; None: ask the interface.
    """

    port: int = UDP_PORT
    mtu: int | None = None


@dataclass(frozen=True)
class VxlanConfig:
    """The vxlan backend's keys. `mtu` is the underlay's, as flannel has it; None: ask the interface."""

    vni: int = 1
    port: int = VXLAN_PORT
    mtu: int | None = None
    direct_routing: bool = False
    learning: bool = False


N = TypeVar("N", IPv4Network, IPv6Network)
A = TypeVar("A", IPv4Address, IPv6Address)


@dataclass(frozen=True)
class _Family(Generic[N, A]):
    """What differs between the IPv4 keys and their IPv6 twins."""

    prefix: str
    bits: int
    default_len: int
    example: str
    make_network: Callable[[tuple[int, int]], N]
    make_address: Callable[[str | int], A]


_V4: Final = _Family("", 32, 24, "10.5.0.0/16", lambda pair: IPv4Network(pair, strict=False), IPv4Address)
_V6: Final = _Family("IPv6", 128, 64, "fd00:5::/48", lambda pair: IPv6Network(pair, strict=False), IPv6Address)


def parse_network_config(text: str | bytes) -> NetworkConfig:
    """Read, check and complete flannel's configuration; ConfigError names key, value and what would be right."""
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    written = _read_object(text)
    fields = _read_fields(written, _READERS)
    _check_networks(fields, [key for key in written if key.casefold() not in _READERS])
    enable4, enable6 = fields.get("EnableIPv4", True), fields.get("EnableIPv6", False)
    network, length, low, high = _check_family(fields, _V4) if enable4 else (None, 0, None, None)
    ipv6_network, ipv6_length, ipv6_low, ipv6_high = _check_family(fields, _V6) if enable6 else (None, 0, None, None)
    backend = fields.get("Backend")
    config = NetworkConfig(
        enable_ipv4=enable4,
        enable_ipv6=enable6,
        enable_nftables=fields.get("EnableNFTables", False),
        network=network,
        subnet_len=length,
        subnet_min=low,
        subnet_max=high,
        ipv6_network=ipv6_network,
        ipv6_subnet_len=ipv6_length,
        ipv6_subnet_min=ipv6_low,
        ipv6_subnet_max=ipv6_high,
        backend_type=_backend_type(backend),
        backend=backend or {},
        text=text,
    )
    backend_keys(config)
    return config


def backend_keys(config: NetworkConfig) -> Mapping[str, Any]:
    """The keys of the configured backend with their defaults, checked; empty if this program knows none of it."""
    parse = {"udp": parse_udp_config, "vxlan": parse_vxlan_config}.get(config.backend_type)
    return vars(parse(config)) if parse else {}


def parse_udp_config(config: NetworkConfig) -> UdpConfig:
    """Read the udp backend's own keys from `Backend`."""
    fields = _read_fields(config.backend, _UDP_READERS, "Backend.")
    port, mtu = fields.get("Port", UDP_PORT), fields.get("MTU", 0)
    if not 1 <= port <= 65535:
        _refuse("Backend.Port", port, "a UDP port from 1 to 65535")
    least = UDP_MTUS_MIN[6 if config.enable_ipv6 else 4]
    if mtu and not least <= mtu <= 65535:
        _refuse("Backend.MTU", mtu, f"the underlay's MTU, from {least} to 65535, or 0 to ask the interface")
    return UdpConfig(port, mtu or None)


def vxlan_mtu_min(config: NetworkConfig) -> int:
    """The least MTU of the underlay with which every enabled family has its own least MTU inside."""
    return VXLAN_MTUS_MIN[6 if config.enable_ipv6 else 4]


def parse_vxlan_config(config: NetworkConfig) -> VxlanConfig:
    """Read the vxlan backend's own keys from `Backend`; what flannel has for Windows is ignored, as by flannel."""
    fields = _read_fields(config.backend, _VXLAN_READERS, "Backend.")
    vni, port, mtu = fields.get("VNI", VxlanConfig.vni), fields.get("Port", 0), fields.get("MTU", 0)
    least, most = vxlan_mtu_min(config), VNIS_MOST[6 if config.enable_ipv6 else 4]
    if vni > most:
        _refuse("Backend.VNI", vni, f"at most {most}, for it has to fit into the name of the device")
    if port > 65535:
        _refuse("Backend.Port", port, f"a UDP port up to 65535, or 0 for {VXLAN_PORT}")
    if mtu and not least <= mtu <= 65535:
        _refuse("Backend.MTU", mtu, f"the underlay's MTU, from {least} to 65535, or 0 to ask the interface")
    if fields.get("GBP"):
        # The policy is the kernel's mark of a packet, and no TUN carries marks: obeyed in name only, it would let pass
        # what the policies of other nodes are meant to stop.
        _refuse("Backend.GBP", True, "this program cannot carry group policies: leave it out, on all nodes")
    return VxlanConfig(vni, port or VXLAN_PORT, mtu or None, fields.get("DirectRouting", False),
                       fields.get("Learning", False))


def _backend_type(backend: Mapping[str, Any] | None) -> str:
    if backend is None:
        return "udp"  # flannel's code; its documentation says vxlan
    kind: str = _read_fields(backend, _TYPE_READERS, "Backend.").get("Type", "")
    if kind.lower() not in BACKEND_TYPES:
        _refuse("Backend.Type", kind, f"unknown backend type; flannel knows {', '.join(BACKEND_TYPES)}")
    return kind.lower()


def _check_networks(fields: Mapping[str, Any], unknown: list[str]) -> None:
    """Refuse a configuration without any family, or without the network of an enabled one."""
    enabled = [family for family, default in ((_V4, True), (_V6, False))
               if fields.get(f"Enable{family.prefix or 'IPv4'}", default)]
    if not enabled:
        raise ConfigError("EnableIPv4 false, EnableIPv6 false: at least one address family must be enabled")
    # flannel ignores what it does not know; here that may be the missing key with a slip of the pen in it.
    hint = f"; not known, and ignored: {_shortened(', '.join(map(json.dumps, unknown)))}" if unknown else ""
    for family in enabled:
        if f"{family.prefix}Network" not in fields:
            raise ConfigError(f"{family.prefix}Network is missing: give the overlay network, for example "
                              f'"{family.example}"{hint}')


def _check_family(fields: Mapping[str, Any], family: _Family[N, A]) -> tuple[N, int, A, A]:
    """Apply flannel's rules and defaults for one address family: network, subnet length, first and last subnet."""
    key = f"{family.prefix}Network"
    network: N = fields[key]
    if network.prefixlen == 0:
        _refuse(key, str(network), f'the whole address space cannot be the overlay; for example "{family.example}"')
    length = _subnet_len(fields.get(f"{family.prefix}SubnetLen", 0), network, family)
    size = 1 << (family.bits - length)
    low_key, high_key = f"{family.prefix}SubnetMin", f"{family.prefix}SubnetMax"
    # The first subnet is left out: its address is the network's own, which a bridge must not have.
    low = fields.get(low_key) or family.make_address(int(network.network_address) + size)
    high = fields.get(high_key) or family.make_address(int(network.broadcast_address) + 1 - size)
    for name, bound in ((low_key, low), (high_key, high)):
        if bound not in network:
            _refuse(name, str(bound), f"an address in {key} {network}")
        if int(bound) % size:
            nearest = family.make_address(int(bound) // size * size)
            _refuse(name, str(bound), f"the first address of a /{length} subnet, for example {nearest}")
    if low > high:
        _refuse(low_key, str(low), f"not above {high_key} {high}")
    return network, length, low, high


def _subnet_len(length: int, network: N, family: _Family[N, A]) -> int:
    key, shortest, longest = f"{family.prefix}SubnetLen", network.prefixlen + 2, family.bits - 2
    if shortest > longest:
        _refuse(f"{family.prefix}Network", str(network), f"too small to hold four subnets; at most /{longest - 2}")
    if not length:
        return max(family.default_len, shortest)
    if length > longest:
        _refuse(key, length, f"from {shortest} to {longest}: a subnet needs addresses for a tunnel and a bridge")
    if length < shortest:
        _refuse(key, length, f"from {shortest} to {longest}: {family.prefix}Network {network} must hold four subnets")
    return length


# Reading JSON the way Go does.

_Reader = Callable[[str, object], Any]


def _read_object(text: str) -> dict[str, Any]:
    """Decode JSON whose top is an object; of equal keys the last stays, in the last one's place."""

    def keep_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            result.pop(key, None)
            result[key] = value
        return result

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = read_json(text, object_pairs_hook=keep_last, parse_constant=refuse_constant)
    except ValueError as error:
        raise ConfigError(f"network configuration is not JSON: {error}") from None
    if not isinstance(value, dict):
        _refuse("network configuration", value, 'a JSON object, for example {"Network": "10.5.0.0/16"}')
    return value


def _read_fields(obj: Mapping[str, Any], readers: Mapping[str, tuple[str, _Reader]], path: str = "") -> dict[str, Any]:
    """Pick the known keys, whatever their case, each through its reader; a reader's None leaves the key unset."""
    fields: dict[str, Any] = {}
    for key, value in obj.items():
        name, reader = readers.get(key.casefold(), ("", _read_text))
        if name and (result := reader(path + name, value)) is not None:
            fields[name] = result
    return fields


def _read_bool(key: str, value: object) -> bool | None:
    return value if value is None or isinstance(value, bool) else _refuse(key, value, "true or false, without quotes")


def _read_int(key: str, value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    return _refuse(key, value, "a whole number, without quotes, sign, dot or exponent")


def _read_text(key: str, value: object) -> str | None:
    return value if value is None or isinstance(value, str) else _refuse(key, value, "a text in quotes")


def _read_dict(key: str, value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(key, value, 'an object, for example {"Type": "udp"}')


def _read_network(family: _Family[N, A]) -> _Reader:
    def read(key: str, value: object) -> N:
        right = f'an address, a slash and a length in quotes, for example "{family.example}"'
        address, _, length = value.partition("/") if isinstance(value, str) else ("", "", "")
        length = length.lstrip("0") or length[:1]  # Python refuses to read thousands of digits
        if not (length.isascii() and length.isdigit() and len(length) <= 3 and "%" not in address):
            _refuse(key, value, right)
        try:
            number = int(family.make_address(address))
        except ValueError:
            _refuse(key, value, right)
        if int(length) > family.bits:
            _refuse(key, value, f"a prefix length of at most {family.bits}")
        return family.make_network((number, int(length)))

    return read


def _read_bound(family: _Family[N, A], optional: bool) -> _Reader:
    def read(key: str, value: object) -> A | None:
        if value is None and optional:
            return None  # IPv6 bounds are pointers in flannel's struct: null unsets them
        right = f'an address in quotes, for example "{family.example.partition("/")[0]}"'
        if not isinstance(value, str) or "%" in value:
            _refuse(key, value, right)
        try:
            return family.make_address(value) if int(family.make_address(value)) else None
        except ValueError:
            _refuse(key, value, right)

    return read


def _by_key(**readers: _Reader) -> Mapping[str, tuple[str, _Reader]]:
    """Each reader with its key's name, under the folded name: a key matches whatever its case."""
    return {name.casefold(): (name, reader) for name, reader in readers.items()}


_READERS: Final = _by_key(
    EnableIPv4=_read_bool,
    EnableIPv6=_read_bool,
    EnableNFTables=_read_bool,
    Network=_read_network(_V4),
    IPv6Network=_read_network(_V6),
    SubnetLen=_read_int,
    IPv6SubnetLen=_read_int,
    SubnetMin=_read_bound(_V4, optional=False),
    SubnetMax=_read_bound(_V4, optional=False),
    IPv6SubnetMin=_read_bound(_V6, optional=True),
    IPv6SubnetMax=_read_bound(_V6, optional=True),
    Backend=_read_dict,
)
_TYPE_READERS: Final = _by_key(Type=_read_text)
_UDP_READERS: Final = _by_key(Port=_read_int, MTU=_read_int)
_VXLAN_READERS: Final = _by_key(VNI=_read_int, Port=_read_int, MTU=_read_int, DirectRouting=_read_bool, GBP=_read_bool,
                                Learning=_read_bool)


def _refuse(key: str, value: object, right: str) -> NoReturn:
    raise ConfigError(f"{key} {_shortened(json.dumps(value, ensure_ascii=True))}: {right}")


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
