"""One call of the plugin: its variables and its configuration, checked before anything is done."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from flannel_udp.cni import failure
from flannel_udp.cni.failure import Failure
from flannel_udp.foreign_json import read_json
from flannel_udp.named import NamedTuple
from flannel_udp.paths import DEFAULT_RUN_DIR, DEFAULT_SUBNET_FILE, SOCKET_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# Specification: those that the reference library knows. The delegated plugin gives its result in the form of each.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = VERSIONS[-1]
UNSAID = VERSIONS[0]  # what a configuration without cniVersion means to the reference library
SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}  # the version that brought a verb
REQUIRED = {  # specification, section 2; where a plugin has to be found, CNI_PATH is asked for then
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "STATUS": (),
    "GC": ("CNI_PATH",),
    "VERSION": (),
}
VALID = "cni.dev/valid-attachments"
DEFAULT_DATA_DIR = Path("/var/lib/cni/flannel")  # flannel's

_FILE_NAME_MOST = 255 - 32  # NAME_MAX of Linux, less what a record's name has beside the container's
_PATH_MOST = 4096  # PATH_MAX of Linux
_INTERFACE_MOST = 15  # IFNAMSIZ of Linux, less its zero byte


class Attachment(NamedTuple):
    """What the specification knows a container's interface by."""

    container: str
    interface: str

    def __str__(self) -> str:
        return f"{self.interface} of container {self.container}"


class Call(NamedTuple):
    """A call whose parameters make sense."""

    verb: str
    attachment: Attachment
    """Empty for verbs that have none."""
    network: Network


class Network(NamedTuple):
    """The configuration on stdin, checked: flannel's keys, and the specification's that matter here."""

    name: str
    version: str
    subnet_file: Path
    data_dir: Path
    control_socket: Path
    delegate: dict[str, Any]
    ipam: dict[str, Any]
    handed_on: dict[str, Any]
    """Keys that the delegated plugin gets as they are, where they are given: cniVersion, args, runtimeConfig."""
    previous: dict[str, Any] | None
    valid: frozenset[Attachment]
    """GC: the attachments that are to stay."""


def verb_of(environment: Mapping[str, str]) -> str:
    """The verb; Failure when there is none, or one that the specification does not know."""
    verb = environment.get("CNI_COMMAND", "")
    if verb not in REQUIRED:
        wrong = f"unknown CNI_COMMAND {verb!r}" if verb else "CNI_COMMAND is missing"
        raise Failure(failure.ENVIRONMENT, wrong, f"expected one of {', '.join(REQUIRED)}")
    return verb


def read_call(verb: str, environment: Mapping[str, str], said: Mapping[str, Any]) -> Call:
    """Check the variables, then the configuration; Failure tells the first thing that is wrong."""
    attachment = _read_environment(verb, environment)
    network = read_network(said)
    if _older(network.version, SINCE.get(verb, UNSAID)):
        raise Failure(failure.VERSION, f"cniVersion {network.version} has no {verb}", f"it came with {SINCE[verb]}")
    if verb == "CHECK" and network.previous is None:
        raise Failure(failure.CONFIGURATION, "prevResult is missing", "CHECK compares with the result of ADD")
    return Call(verb, attachment, network)


# -- variables --------------------------------------------------------------------------------------------------------


