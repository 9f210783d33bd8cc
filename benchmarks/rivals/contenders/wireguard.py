"""wireguard-go, a userspace tunnel with the same offloads as ours; it encrypts, which the others do not."""

from benchmarks.rivals.contenders.base import Contender, ask, peer_program, peer_version


class Wireguard(Contender):
    """A node of wireguard-go's packages at either end; each makes its own key."""

    encrypts = True
    version = peer_version("wireguard-node")
    mtu = 1420

    def prepare(self) -> None:
        self._program = peer_program("wireguard-node")

    def start(self) -> None:
        device, port = f"wg{self.place}", 51820 + self.place
        processes = [self.program(node, self._program, "--device", device) for node in self.cable.nodes]
        keys = [ask(process) for process in processes]
        for node, process, key, other in zip(self.cable.nodes, processes, reversed(keys), reversed(self.cable.nodes),
                                             strict=True):  # fmt: skip
            own, peer = self.subnets[node.number], self.subnets[other.number]
            ask(process, f"listen_port={port}\npublic_key={key}\nendpoint={other.address}:{port}\n"
                         f"allowed_ip={peer}\n\n")  # fmt: skip
            node.ip(f"addr add {own[0]}/32 dev {device}", f"link set {device} up", f"route add {peer} dev {device}")
        self.target = self.subnets[2][0]
