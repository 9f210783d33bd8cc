"""The kernel's VXLAN device, set up as flannel's vxlan backend does it: no learning, all entries permanent."""

from benchmarks.rivals.contenders.base import FAMILY, Contender
from benchmarks.rivals.places import INTERFACE

PORT = 8572


class KernelVxlan(Contender):
    """VXLAN without any program; port and identifier are others than those of flannel's node beside it."""

    choices = FAMILY
    mtu = 1450

    def start(self) -> None:
        device, single = f"vxlan{self.place}", 32 if self.family == "4" else 128
        self.mtu = 1450 if self.family == "4" else 1430
        macs = {node.number: f"02:00:00:00:00:{node.number:02x}" for node in self.cable.nodes}
        for node, other in zip(self.cable.nodes, reversed(self.cable.nodes), strict=True):
            own, peer = self.subnets[node.number], self.subnets[other.number]
            node.ip(
                f"link add {device} address {macs[node.number]} type vxlan id {PORT + self.place}"
                f" local {self.underlay(node)} dev {INTERFACE} dstport {PORT + self.place} nolearning udpcsum",
                f"addr add {own[0]}/{single} dev {device}",
                f"link set {device} up",
                f"neigh add {peer[0]} lladdr {macs[other.number]} dev {device} nud permanent",
                f"route add {peer} via {peer[0]} dev {device} onlink",
            )
            node.run("bridge", "fdb", "append", macs[other.number], "dev", device, "dst", f"{self.underlay(other)}")
        self.target = self.subnets[2][0]
