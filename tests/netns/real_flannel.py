"""The real flannel on nodes of a test: built from its own packages, leases in a real etcd; called flanneld as it is."""

import http.client
import json
import shutil
import signal
import subprocess
from base64 import b64encode
from ipaddress import IPv4Network
from pathlib import Path

from flannel_udp.subnet_env import read_subnet_env

from ..conftest import require, wait_until
from .topology import UNDERLAY, Node, Place, Topology, join

BUILD = Path(__file__).parent.parent / "interop/peers/build"
KEEPER = UNDERLAY[200]
URL = f"http://{KEEPER}:2379"


def peer(name: str) -> str:
    """The path of a real peer's program, built on the first use."""
    built = BUILD.parents[3] / ".cache/peers/bin" / name
    require(built.exists() or shutil.which("go"), f"needs go to build {name}")
    return subprocess.run([BUILD, name], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


class Keeper(Place):
    """A host on the underlay with etcd."""

    def __init__(self, topology: Topology, root: Path) -> None:
        super().__init__("keeper")
        topology.others.append(self)
        join(self, "eth0", topology.underlay, "underlay", "keeper", 1500)
        self.ip(f"addr add {KEEPER}/24 dev eth0")
        with (root / "etcd.log").open("w") as log:
            self.start(peer("etcd"), "--data-dir", f"{root}/etcd", "--listen-client-urls", URL,
                       "--advertise-client-urls", URL, output=log)  # fmt: skip

    def configure(self, config: dict[str, object]) -> None:
        """Write the network configuration, as soon as etcd takes it."""
        key, value = (b64encode(text.encode()).decode() for text in ("/coreos.com/network/config", json.dumps(config)))
        body = json.dumps({"key": key, "value": value}).encode()
        wait_until(lambda: self.call(_put, body), "etcd takes a key")


def _put(body: bytes) -> bool:
    asked = http.client.HTTPConnection(str(KEEPER), 2379, timeout=5)
    try:
        asked.request("POST", "/v3/kv/put", body)
        return asked.getresponse().status == 200
    except OSError:
        return False
    finally:
        asked.close()


class Flanneld:
    """flannel on a node, with rules of its own; in dual stack without, for which it wants to know earlier subnets."""

    def __init__(self, node: Node, root: Path, *, dual: bool = False) -> None:
        self.node = node
        self.env = root / node.name / "subnet.env"
        self.env.parent.mkdir(exist_ok=True)
        program = root / "flanneld"
        if not program.exists():
            program.symlink_to(peer("flannel-node"))
        self._argv = [f"{program}", "--etcd-endpoint", URL, "--iface", node.interface, "--subnet-file",
                      f"{self.env}", *([] if dual else ["--ip-masq", "--iptables-forward-rules"])]
        self._log = root / node.name / "flanneld.log"
        self.start()

    def start(self) -> None:
        """Run, until it has a lease."""
        self.env.unlink(missing_ok=True)
        with self._log.open("a") as log:
            self.process = self.node.start(*self._argv, output=log)
        wait_until(self._has_lease, f"flannel on {self.node.name} has a lease: {self._log}")

    def _has_lease(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        return self.env.exists()

    def stop(self) -> None:
        """End it as systemd would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def subnet(self) -> IPv4Network:
        """Its own."""
        subnet = read_subnet_env(self.env).subnet
        assert subnet
        return subnet
