"""Nodes whose pods are plugged in by CNI plugins, as a runtime calls them: by cnitool, or by the very variables.

    Daemon ── subnet.env ──> flannel (ours, or flannel's) ──> bridge ──> host-local      or of Debian
                                  │ records                             │ networks
    all of a node's files lie in its folder; /var/lib, where cnitool keeps results, is that folder to it
"""

from __future__ import annotations

import contextlib
import json
import os
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from flannel_udp.cni.install import PLUGIN, install_plugin
from flannel_udp.registry import open_registry

from ..conftest import require_commands, require_namespaces, require_tun, wait_until
from ..netns.node_daemon import Daemon
from ..netns.real_flannel import peer
from ..netns.topology import UNDERLAY6, Place, Topology

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

Ports = list[dict[str, object]]

NETWORK = "pods"
DUAL_STACK = {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
_AS_VAR_LIB = 'mount --bind "$0" /var/lib && exec "$@"'


@contextlib.contextmanager
def ready_daemons(root: Path, config: dict[str, object], count: int, *options: str) -> Iterator[list[Daemon]]:
    """Nodes whose daemons are ready and know each other, for tests that plug pods in."""
    require_commands("ip", "ping", "setpriv", "unshare")
    require_commands("iptables", package="iptables")
    require_namespaces()
    require_tun()
    registry = f"sqlite://{root}/registry.db"
    with contextlib.closing(open_registry(registry)) as opened:
        opened.write_config(json.dumps(config))
    with contextlib.closing(Topology(count)) as topology:
        for node in topology.nodes:
            node.ip(f"route add default via {UNDERLAY6[254]} dev eth0")
        daemons = [Daemon(node, root, registry, "", *options) for node in topology.nodes]
        rows = (count - 1) * (2 if config.get("EnableIPv6") else 1)
        for daemon in daemons:
            wait_until(daemon.ready, "it is ready")
        for daemon in daemons:
            wait_until(lambda daemon=daemon: len(daemon.status()["peers"]) == rows, "it has its peers")  # type: ignore[misc]
        yield daemons


class CniNode:
    """A node with a daemon, and what a runtime has there: a network's configuration, plugins, pods."""

    def __init__(self, daemon: Daemon, delegates: Path, version: str) -> None:
        self.node = daemon.node
        self.folder = daemon.home / f"cni-{version}-{delegates.name}"
        self.records = self.folder / "records"
        self.networks = self.folder / "networks"
        self.pods: list[Place] = []
        self.plugin = self.folder / "bin" / PLUGIN
        install_plugin(self.plugin.parent)
        (self.folder / "lib").mkdir(parents=True, exist_ok=True)
        self.path = f"{self.plugin.parent}:{delegates}"
        self.version = version
        self.network: dict[str, Any] = {
            "type": "flannel", "subnetFile": f"{daemon.home}/subnet.env", "dataDir": str(self.records),
            "controlSocket": f"{daemon.home}/run/control.sock",
            "delegate": {"isDefaultGateway": True, "hairpinMode": True}, "ipam": {"dataDir": str(self.networks)},
        }  # fmt: skip
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        conflist = {"cniVersion": version, "name": NETWORK, "plugins": [self.network, portmap]}
        (self.folder / "pods.conflist").write_text(json.dumps(conflist))

    def add_pod(self) -> Place:
        """A pod that is not plugged in."""
        pod = Place(f"{self.node.name}-pod{len(self.pods)}")
        self.pods.append(pod)
        return pod

    def cnitool(self, verb: str, pod: Place, ports: Ports | None = None) -> subprocess.CompletedProcess[str]:
        """Have cnitool call all plugins of the network."""
        environment = {"NETCONFPATH": str(self.folder), "CNI_PATH": self.path, "PATH": os.environ["PATH"],
                       "CAP_ARGS": json.dumps({"portMappings": ports}) if ports else ""}  # fmt: skip
        words = [f"{name}={value}" for name, value in environment.items()]
        return self.node.run("env", "-i", *words, "unshare", "--mount", "sh", "-c", _AS_VAR_LIB, f"{self.folder}/lib",
                             peer("cnitool"), verb, NETWORK, pod.path, check=False)  # fmt: skip

    def add(self, pod: Place, ports: Ports | None = None) -> dict[str, Any]:
        """Plug a pod in by cnitool; the result."""
        done = self.cnitool("add", pod, ports)
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def call(self, verb: str, pod: Place, plugin: Path, container: str) -> subprocess.CompletedProcess[str]:
        """Call one plugin, ours or flannel's."""
        said = json.dumps({**self.network, "cniVersion": self.version, "name": NETWORK})
        words = [f"CNI_COMMAND={verb}", f"CNI_CONTAINERID={container}", f"CNI_NETNS={pod.path}", "CNI_IFNAME=eth0",
                 f"CNI_PATH={self.path}", f"PATH={os.environ['PATH']}"]  # fmt: skip
        return self.node.run("env", "-i", *words, f"{plugin}", text=said, check=False)

    def reserved(self) -> set[str]:
        """The addresses that host-local holds."""
        store = self.networks / NETWORK
        return {path.name for path in store.glob("*[.:]*") if not path.name.startswith("last_")}

    def kept(self) -> set[str]:
        """The records."""
        return {path.name for path in self.records.iterdir()} - {".lock"} if self.records.exists() else set()

    def links(self) -> set[str]:
        """What hangs on the bridge."""
        shown = json.loads(self.node.run("ip", "-j", "link", "show", "master", "cni0").stdout or "[]")
        return {link["ifname"] for link in shown if link}

    def close(self) -> None:
        """Let go of the pods, and of the bridge."""
        for pod in self.pods:
            pod.close()
        self.node.run("ip", "link", "delete", "cni0", check=False)


def addresses(result: dict[str, Any]) -> list[str]:
    """The addresses of a result, without prefix lengths."""
    return [str(ip_interface(ip["address"]).ip) for ip in result["ips"]]


def held(pod: Place) -> set[str]:
    """The addresses of eth0 by the kernel's word."""
    shown = json.loads(pod.run("ip", "-j", "address", "show", "eth0").stdout)
    return {f"{one['local']}/{one['prefixlen']}" for one in shown[0]["addr_info"] if one["scope"] == "global"}
