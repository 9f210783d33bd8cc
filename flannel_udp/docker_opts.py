"""Docker's options out of subnet.env, as flannel's mk-docker-opts.sh writes them.

    individual   DOCKER_OPT_BIP="--bip=10.5.20.1/24"          one line each, in the order of their names
    combined     DOCKER_OPTS=" --bip=10.5.20.1/24 ..."         with the blanks that the script puts there
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flannel_udp.errors import LeaseError, UsageError
from flannel_udp.netlink import Links
from flannel_udp.subnet_env import dotenv, read_subnet_env

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Docker masquerades where flannel does not.
IP_MASQ = {"true": "--ip-masq=false", "false": "--ip-masq=true"}


def docker_options(said: Mapping[str, str], *, ip_masq: bool = True) -> dict[str, str]:
    """By variable, the options that follow from the entries of a subnet.env; UsageError names one that is wrong."""
    options = {}
    if subnet := said.get("FLANNEL_SUBNET"):
        options["DOCKER_OPT_BIP"] = f"--bip={subnet}"
    if (asked := said.get("FLANNEL_IPMASQ")) and ip_masq:
        if asked not in IP_MASQ:
            raise UsageError(f"FLANNEL_IPMASQ is {asked!r}: expected true or false")
        options["DOCKER_OPT_IPMASQ"] = IP_MASQ[asked]
    if mtu := said.get("FLANNEL_MTU"):
        options["DOCKER_OPT_MTU"] = f"--mtu={mtu}"
    return options


def docker_env(options: Mapping[str, str], environ: Mapping[str, str], *, individual: bool, combined: bool,
               key: str = "DOCKER_OPTS") -> str:
    """The file's text. As with the script, DOCKER_OPT_* and the combined key of the environment are carried over."""
    if not KEY.fullmatch(key):
        raise UsageError(f"-k {key}: expected the name of a shell variable")
    if not individual and not combined:
        individual = combined = True
    carried = {name: value for name, value in environ.items() if name.startswith("DOCKER_OPT_")}
    every = dict(sorted({**carried, **options}.items()))
    lines = [f'{name}="{value}"' for name, value in every.items()] if individual else []
    if combined:
        before = f"{environ[key]} " if environ.get(key) else ""
        lines.append(f'{key}="{before}{"".join(f" {value}" for value in every.values())}"')
    return "".join(f"{line}\n" for line in lines)


def read_entries(file: Path) -> dict[str, str]:
    """What a subnet.env says, word for word."""
    try:
        return dotenv(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise UsageError(f"{file}: {reason}: expected what flannel-udp run writes (-f names another file)") from None


def write_file(file: Path, text: str) -> None:
    """Write what Docker's unit reads."""
    try:
        file.write_text(text)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}: expected a file to write (-d names another)") from None


def check_routes(file: Path) -> None:
    """Raise LeaseError if the subnet is routed to another host, so that Docker's bridge could not have it."""
    subnet = read_subnet_env(file).subnet
    with Links() as links:
        for route in links.routes():
            if subnet and route.network == subnet and route.gateway:
                raise LeaseError(f"the routing table has this node's subnet elsewhere: {subnet} via {route.gateway}")
