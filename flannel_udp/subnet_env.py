"""subnet.env: what the CNI plugin and scripts read about this node's subnet, and what the next start prefers.

Written as flannel writes it (FLANNEL_SUBNET is the subnet's first address, and the bridge's), read in dotenv syntax:
what cannot be understood there counts as absent, for the file is a hint and never a reason not to start.
"""

import contextlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from flannel_udp.options import NodeOptions


@dataclass(frozen=True)
class SubnetEnv:
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


def write_whole(path: Path, text: str) -> None:
    """Put a file there at once and whole, mode 0644, whatever the umask; OSError when that fails.

    One writer at a time: the daemon that holds the lock of the file or of its folder (instance.py).
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the new name, too, must survive a power cut
    finally:
        os.close(directory)


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
