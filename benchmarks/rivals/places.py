"""Two nodes as network namespaces, a veth cable between them, and what its two ends can do.

    node 1: eth0 192.0.2.1/24 ════ veth ════ eth0 192.0.2.2/24 :node 2
                 2001:db8::1/64                   2001:db8::2/64
"""

import os
import time
from pathlib import Path

from benchmarks.rivals import offloads
from tests.netns.topology import Node

INTERFACE = "eth0"
# The kernel cuts late, in software: what every stack does in front of a plain card.
SOFTWARE = "tx-generic-segmentation"
MODES = {
    "all": "all offloads of the veth, as it comes",
    "no-tunnel": "no segmentation of tunnels (tx-udp_tnl-*): a card that cuts UDP and TCP, but not inside VXLAN",
    "none": "no segmentation at all (tx-*-segmentation off), receiving with GRO: a card that only carries frames",
}


class Cable:
    """The two nodes and the link between them."""

    def __init__(self) -> None:
        self.one, self.two = self.nodes = Node(1), Node(2)
        self.one.ip(f"link add {INTERFACE} type veth peer name {INTERFACE} netns {self.two.path}")
        for node in self.nodes:
            node.ip(
                f"addr add {node.address}/24 dev {INTERFACE}",
                f"addr add {node.address6}/64 dev {INTERFACE} nodad",
                f"link set {INTERFACE} up",
                "route add default dev eth0",
            )
        self._default = dict.fromkeys(self.one.call(offloads.active, INTERFACE), True)
        self._known = self.one.call(offloads.names, INTERFACE)

    def set_mode(self, mode: str) -> list[str]:
        """Switch both ends to a mode of MODES; return the segmentation offloads that are on then."""
        cuts = [name for name in self._known if name.startswith("tx-") and name.endswith("-segmentation")]
        cuts.remove(SOFTWARE)
        wanted = {name: self._default.get(name, False) for name in (*cuts, "rx-gro")}
        if mode == "no-tunnel":
            wanted.update(dict.fromkeys(offloads.TUNNEL, False))
        elif mode == "none":
            wanted.update(dict.fromkeys(cuts, False) | {"rx-gro": True})
        for node in self.nodes:
            node.call(offloads.change, INTERFACE, wanted)
        time.sleep(0.1)
        return [name for name in self.one.call(offloads.active, INTERFACE) if name in wanted]

    def close(self) -> None:
        """Kill what runs in the nodes, and let go of them."""
        for node in self.nodes:
            node.close()


def cpu_seconds() -> tuple[float, float]:
    """Return (seconds that all processors worked, seconds that the host took from them) since boot."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, steal = (
        int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq) / tick, steal / tick
