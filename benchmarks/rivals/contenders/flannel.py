"""flannel's own udp backend: a node of its packages at either end, leases in a real etcd."""

import base64
import json
import tempfile
import urllib.request
from ipaddress import IPv4Network
from pathlib import Path

from benchmarks.rivals.contenders.base import Contender, peer_program, peer_version
from benchmarks.rivals.sample import wait_until


class Flannel(Contender):
    """The agent at either node is its own; etcd, on node 1, stands before and is not weighed."""

    version = f"{peer_version('flannel-node')}, {peer_version('etcd')}"
    mtu = 1472

    def prepare(self) -> None:
        self._agent, etcd = peer_program("flannel-node"), peer_program("etcd")
        self._folder = tempfile.TemporaryDirectory()
        folder, one = Path(self._folder.name), self.cable.one
        self._url, peer_url = f"http://{one.address}:2379", f"http://{one.address}:2380"
        with (folder / "etcd.log").open("w") as log:
            one.start(etcd, "--data-dir", f"{folder}/etcd", "--listen-client-urls", self._url,
                      "--advertise-client-urls", self._url, "--listen-peer-urls", peer_url,
                      "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}",
                      output=log)  # fmt: skip
        config = {"Network": f"{self.overlay}", "Backend": {"Type": "udp", "Port": 8285}}
        key, value = "/coreos.com/network/config", json.dumps(config)
        wait_until(lambda: one.call(_put, self._url, key, value), "etcd takes a key")

    def start(self) -> None:
        folder = Path(self._folder.name)
        for node in self.cable.nodes:
            with (folder / f"flannel{node.number}.log").open("w") as log:
                self.program(node, self._agent, "--etcd-endpoint", self._url, "--iface", f"{node.address}",
                             "--subnet-file", f"{folder}/{node.number}.env", errors=log)  # fmt: skip
        for node in self.cable.nodes:
            wait_until((folder / f"{node.number}.env").exists, f"flannel has a lease on {node.name}", pause=0.005)
        lines = (folder / "2.env").read_text().splitlines()
        subnet = next(line for line in lines if line.startswith("FLANNEL_SUBNET="))
        self.target = IPv4Network(subnet.partition("=")[2], strict=False)[0]

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
