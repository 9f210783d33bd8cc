"""flannel_udp: its data plane alone, whose settings can be tried against each other, and the whole daemon."""

import argparse
import json
import subprocess
import sys
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from benchmarks.path import node as path_node
from benchmarks.rivals.contenders.base import Contender, ask
from benchmarks.rivals.sample import Failed, wait_until
from tests.netns.topology import Node


def _flags(settings: str, *left_out: str) -> list[str]:
    """Return settings as options, but for those of some names."""
    return [f"--{setting}" for setting in settings.split("+") if setting and setting.partition("=")[0] not in left_out]


class Ours(Contender):
    """The data plane with a backend's record, udp's if none is named; settings are options of path/node.py."""

    version = "this one"
    mtu = 1472

    @classmethod
    def check(cls, settings: str) -> None:
        places = ["--address", "192.0.2.1", "--peer", "192.0.2.2", "--number", "1", "--overlay", "10.0.0.0/16"]
        try:
            _, unknown = path_node.parser(exit_on_error=False).parse_known_args([*places, *_flags(settings)])
        except argparse.ArgumentError as error:
            raise ValueError(f"contender setting {settings!r}: {error}") from error
        if unknown:
            raise ValueError(f"contender setting {unknown[0].lstrip('-')!r}: no option of benchmarks/path/node.py")

    def start(self) -> None:
        pairs = zip(self.cable.nodes, reversed(self.cable.nodes), strict=True)
        for process in [self._node(node, other) for node, other in pairs]:
            self._told: dict[str, Any] = json.loads(ask(process))
        self.mtu = self._told["mtu"]
        self.target = self.subnets[2][0]

    def _node(self, node: Node, other: Node) -> subprocess.Popen[str]:
        return self.program(
            node, sys.executable, "-m", "benchmarks.path.node", "--address", f"{self.underlay(node)}",
            "--peer", f"{self.underlay(other)}", "--number", f"{node.number}", "--overlay", f"{self.overlay}",
            "--port", f"{8290 + self.place}", *_flags(self.settings),
        )  # fmt: skip

    def told(self) -> dict[str, Any]:
        told = dict(self._told)
        if told.pop("no_offload"):
            return told | {"TUN offloads, UDP_SEGMENT, UDP_GRO": "off"}
        # A refusal would have ended node.py at its start.
        given_up = {name for counted in self.counters().values() for name in counted["given_up"]}
        return told | {"TUN offloads, UDP_SEGMENT, UDP_GRO": "granted", "given up since": sorted(given_up) or "nothing"}

    def counters(self) -> dict[str, Any]:
        pairs = zip(self.cable.nodes, self.processes, strict=True)
        return {node.name: json.loads(ask(process, "\n")) for node, process in pairs}

    def close(self) -> None:
        for process in self.processes:
            with process:  # closes its input, which ends it, and waits
                pass


class Daemon(Contender):
    """`flannel-udp run` as an operator starts it, on a registry in a file; its device cannot stand beside flannel's.

    Settings are flags of `flannel-udp run`, which are its own to check, and `backend` and `family`, which the network's
    configuration tells it.
    """

    version = "this one"
    mtu = 1472

    @classmethod
    def check(cls, settings: str) -> None:
        del settings

    def prepare(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        config = self._config()
        self._registry = f"--registry=sqlite://{self._folder.name}/registry.db"
        self._command = str(Path(sys.executable).with_name("flannel-udp"))
        setting = [self._command, "config", "set", self._registry, json.dumps(config)]
        done = subprocess.run(setting, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(done.stderr)

    def _config(self) -> dict[str, Any]:
        backend = {"Type": self.chosen("backend", "udp"), "Port": 8290 + self.place}
        if self.family == "4":
            return {"Network": f"{self.overlay}", "Backend": backend}
        return {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": f"{self.overlay}", "Backend": backend}

    def start(self) -> None:
        folder = Path(self._folder.name)
        for node in self.cable.nodes:
            place = folder / f"{node.number}"
            with (folder / f"{node.number}.log").open("w") as log:
                self.program(node, self._command, "run", self._registry, "--iface", f"{self.underlay(node)}",
                             "--state-dir", f"{place}/state", "--run-dir", f"{place}/run",
                             "--subnet-file", f"{place}/subnet.env", *_flags(self.settings, "backend", "family"),
                             errors=log)  # fmt: skip
        for node in self.cable.nodes:
            wait_until((folder / f"{node.number}/subnet.env").exists, f"the daemon is ready on {node.name}", 0.005)
        told = dict(line.partition("=")[::2] for line in (folder / "2/subnet.env").read_text().splitlines())
        self.mtu = int(told["FLANNEL_MTU"])
        subnet = told["FLANNEL_SUBNET" if self.family == "4" else "FLANNEL_IPV6_SUBNET"]
        self.target = ip_network(subnet, strict=False)[0]

    def close(self) -> None:
        for process in self.processes:
            process.terminate()  # a clean end gives the lease back
        super().close()
        if hasattr(self, "_folder"):
            self._folder.cleanup()
