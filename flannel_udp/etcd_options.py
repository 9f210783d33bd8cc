"""How to reach etcd: flanneld's --etcd-* options as one value, each read from its text. Nothing is opened here."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_PORT: Final = 2379
DEFAULT_PREFIX: Final = "/coreos.com/network"
_ENDPOINT: Final = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?/?", re.ASCII
)


@dataclass(frozen=True)
class Endpoint:
    """One member of an etcd cluster; an IPv6 address in brackets. `tls` None: if TLS files are given."""

    host: str
    port: int
    tls: bool | None


# specification: flannel's; 4001 was etcd's port before version 2.0
DEFAULT_ENDPOINTS: Final = (Endpoint("127.0.0.1", 4001, False), Endpoint("127.0.0.1", DEFAULT_PORT, False))


@dataclass(frozen=True, kw_only=True)
class EtcdOptions:
    """Where etcd is, under which prefix flannel's keys lie, and who this node is to it."""

    endpoints: tuple[Endpoint, ...] = DEFAULT_ENDPOINTS
    prefix: str = DEFAULT_PREFIX
    keyfile: Path | None = None
    certfile: Path | None = None
    cafile: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)


# What is to come together or not at all: a key, a user without a password are a slip, and would be ignored silently.
PAIRS: Final = (("keyfile", "certfile"), ("username", "password"))


def read_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read a comma list of URLs, as flanneld takes it; ValueError says which is none."""
    endpoints = tuple(_endpoint(part.strip()) for part in text.split(",") if part.strip())
    if not endpoints:
        raise ValueError("names no endpoint: expected http://HOST:PORT or https://HOST:PORT, several with commas")
    return endpoints


def read_prefix(text: str) -> str:
    """Read a key's prefix, cleaned as flanneld does it: one slash between parts, none at the end."""
    prefix = posixpath.normpath(text)
    if prefix.startswith("//"):  # POSIX gives two leading slashes a meaning of their own
        prefix = prefix[1:]
    if prefix in {".", "/"} or prefix.startswith(".."):
        raise ValueError(f"{text!r} is not a prefix of keys such as {DEFAULT_PREFIX}")
    return prefix


def _endpoint(text: str) -> Endpoint:
    found = _ENDPOINT.fullmatch(text)
    port = int(found["port"] or DEFAULT_PORT) if found else 0
    if not found or not 0 < port < 1 << 16:
        raise ValueError(f"{text!r} is not an endpoint such as http://10.0.0.1:2379 or https://etcd.example:2379")
    tls = None if found["scheme"] is None else found["scheme"] == "https"
    return Endpoint(found["host"], port, tls)
