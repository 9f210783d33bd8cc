"""Clusters of nodes of flannel's own packages and of ours: one overlay, leases in a real etcd.

     node1 flannel   node3 ours          node2 flannel   node4 ours        node5 etcd, on the first link
          └───────┬───────┘                   └───────┬───────┘
              underlay ───────── router ───────────  far                  `far`: else all are on the underlay
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from ipaddress import IPv4Network, IPv6Network
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from flannel_udp.subnet_env import read_subnet_env

from ..conftest import require, require_commands, require_tun, wait_until
from ..netns.node_daemon import Daemon
from ..netns.topology import UNDERLAY, UNDERLAY6, Node, Place, Pod, Topology, join
from .etcd_cluster import memory
from .etcd_host import PREFIX, Store

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping

Network: TypeAlias = IPv4Network | IPv6Network

_BUILD = Path(__file__).parent / "peers" / "build"
_CACHED = _BUILD.parents[3] / ".cache" / "peers" / "bin" / "flannel-node"
FAR = IPv4Network("198.51.100.0/24")
FAR6 = IPv6Network("2001:db8:0:1::/64")
FAR_MTU = 1400
"""Of the router's way to either link: outer packets of 1500 bytes arrive in fragments."""

CHOICES = ("--device", "tap", "--source-ports", "0", "--source-check", "strict")
"""Of our second node: what a node chooses for itself is no matter of its peers."""


class Agent(Protocol):
    """A node of either sort."""

    node: Node
    home: Path

    def log(self) -> str: ...
    def subnet(self) -> IPv4Network: ...
    def end(self, number: signal.Signals) -> int: ...


class Theirs:
    """flannel's agent on a node."""

    def __init__(self, node: Node, root: Path, store: Store) -> None:
        self.node = node
        self.home = root / f"flannel-{node.name}"
        self.home.mkdir(exist_ok=True)
        (self.home / "subnet.env").unlink(missing_ok=True)
        done = subprocess.run([_BUILD, "flannel-node"], stdout=subprocess.PIPE, text=True, check=True, timeout=600)
        with (self.home / "log").open("a") as log:
            self.process = node.start(done.stdout.strip(), "--etcd-endpoint", store.url, "--iface",
                                      f"{node.address}", "--subnet-file", f"{self.home}/subnet.env", output=log)
        wait_until(self._ready, "flannel has a lease")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return (self.home / "subnet.env").exists()

    def log(self) -> str:
        return (self.home / "log").read_text()

    def subnet(self) -> IPv4Network:
        subnet = read_subnet_env(self.home / "subnet.env").subnet
        assert subnet
        return subnet

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


class Mixed:
    """Two nodes of either sort; `config` is flannel's network configuration, or the store's own."""

    def __init__(self, topology: Topology, root: Path, store: Store, config: Mapping[str, Any] | None = None,
                 end: int = 0) -> None:
        self.topology, self.root, self.store = topology, root, store
        self.end = end
        """Which address of a subnet stands for its node: the tunnel's, or 1, the bridge's, where there is no tunnel."""
        store.start()
        if config:
            store.put(f"{PREFIX}/config", json.dumps(config).encode())
        one, two, three, four, _ = topology.nodes
        self.agents: list[Agent] = [self.theirs(one), self.ours(three), self.theirs(two),
                                    self.ours_otherwise(four)]

    def theirs(self, node: Node) -> Theirs:
        return Theirs(node, self.root, self.store)

    def ours(self, node: Node, *options: str) -> Daemon:
        daemon = Daemon(node, self.root, "", "", "--etcd-endpoints", self.store.url, "--iface", "eth0", *options)
        wait_until(daemon.ready, "it has a lease")
        return daemon

    def ours_otherwise(self, node: Node) -> Daemon:
        return self.ours(node, *CHOICES)

    def key(self, agent: Agent) -> str:
        return f"{PREFIX}/subnets/" + "&".join(f"{subnet}".replace("/", "-") for subnet in subnets(agent))

    def lease(self, agent: Agent) -> dict[str, Any]:
        """What stands in etcd under an agent's key."""
        return self.store.stored(self.key(agent))[self.key(agent)]

    def await_all(self) -> None:
        """Wait until each reaches each, by both families if there are two."""
        for one, two in permutations(self.agents, 2):
            wait_until(lambda one=one, two=two: self.reaches(one, two),  # type: ignore[misc]
                       f"{one.node.name} reaches {two.node.name}\n{one.log()}\n{two.log()}")

    def reaches(self, one: Agent, two: Agent) -> bool:
        return all(
            one.node.run("ping", "-n", "-c", "1", "-W", "1", "-I", f"{source[self.end]}", f"{target[self.end]}",
                         check=False).returncode == 0
            for source, target in zip(subnets(one), subnets(two), strict=True))

    def revoke(self, agent: Agent) -> None:
        """Take its lease away, as etcd does when nobody renews it."""
        self.store.call("kv/lease/revoke", ID=self.lease(agent)["lease"])