def _read_environment(verb: str, environment: Mapping[str, str]) -> Attachment:
    missing = [name for name in REQUIRED[verb] if not environment.get(name)]
    if missing:
        raise Failure(failure.ENVIRONMENT, f"{', '.join(missing)} missing", f"{verb} needs {', '.join(REQUIRED[verb])}")
    if "CNI_IFNAME" not in REQUIRED[verb]:
        return Attachment("", "")
    container, interface = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
    if not is_name(container) or len(container) > _FILE_NAME_MOST:
        raise Failure(failure.ENVIRONMENT, f"CNI_CONTAINERID {_short(container)} is not a container's name",
                      f"expected a letter or digit, then letters, digits and _.- , at most {_FILE_NAME_MOST}")
    if not is_interface(interface):
        raise Failure(failure.ENVIRONMENT, f"CNI_IFNAME {_short(interface)} is not an interface's name",
                      f"expected 1 to {_INTERFACE_MOST} bytes without /, : and blanks, and not . or ..")  # fmt: skip
    if verb != "DEL" and own_netns(environment):
        raise Failure(failure.OWN_NETNS, f"CNI_NETNS {environment['CNI_NETNS']} is where the plugin runs itself")
    return Attachment(container, interface)


def is_name(text: str) -> bool:
    """Whether a container or a network may be called so."""
    return text.isascii() and text[:1].isalnum() and all(letter.isalnum() or letter in "_.-" for letter in text)


def is_interface(name: str) -> bool:
    """As the kernel has it (net/core/dev.c, dev_valid_name)."""
    if not 0 < len(os.fsencode(name)) <= _INTERFACE_MOST or name in (".", ".."):
        return False
    return not any(letter in "/:" or letter.isspace() for letter in name)


def own_netns(environment: Mapping[str, str]) -> bool:
    """Whether CNI_NETNS is the plugin's own namespace: undoing ADD there could take an interface of the node away."""
    netns = environment.get("CNI_NETNS", "")
    if not netns or environment.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE"):
        return False
    try:
        return os.path.samestat(Path(netns).stat(), Path("/proc/thread-self/ns/net").stat())
    except OSError:
        return False  # one that is gone is no fault in DEL, and for the delegated plugin to tell in ADD


# -- configuration ----------------------------------------------------------------------------------------------------


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object on stdin; Failure when it is none."""
    try:
        said = read_json(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except ValueError as error:
        raise Failure(failure.DECODE, "the configuration on stdin is not JSON", str(error)) from None
    if not isinstance(said, dict):
        raise Failure(failure.DECODE, "the configuration on stdin is not a JSON object", f"found {_short(said)}")
    return said


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _finite(word: str) -> float:
    value = float(word)
    if value - value:  # infinite: what JSON cannot tell the delegated plugin
        raise ValueError(f"{word} is too large")
    return value


def read_version(said: Mapping[str, Any]) -> str:
    """The configuration's cniVersion; Failure when it is none that this plugin knows."""
    version = said.get("cniVersion") or UNSAID
    if not isinstance(version, str):
        raise _wrong("cniVersion", version, "a string")
    if version not in VERSIONS:
        raise Failure(failure.VERSION, f"cniVersion {_short(version)} is not supported",
                      f"supported are {', '.join(VERSIONS)}")  # fmt: skip
    return version


def read_network(said: Mapping[str, Any]) -> Network:
    """Check the configuration; Failure names the first key that is wrong, its value, and what would be right."""
    version = read_version(said)
    name = said.get("name")
    if not name:
        raise Failure(failure.CONFIGURATION, "name is missing", "the network's name is needed")
    if not isinstance(name, str) or not is_name(name):
        raise _wrong("name", name, "letters, digits and _.- after a letter or digit")
    handed_on: dict[str, Any] = {"cniVersion": version} if said.get("cniVersion") else {}
    handed_on |= {key: _read_object(said, key) for key in ("args", "runtimeConfig") if said.get(key) is not None}
    return Network(
        name=name, version=version, subnet_file=_read_path(said, "subnetFile", DEFAULT_SUBNET_FILE),
        data_dir=_read_path(said, "dataDir", DEFAULT_DATA_DIR),
        control_socket=_read_path(said, "controlSocket", DEFAULT_RUN_DIR / SOCKET_NAME),
        delegate=_read_delegate(said), ipam=_read_ipam(said), handed_on=handed_on,
        previous=_read_previous(said),
        valid=_read_valid(said),
    )  # fmt: skip


