"""Nodes as network namespaces for tests: real links, real kernels' stacks, nothing left behind.

                       underlay (a namespace of its own)
              ┌──────────── bridge "underlay" ────────────┐
              │ veth                                      │ veth
     eth0 192.0.2.1/24                           eth0 192.0.2.2/24
          2001:db8::1/64                              2001:db8::2/64
     ┌────────┴────────┐                         ┌────────┴────────┐
     │      node1      │                         │      node2      │        forwarding on, no firewall
     │  cni0 x.y.1.1/24│                         │  cni0 x.y.2.1/24│        add_pod(): bridge, pod
     └────────┬────────┘                         └────────┬────────┘
     eth0 x.y.1.2/24: pod                        eth0 x.y.2.2/24: pod

The namespaces live by descriptors of the pytest process and the started programs die with it, so even a killed test run
leaves nothing. `ip` builds the links, so that the project's own netlink code does not test itself.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import IO, Any, ParamSpec, TypeVar

from flannel_udp.lab import namespace

UNDERLAY = IPv4Network("192.0.2.0/24")
UNDERLAY6 = IPv6Network("2001:db8::/64")
COMMAND_DEADLINE = 30.0

P = ParamSpec("P")
R = TypeVar("R")


class Place:
    """A network namespace that programs and functions can be run in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[str]] = []
        with namespace.created("net") as self.namespaces:
            namespace.write_sysctl("net/ipv4/ip_forward", 1)
            namespace.write_sysctl("net/ipv6/conf/all/forwarding", 1)
            namespace.write_sysctl("net/ipv6/conf/default/accept_dad", 0)  # addresses are usable at once
        self.ip("link set lo up")

    @property
    def path(self) -> str:
        """A file name of the namespace, for programs, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.namespaces.descriptors['net']}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread inside for the block; sockets and processes made there stay inside."""
        with namespace.inside(self.namespaces):
            yield

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function inside, in a thread of its own, and return what it returns."""

        def within() -> R:
            with self.entered():
                return function(*args, **kwargs)

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(within).result()

    def run(
        self, *argv: str, check: bool = True, text: str | None = None, deadline: float = COMMAND_DEADLINE
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; its output comes back as text. `check`: fail and show it if not 0."""
        with self.entered():
            done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=deadline, check=False)
        if check:
            assert done.returncode == 0, f"{self.name}: {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *argv: str, output: int | IO[Any] | None = None) -> subprocess.Popen[str]:
        """Start a program inside, both outputs to `output`; killed with the topology or the calling thread."""
        with self.entered():
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv], stdout=output, stderr=subprocess.STDOUT, text=True
            )
        self._processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """Run commands of `ip`, without the word itself: ip("link add ...", "addr add ...")."""
        self.run("ip", "-batch", "-", text="\n".join(commands))

    def ping(self, destination: object, *options: str, count: int = 1) -> subprocess.CompletedProcess[str]:
        """Ping from inside; the exit status says whether answers came."""
        interval = ["-i", "0.2"] if count > 1 else []
        return self.run("ping", "-n", "-c", f"{count}", *interval, "-W", "5", *options, f"{destination}", check=False)

    def close(self) -> None:
        """Kill what was started and let go of the namespace."""
        for process in self._processes:
            process.kill()
            with process:  # closes its pipes, and waits
                pass
        self.namespaces.close()


class Pod(Place):
    """A container's network namespace on a node's bridge."""

    def __init__(self, name: str, address: IPv4Address | IPv6Address) -> None:
        super().__init__(name)
        self.address = address
        self.address6: IPv6Address | None = None
        """Beside an IPv4 one."""


class Node(Place):
    """A node: `eth0` with `address` and `address6` on the underlay, forwarding switched on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"node{number}")
        self.number = number
        self.interface = "eth0"
        self.address = UNDERLAY[number]
        self.address6 = UNDERLAY6[number]
        self.pods: list[Pod] = []

    def add_pod(self, subnet: IPv4Network | IPv6Network, mtu: int = 1472) -> Pod:
        """Put a pod into the node's `subnet`, on the bridge cni0, which has the subnet's first address."""
        if not self.pods:
            address = f"{subnet[1]}/{subnet.prefixlen}"
            self.ip("link add cni0 type bridge", "link set cni0 up", f"addr add {address} dev cni0")
        pod = Pod(f"{self.name}-pod{len(self.pods)}", subnet[2 + len(self.pods)])
        self.pods.append(pod)
        join(pod, "eth0", self, "cni0", f"pod{len(self.pods)}", mtu)
        pod.ip(f"addr add {pod.address}/{subnet.prefixlen} dev eth0", f"route add default via {subnet[1]}")
        return pod

    def add_dual_pod(self, subnet: IPv4Network, ipv6_subnet: IPv6Network, mtu: int = 1452) -> Pod:
        """The same with an address of each family."""
        pod = self.add_pod(subnet, mtu)
        if len(self.pods) == 1:
            self.ip(f"addr add {ipv6_subnet[1]}/{ipv6_subnet.prefixlen} dev cni0")
        pod.address6 = ipv6_subnet[1 + len(self.pods)]
        pod.ip(f"addr add {pod.address6}/{ipv6_subnet.prefixlen} dev eth0 nodad",
               f"route add default via {ipv6_subnet[1]}")
        return pod

    def close(self) -> None:
        """Take the pods down, too."""
        for pod in self.pods:
            pod.close()
        super().close()


def join(place: Place, interface: str, other: Place, bridge: str, port: str, mtu: int) -> None:
    """Lay a veth cable from `interface` in `place` to `port` of the bridge in `other`; both ends are up."""
    other.ip(
        f"link add {port} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {place.path}",
        f"link set {port} master {bridge} up",
    )
    place.ip(f"link set {interface} up")


class Topology:
    """Nodes `node1` .. `nodeN` on one underlay bridge; see the drawing above."""

    def __init__(self, nodes: int, mtu: int = 1500) -> None:
        self.nodes: list[Node] = []
        self.others: list[Place] = []
        """Further places that close with it."""
        self.underlay = Place("underlay")
        self.underlay.ip("link add underlay type bridge", "link set underlay up")
        for number in range(1, nodes + 1):
            self._add(Node(number), mtu)

    def _add(self, node: Node, mtu: int) -> None:
        self.nodes.append(node)
        join(node, node.interface, self.underlay, "underlay", node.name, mtu)
        node.ip(
            f"addr add {node.address}/{UNDERLAY.prefixlen} dev {node.interface}",
            f"addr add {node.address6}/{UNDERLAY6.prefixlen} dev {node.interface} nodad",
            f"route add default via {UNDERLAY[254]}",
        )

    def close(self) -> None:
        """Kill what was started, let go of all namespaces."""
        for place in (*self.nodes, *self.others, self.underlay):
            place.close()