def subnets(agent: Agent) -> list[Network]:
    """Those of its lease: IPv4, IPv6 or both."""
    env = read_subnet_env(agent.home / "subnet.env")
    found = [subnet for subnet in (env.subnet, env.ipv6_subnet) if subnet]
    assert found, agent.log()
    return found


def add_pod(agent: Agent, mtu: int) -> tuple[Pod, list[Any]]:
    """A pod on the node, and its address in each of the node's subnets."""
    first, *more = subnets(agent)
    pod = agent.node.add_pod(first, mtu)
    addresses = [pod.address]
    for subnet in more:
        agent.node.ip(f"addr add {subnet[1]}/{subnet.prefixlen} dev cni0")
        pod.ip(f"addr add {subnet[2]}/{subnet.prefixlen} dev eth0", f"route add default via {subnet[1]}")
        addresses.append(subnet[2])
    return pod, addresses


def move_behind_router(topology: Topology, *nodes: Node) -> None:
    """Put these nodes on a second link, with a router between, whose way is narrower than either link, for IPv4.

    Of IPv6 flannel's kernel loses every packet that fits its tunnel and not such a way: narrow_ipv6() is for what can
    be had all the same.
    """
    router = Place("router")
    topology.others.append(router)
    topology.underlay.ip("link add far type bridge", "link set far up")
    links = (("eth0", "underlay", "router", UNDERLAY, UNDERLAY6), ("eth1", "far", "router-far", FAR, FAR6))
    for interface, bridge, port, network, network6 in links:
        join(router, interface, topology.underlay, bridge, port, 1500)
        router.ip(f"addr add {network[254]}/24 dev {interface}", f"addr add {network6[254]}/64 dev {interface}",
                  f"route replace {network} dev {interface} mtu lock {FAR_MTU}")
    for node in topology.nodes:
        network, network6 = (FAR, FAR6) if node in nodes else (UNDERLAY, UNDERLAY6)
        if node in nodes:
            topology.underlay.ip(f"link set {node.name} master far")
            node.address, node.address6 = network[node.number], network6[node.number]
            node.ip("addr flush dev eth0 scope global", f"addr add {node.address}/24 dev eth0",
                    f"addr add {node.address6}/64 dev eth0", f"route add default via {network[254]}")
        node.ip(f"route add default via {network6[254]}")


def narrow_ipv6(router: Place) -> None:
    """Have the router's way be as narrow for IPv6."""
    for interface, network in (("eth0", UNDERLAY6), ("eth1", FAR6)):
        router.ip(f"route replace {network} dev {interface} metric 256 mtu {FAR_MTU}")


@contextlib.contextmanager
def mixed_cluster(root: Path, config: Mapping[str, Any] | None = None, *, far: bool = False,
                  end: int = 0) -> Iterator[Mixed]:
    """A cluster, taken down at the end."""
    require_commands("ip", "ping", "setpriv")
    require_tun()
    require(_CACHED.exists() or shutil.which("go"), "needs go (1.26) to build flannel's node and etcd 3.7")
    with contextlib.ExitStack() as closing:
        topology = Topology(5)
        closing.callback(topology.close)
        if far:
            move_behind_router(topology, topology.nodes[1], topology.nodes[3])
        store = Store(topology.nodes[-1], closing.enter_context(memory()), 1)
        closing.callback(store.kill)
        yield Mixed(topology, root, store, config, end)
