"""The daemon as a process on a node of a topology."""

import signal
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from flannel_udp import control
from flannel_udp.errors import ControlError
from flannel_udp.subnet_env import read_subnet_env

from .topology import Node


class Daemon:
    """`flannel-udp run` on a node; its log goes to a file."""

    def __init__(self, node: Node, root: Path, registry: str = "", name: str = "", *options: str) -> None:
        self.node = node
        self.home = root / (name or node.name)
        self.home.mkdir(exist_ok=True)
        self.argv = ["-m", "flannel_udp.cli", "run", *flags(self.home, registry), *options]
        self.start()

    def start(self) -> None:
        with (self.home / "log").open("a") as log:
            self.process = self.node.start(sys.executable, *self.argv, output=log)

    def log(self) -> str:
        return (self.home / "log").read_text()

    def status(self) -> dict[str, Any]:
        return control.ask(control.socket_path(self.home / "run"), {"command": "status"})

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return bool(self.status())
        except ControlError:
            return False

    def subnet(self) -> IPv4Network:
        subnet = read_subnet_env(self.home / "subnet.env").subnet
        assert subnet
        return subnet

    def ipv6_subnet(self) -> IPv6Network:
        subnet = read_subnet_env(self.home / "subnet.env").ipv6_subnet
        assert subnet
        return subnet

    def law_holds(self) -> bool:
        """Whether packets in are the sum of outcomes, each way; true once no packet is on its way."""
        return all(direction["packets"] == sum(outcome["count"] for outcome in direction["outcomes"].values())
                   for direction in self.status()["counters"].values())

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def left(self) -> set[str]:
        return {str(file.relative_to(self.home)) for file in self.home.rglob("*") if not file.is_dir()} - {"log"}


def flags(home: Path, registry: str) -> list[str]:
    places = ["--run-dir", f"{home}/run", "--state-dir", f"{home}/state", "--subnet-file", f"{home}/subnet.env"]
    return ["--registry", registry, *places] if registry else places
