"""What is compared. All stand between the same two nodes for the whole run; the one that is measured gets the traffic.

Each has `name`, `target` (an address of node 2 whose packets go through it) and `counters()` (of its own, by node;
empty where there are none). A name may carry settings: `flannel_udp:threads=1+busy-poll=50`.
"""

import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from benchmarks.rivals.places import INTERFACE, Cable
from tests.netns.topology import Node

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 20.0


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait for a condition; TimeoutError names `what` if it does not come."""
    end = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.05)


class Contender:
    """Bare veth, and the base of the others."""

    def __init__(self, name: str, cable: Cable, place: int) -> None:
        self.name = name
        self.cable = cable
        self.overlay = IPv4Network(f"10.{50 + place}.0.0/16")
        self.subnets = list(self.overlay.subnets(new_prefix=24))
        self.settings = name.partition(":")[2]
        self.place = place
        self.target: IPv4Address = cable.two.address
        self.start()

    def start(self) -> None:
        """Set it up on both nodes."""

    def counters(self) -> dict[str, Any]:
        """Return what it counted since its start."""
        return {}

    def close(self) -> None:
        """Stop it; what only lives in the nodes goes with them."""


class KernelVxlan(Contender):
    """The kernel's VXLAN device, set up as flannel's vxlan backend does it."""

    def start(self) -> None:
        macs = {node.number: f"02:00:00:00:00:{node.number:02x}" for node in self.cable.nodes}
        for node, other in zip(self.cable.nodes, reversed(self.cable.nodes), strict=True):
            own, peer = self.subnets[node.number], self.subnets[other.number]
            node.ip(
                f"link add flannel.1 address {macs[node.number]} type vxlan id 1 local {node.address} dev {INTERFACE}"
                " dstport 8472 nolearning udpcsum",
                f"addr add {own[0]}/32 dev flannel.1",
                "link set flannel.1 up",
                f"neigh add {peer[0]} lladdr {macs[other.number]} dev flannel.1 nud permanent",
                f"route add {peer} via {peer[0]} dev flannel.1 onlink",
            )
            node.run("bridge", "fdb", "append", macs[other.number], "dev", "flannel.1", "dst", f"{other.address}")
        self.target = self.subnets[2][0]


class FlannelUdp(Contender):
    """The real flannel's udp backend: a node of its packages at either end, leases in a real etcd."""

    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        one = self.cable.one
        url = f"http://{one.address}:2379"
        peer_url = f"http://{one.address}:2380"
        with (folder / "etcd.log").open("w") as log:
            one.start(program("etcd"), "--data-dir", f"{folder}/etcd", "--listen-client-urls", url,
                      "--advertise-client-urls", url, "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls",
                      peer_url, "--initial-cluster", f"default={peer_url}", output=log)  # fmt: skip
        config = {"Network": f"{self.overlay}", "Backend": {"Type": "udp", "Port": 8285}}
        wait_until(lambda: one.call(_put, url, "/coreos.com/network/config", json.dumps(config)), "etcd takes a key")
        for node in self.cable.nodes:
            env = folder / f"subnet{node.number}.env"
            with (folder / f"flannel{node.number}.log").open("w") as log:
                node.start(program("flannel-node"), "--etcd-endpoint", url, "--iface", f"{node.address}",
                           "--subnet-file", f"{env}", output=log)  # fmt: skip
            wait_until(env.exists, f"flannel on {node.name} has a lease: {log.name}")
        subnet = next(line for line in env.read_text().splitlines() if line.startswith("FLANNEL_SUBNET="))
        self.target = IPv4Network(subnet.partition("=")[2], strict=False)[0]

    def close(self) -> None:
        self._folder.cleanup()


class Ours(Contender):
    """The data plane of flannel_udp with the udp backend's record; settings are options of benchmarks/path/node.py."""

    def start(self) -> None:
        settings = [f"--{setting}" for setting in self.settings.split("+") if setting]
        self._nodes = [self._node(node, other, settings) for node, other in
                       zip(self.cable.nodes, reversed(self.cable.nodes), strict=True)]  # fmt: skip
        for process in self._nodes:
            assert process.stdout
            assert process.stdout.readline(), f"{self.name} did not start"
        self.target = self.subnets[2][0]

    def _node(self, node: Node, other: Node, settings: list[str]) -> subprocess.Popen[str]:
        with node.entered():
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "benchmarks.path.node",
                 "--address", f"{node.address}", "--peer", f"{other.address}", "--number", f"{node.number}",
                 "--overlay", f"{self.overlay}", "--port", f"{8290 + self.place}", *settings],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip

    def counters(self) -> dict[str, Any]:
        told = {}
        for node, process in zip(self.cable.nodes, self._nodes, strict=True):
            assert process.stdin
            assert process.stdout
            print(file=process.stdin, flush=True)
            told[node.name] = json.loads(process.stdout.readline())
        return told

    def close(self) -> None:
        for process in self._nodes:
            with process:  # closes its input, which ends it, and waits
                pass


KINDS: dict[str, type[Contender]] = {
    "veth": Contender, "vxlan": KernelVxlan, "flannel": FlannelUdp, "flannel_udp": Ours,
}  # fmt: skip


def make(name: str, cable: Cable, place: int) -> Contender:
    """Set up a contender and wait until packets pass."""
    made = KINDS[name.partition(":")[0]](name, cable, place)
    wait_until(lambda: cable.one.ping(made.target).returncode == 0, f"{name}: a ping to {made.target}")
    return made


def program(name: str) -> str:
    """Build a real peer, if it is not built yet; return its path."""
    done = subprocess.run([ROOT / "tests/interop/peers/build", name], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


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
