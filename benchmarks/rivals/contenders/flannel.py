"""flannel itself, by its udp or its vxlan backend: a node of its packages at either end, leases in a real etcd."""

import base64
import json
import tempfile
import urllib.request
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from benchmarks.rivals.contenders.base import BACKEND, FAMILY, Contender, peer_program, peer_version
from benchmarks.rivals.sample import Failed, wait_until


class Flannel(Contender):
    """The agent at either node is its own; etcd, on node 1, stands before and is not weighed.

    IPv6 is the second family of a dual stack: with IPv6 alone in etcd all of its nodes take one lease.
    """

    choices = BACKEND | FAMILY
    version = f"{peer_version('flannel-node')}, {peer_version('etcd')}"
    mtu = 1472

    def prepare(self) -> None:
        self._agent, etcd = peer_program("flannel-node"), peer_program("etcd")
        self._folder = tempfile.TemporaryDirectory()
        folder, one, port = Path(self._folder.name), self.cable.one, 2379 + 2 * self.place
        self._url, peer_url = f"http://{one.address}:{port}", f"http://{one.address}:{port + 1}"
        with (folder / "etcd.log").open("w") as log:
            one.start(etcd, "--data-dir", f"{folder}/etcd", "--listen-client-urls", self._url,
                      "--advertise-client-urls", self._url, "--listen-peer-urls", peer_url,
                      "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}",
                      output=log)  # fmt: skip
        key, value = "/coreos.com/network/config", json.dumps(self._config())
        wait_until(lambda: one.call(_put, self._url, key, value), "etcd takes a key")

    def _config(self) -> dict[str, Any]:
        backend = self.chosen("backend", "udp")
        if backend == "udp" and self.family == "6":
            raise Failed("flannel's udp backend has no IPv6")
        config: dict[str, Any] = {"Network": f"10.{50 + self.place}.0.0/16", "Backend": {"Type": backend, "Port": 8285}}
        if backend == "vxlan":
            # Of its own: devices of VXLAN on one port share a socket, and the contender vxlan is such a one.
            config["Backend"] = {"Type": backend, "VNI": 100 + self.place, "Port": 8672 + self.place}
        if self.family == "6":
            config |= {"EnableIPv6": True, "IPv6Network": f"{self.overlay}"}
        return config

    def start(self) -> None:
        folder = Path(self._folder.name)
        for node in self.cable.nodes:
            with (folder / f"flannel{node.number}.log").open("w") as log:
                self.program(node, self._agent, "--etcd-endpoint", self._url, "--iface", f"{node.address}",
                             "--subnet-file", f"{folder}/{node.number}.env", errors=log)  # fmt: skip
        for node in self.cable.nodes:
            wait_until((folder / f"{node.number}.env").exists, f"flannel has a lease on {node.name}", pause=0.005)
        told = dict(line.partition("=")[::2] for line in (folder / "2.env").read_text().splitlines())
        self.mtu = int(told["FLANNEL_MTU"])
        subnet = told["FLANNEL_SUBNET" if self.family == "4" else "FLANNEL_IPV6_SUBNET"]
        self.target = ip_network(subnet, strict=False)[0]

    def close(self) -> None:
        super().close()
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _put(url: str, key: str, value: str) -> bool:
    """Put a key by etcd's HTTP gateway; False while it does not answer."""
    body = {name: base64.b64encode(text.encode()).decode() for name, text in (("key", key), ("value", value))}
    request = urllib.request.Request(f"{url}/v3/kv/put", json.dumps(body).encode())  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
