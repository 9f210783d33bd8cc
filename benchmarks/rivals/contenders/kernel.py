"""The kernel's VXLAN device, set up as flannel's vxlan backend does it: no learning, all entries permanent."""

from benchmarks.rivals.contenders.base import Contender
from benchmarks.rivals.places import INTERFACE


class KernelVxlan(Contender):
    """VXLAN without any program."""

    mtu = 1450

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
