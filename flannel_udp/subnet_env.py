"""subnet.env: what the CNI plugin and scripts read about this node's subnet, and what the next start prefers.

Written as flannel writes it (FLANNEL_SUBNET is the subnet's first address, and the bridge's), read in dotenv syntax.
To the daemon the file is a hint and never a reason not to start: what it cannot understand there counts as absent. To
the CNI plugin it is the order: it takes all that a container needs, or nothing.

The plugin starts anew for every container, so what this module imports is few and quick.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from ipaddress import IPv4Network, IPv6Network

from flannel_udp.errors import SubnetEnvError
from flannel_udp.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flannel_udp.options import NodeOptions


_MTU_MOST = 65535  # our choice: no device has more; 0 leaves it to the plugin that makes the interface


class SubnetEnv(NamedTuple):
    """The content of subnet.env; subnets and networks without host bits."""

    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    ipv6_network: IPv6Network | None = None
    ipv6_subnet: IPv6Network | None = None
    mtu: int | None = None
    ip_masq: bool = False

    def text(self) -> str:
        """The file's bytes, in flannel's order."""
        lines = []
        if self.network and self.subnet:
            lines += [f"FLANNEL_NETWORK={self.network}", f"FLANNEL_SUBNET={_first(self.subnet)}"]
        if self.ipv6_network and self.ipv6_subnet:
            lines += [f"FLANNEL_IPV6_NETWORK={self.ipv6_network}", f"FLANNEL_IPV6_SUBNET={_first(self.ipv6_subnet)}"]
        lines += [f"FLANNEL_MTU={self.mtu or 0}", f"FLANNEL_IPMASQ={'true' if self.ip_masq else 'false'}"]
        return "\n".join(lines) + "\n"


def read_subnet_env(path: Path) -> SubnetEnv:
    """What an earlier run left; a missing or damaged file, or entry, leaves its fields empty."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    said = dotenv(text)
    mtu = said.get("FLANNEL_MTU", "")
    return SubnetEnv(
        network=_ipv4(said, "FLANNEL_NETWORK"), subnet=_ipv4(said, "FLANNEL_SUBNET"),
        ipv6_network=_ipv6(said, "FLANNEL_IPV6_NETWORK"), ipv6_subnet=_ipv6(said, "FLANNEL_IPV6_SUBNET"),
        mtu=int(mtu) if mtu.isascii() and mtu.isdigit() else None, ip_masq=said.get("FLANNEL_IPMASQ") == "true",
    )


class PluginEnv(NamedTuple):
    """What a container needs to know of its node; IPv4 first, no host bits."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    subnets: tuple[IPv4Network | IPv6Network, ...]
    mtu: int
    ip_masq: bool


def plugin_env(path: Path) -> PluginEnv:
    """All that the CNI plugin needs, in flannel's meaning: either family or both, several networks with commas between.

    OSError when the file cannot be read; SubnetEnvError says what it lacks, or which value makes no sense.
    """
    try:
        said = dotenv(path.read_text())
    except UnicodeDecodeError:
        raise SubnetEnvError(f"{path} is not a text in UTF-8") from None
    missing = [f"FLANNEL_{name} or FLANNEL_IPV6_{name}" for name in ("NETWORK", "SUBNET")
               if not said.get(f"FLANNEL_{name}") and not said.get(f"FLANNEL_IPV6_{name}")]
    missing += [key for key in ("FLANNEL_MTU", "FLANNEL_IPMASQ") if not said.get(key)]
    if missing:
        raise SubnetEnvError(f"{path} lacks {', '.join(missing)}")
    try:
        return PluginEnv(_networks(said, "NETWORK", several=True), _networks(said, "SUBNET", several=False),
                         _mtu(said["FLANNEL_MTU"]), _truth(said["FLANNEL_IPMASQ"]))  # fmt: skip
    except ValueError as error:
        raise SubnetEnvError(f"{path}: {error}") from None


def kept_env(options: NodeOptions) -> Path:
    """A second subnet.env: the one below /run does not survive a reboot."""
    return options.state_dir / "subnet.env"


def known_before(options: NodeOptions) -> SubnetEnv:
    """What the last run of this daemon, or of flannel, held."""
    found = read_subnet_env(options.subnet_file)
    return found if found.subnet or found.ipv6_subnet else read_subnet_env(kept_env(options))


def write_subnet_env(path: Path, env: SubnetEnv) -> None:
    """Put the file there; OSError when that fails."""
    write_whole(path, env.text())


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Put a file there at once and whole, with this mode whatever the umask; OSError when that fails.

    One writer at a time: who holds the lock of the file or of its folder.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = half_written(path)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        fresh.replace(path)
    except BaseException:  # raised again: half a file must not stay
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the new name, too, must survive a power cut
    finally:
        os.close(directory)


def half_written(path: Path) -> Path:
    """What `write_whole` leaves beside `path` when it is killed."""
    return path.with_name(f".{path.name}.new")


def _first(subnet: IPv4Network | IPv6Network) -> str:
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"


def dotenv(text: str) -> dict[str, str]:
    """KEY=VALUE lines; `export`, quotes, blanks and comments as shells take them; other lines are nothing."""
    said = {}
    for line in text.splitlines():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        with contextlib.suppress(ValueError):  # an unclosed quote
            words = shlex.split(value, comments=True)
            if equals and len(words) <= 1:
                said[key.strip()] = "".join(words)
    return said


def _ipv4(said: Mapping[str, str], key: str) -> IPv4Network | None:
    # ipaddress would take a bare address as /32. Several, comma-separated, count as none, as with flannel.
    with contextlib.suppress(ValueError):
        return IPv4Network(said.get(key, ""), strict=False) if "/" in said.get(key, "") else None
    return None


def _ipv6(said: Mapping[str, str], key: str) -> IPv6Network | None:
    with contextlib.suppress(ValueError):
        return IPv6Network(said.get(key, ""), strict=False) if "/" in said.get(key, "") else None
    return None


def _networks(said: Mapping[str, str], name: str, *, several: bool) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks of both families, each once, in the file's order; ValueError names the value that is none."""
    found: dict[IPv4Network | IPv6Network, None] = {}
    for key, kind in ((f"FLANNEL_{name}", IPv4Network), (f"FLANNEL_IPV6_{name}", IPv6Network)):
        value = said.get(key, "")
        for word in value.split(",") if several else [value]:
            try:
                found |= {kind(word.strip(), strict=False): None} if value else {}
            except ValueError:
                raise ValueError(f"{key}={value!r} is not {_example(kind)}") from None
            if value and "/" not in word:
                raise ValueError(f"{key}={value!r} has no prefix length: expected {_example(kind)}")
    return tuple(found)


def _example(kind: type[IPv4Network | IPv6Network]) -> str:
    return "an IPv4 network such as 10.5.0.0/16" if kind is IPv4Network else "an IPv6 network such as fd00:5::/48"


def _mtu(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:8]) > _MTU_MOST:
        raise ValueError(f"FLANNEL_MTU={text!r} is not a number from 0 to {_MTU_MOST}")
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"FLANNEL_IPMASQ={text!r} is neither true nor false")
    return text == "true"