def _read_delegate(said: Mapping[str, Any]) -> dict[str, Any]:
    delegate = _read_object(said, "delegate")
    for key in ("name", "ipam"):
        if key in delegate:
            raise Failure(failure.UNSUPPORTED, f"delegate.{key} {_short(delegate[key])} must not be there",
                          "the network's own name and ipam are used")  # fmt: skip
    _check_type("delegate", delegate)
    return delegate


def _read_ipam(said: Mapping[str, Any]) -> dict[str, Any]:
    ipam = _read_object(said, "ipam")
    _check_type("ipam", ipam)
    routes = ipam.get("routes")
    if routes is not None:
        _check_list("ipam.routes", routes, _is_route, 'objects such as {"dst": "10.0.0.0/8", "gw": "10.5.0.1"}')
    return ipam


def _is_route(route: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    from ipaddress import ip_address, ip_interface

    if not _has_texts(route, ("dst",)) or "/" not in route["dst"]:
        return False
    gateway = route.get("gw") if route.get("gw") is not None else ""
    try:
        ip_interface(route["dst"])
        return isinstance(gateway, str) and (not gateway or bool(ip_address(gateway)))
    except ValueError:
        return False


def _read_previous(said: Mapping[str, Any]) -> dict[str, Any] | None:
    previous = _read_object(said, "prevResult")
    for key, needed in (("interfaces", "name"), ("ips", "address"), ("routes", "dst")):
        found = previous.get(key)
        _check_list(f"prevResult.{key}", [] if found is None else found, partial(_is_part, needed=needed),
                    f"objects with a {needed}; gateways are texts")  # fmt: skip
    return previous or None


def _is_part(value: Any, needed: str) -> bool:  # noqa: ANN401 - whatever JSON holds
    return _has_texts(value, (needed,)) and isinstance(value.get("gateway") or "", str)


def _read_valid(said: Mapping[str, Any]) -> frozenset[Attachment]:
    valid = said.get(VALID)
    if valid is None:  # so the reference runtime library writes an empty list, or leaves it out
        return frozenset()
    _check_list(VALID, valid, _is_attachment, 'objects such as {"containerID": "c1", "ifname": "eth0"}')
    return frozenset(Attachment(one["containerID"], one["ifname"]) for one in valid)


def _is_attachment(value: object) -> bool:
    return _has_texts(value, ("containerID", "ifname"))


def _has_texts(value: object, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def _read_object(said: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return dict(value)


def _read_path(said: Mapping[str, Any], key: str, usual: Path) -> Path:
    value = said.get(key)
    if value is None:
        return usual
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or not _is_encodable(value):
        raise _wrong(key, value, f"an absolute path such as {usual}")
    return Path(value)


def _is_encodable(path: str) -> bool:
    try:
        return len(os.fsencode(path)) < _PATH_MOST
    except UnicodeEncodeError:
        return False


def _check_type(key: str, value: Mapping[str, Any]) -> None:
    plugin = value.get("type", "usual")
    if not isinstance(plugin, str) or not plugin or set("/\\\0") & set(plugin) or plugin in (".", ".."):
        raise _wrong(f"{key}.type", plugin, "the file name of a plugin, without folders")


def _check_list(key: str, value: object, right: Callable[[object], bool], expected: str) -> None:
    if not isinstance(value, list):
        raise _wrong(key, value, "a list")
    for number, one in enumerate(value):
        if not right(one):
            raise _wrong(f"{key}[{number}]", one, expected)


def _wrong(key: str, value: object, expected: str) -> Failure:
    return Failure(failure.CONFIGURATION, f"{key} {_short(value)} makes no sense", f"expected {expected}")


def _older(version: str, than: str) -> bool:
    return VERSIONS.index(version) < VERSIONS.index(than)


def _short(value: object, most: int = 120) -> str:
    """A value for a message: as JSON, and never a page of it."""
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."
