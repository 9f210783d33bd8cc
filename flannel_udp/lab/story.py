"""The demo: the whole way of a packet, told in a lab of its own, every claim checked against what really happens."""

import contextlib
import os
import subprocess
import sys
import time
from ipaddress import IPv4Network
from typing import Any

from flannel_udp.dissect import Layer, dissect, format_layers
from flannel_udp.errors import LabError
from flannel_udp.lab import client, layout
from flannel_udp.lab.tour import Tour, Wiretap, wait_until
from flannel_udp.lab.trace import describe, differences, trace_ping
from flannel_udp.registry import open_registry
from flannel_udp.render import table

NODES = 3
TRANSFER = 64 << 20
WIDTH = 26


def run() -> int:
    """Start a lab, tell the story, end the lab; 0 if all was as it should be."""
    begin = time.monotonic()
    _title(f"A lab of {NODES} nodes: network namespaces of this machine, a daemon in each")
    name = f"demo-{os.getpid()}"
    with contextlib.closing(client.start(NODES, name)) as started, contextlib.closing(Tour(started.lab)) as tour:
        story = Story(tour)
        status = client.run_inside(tour.base, story.tell)
    print(f"\nThe lab is gone. {time.monotonic() - begin:.1f} seconds in all.")
    return status


class Story:
    """The demo's scenes, told by a process inside the lab."""

    def __init__(self, tour: Tour) -> None:
        self.tour = tour
        self.failures: list[str] = []

    def tell(self) -> int:
        """Tell all scenes; the exit status."""
        self.topology()
        self.leases()
        self.ping()
        self.transfer()
        self.loss_of_a_node()
        self.counters()
        if self.failures:
            _title("NOT as it should be")
            print("\n".join(self.failures))
            return 1
        _title("Everything was as it should be")
        return 0

    def check(self, condition: bool, claim: str) -> None:
        """Print a claim with its verdict."""
        print(f"  [{'ok' if condition else 'FAILED'}] {claim}")
        if not condition:
            self.failures.append(f"  {claim}")

    def topology(self) -> None:
        """Draw what was built."""
        columns = [_draw_node(state) for state in self.tour.nodes.values()]
        for parts in zip(*columns, strict=True):
            print("  ".join(parts))
        line = "══".join("╧".center(WIDTH, "═") for _ in columns)
        print(f"{line}\n{f'underlay {layout.UNDERLAY}, a bridge'.center(len(line))}")

    def leases(self) -> None:
        """Show who has which subnet."""
        _title("The leases: every node took a subnet of its own")
        command = [sys.executable, "-P", "-m", "flannel_udp.cli", "leases", "--registry", layout.REGISTRY_URL]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"  $ flannel-udp leases --registry {layout.REGISTRY_URL}\n{_indented(shown.stdout + shown.stderr)}")
        subnets = {state["subnet"] for state in self.tour.nodes.values()}
        listed = shown.returncode == 0 and all(subnet in shown.stdout for subnet in subnets)
        self.check(listed and len(subnets) == NODES, f"{NODES} nodes, {NODES} different subnets")

    def ping(self) -> None:
        """Ping from pod to pod and show one ping on its way."""
        _title("A ping from node1's pod to node2's")
        pinged = self.tour.ping("node1", "node2", count=3)
        print(_indented(pinged.stdout))
        self.check(" 3 received" in pinged.stdout, "three requests, three answers")
        self.check(
            "ttl=60" in pinged.stdout, "TTL 64 lost four hops: either node's kernel, either end of the tunnel, counts"
        )
        _title("One of these pings, layer by layer")
        trace = trace_ping(self.tour, "node1", "node2")
        print(_indented(describe(trace)))
        self.check(differences(trace) == ["TTL", "checksum"], "the inner packet is the same but for these two")
        outer = dissect(trace.outer, "ethernet")
        wrong = [layer.name for layer in outer if any("wrong" in field.value for field in layer.fields)]
        self.check(not wrong, "no checksum is wrong; UDP's own is filled in by the network card, or here by nobody")

    def transfer(self) -> None:
        """Send a lot over TCP."""
        _title(f"{TRANSFER >> 20} MiB over TCP from node1's pod to node3's")
        done = self.tour.transfer("node1", "node3", TRANSFER)
        rate = done.size * 8 / done.seconds / 1e9
        print(f"  sent      sha256 {done.sent}\n  received  sha256 {done.received}")
        print(f"  {done.seconds:.2f} seconds, {rate:.2f} Gb/s\n")
        self.check(done.sent == done.received, "what arrived is what was sent")

    def loss_of_a_node(self) -> None:
        """Stop a node, give its lease back, and see what its peers tell those who want to go there."""
        _title("node3 stops, and its lease is given back")
        before = self._no_route()
        self.tour.stop_daemon("node3")
        self._release_lease(IPv4Network(self.tour.node("node3")["subnet"]))
        wait_until(lambda: len(self.tour.daemon_status("node1")["peers"]) == NODES - 2, "node1 to drop its route")
        with self.tour.at("node1"):
            on_overlay = Wiretap(layout.TUN)
        with on_overlay:
            pinged = self.tour.ping("node1", "node3")
            print(_indented(pinged.stdout))
            self.check("Net Unreachable" in pinged.stdout, "node1 answers in node3's place: net unreachable")
            error = on_overlay.wait_for(lambda packet: _is_unreachable(dissect(packet)), "the ICMP error")
        print(f"\n  The answer, as node1 writes it into {layout.TUN}:\n\n{format_layers(dissect(error), '    ')}\n")
        dropped = self._no_route()
        meaning = dropped["meaning"]
        print(f"  node1 counts the drop: no_route {before['count']} -> {dropped['count']} ({meaning})")
        self.check(dropped["count"] > before["count"], "the drop has its reason")
        self.check(self.tour.ping("node1", "node2").returncode == 0, "node2 is reached as before")

    def _no_route(self) -> dict[str, Any]:
        found: dict[str, Any] = self.tour.daemon_status("node1")["counters"]["out"]["outcomes"]["no_route"]
        return found

    def _release_lease(self, subnet: IPv4Network) -> None:
        key = f"{subnet.network_address}-{subnet.prefixlen}"
        with contextlib.closing(open_registry(layout.REGISTRY_URL)) as registry:
            for entry in registry.snapshot().entries:
                if entry.key == key:
                    registry.delete(key, entry.revision)
                    return
        raise LabError(f"the registry has no lease {key}")

    def counters(self) -> None:
        """Print what node1 counted, and check the law of its counters."""
        _title("node1's counters: what became of every packet")
        counters = self.tour.daemon_status("node1")["counters"]
        for direction, way in (("out", "overlay -> underlay"), ("in", "underlay -> overlay")):
            outcomes = counters[direction]["outcomes"]
            packets = counters[direction]["packets"]
            rows = [(name, str(o["count"]), o["meaning"]) for name, o in outcomes.items() if o["count"]]
            print(_indented(f"{way}: {packets} packets\n{table(('outcome', 'packets', 'meaning'), rows)}\n"))
            total = sum(outcome["count"] for outcome in outcomes.values())
            self.check(packets == total, f"{packets} packets in, {total} outcomes: nothing is lost unseen\n")


def _title(text: str) -> None:
    print(f"\n── {text} {'─' * max(2, 100 - len(text))}\n", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip("\n").split("\n"))


def _draw_node(state: dict[str, object]) -> list[str]:
    """One node of the drawing, top down from its pod to the underlay."""
    subnet = IPv4Network(str(state["subnet"]))
    stations = [
        f"pod eth0   {state['pod']}", f"cni0       {subnet[1]}", f"{layout.TUN}   {subnet[0]}", "flannel-udp run",
        f"eth0       {state['address']}",
    ]  # fmt: skip
    title = f" {state['node']} ".center(WIDTH - 2, "─")
    lines = [f"┌{title}┐"]
    for number, station in enumerate(stations):
        lines += [f"│{'│'.center(WIDTH - 2)}│"] if number else []
        lines.append(f"│ {station.ljust(WIDTH - 3)}│")
    return [*lines, f"└{'┬'.center(WIDTH - 2, '─')}┘"]


def _is_unreachable(layers: list[Layer]) -> bool:
    return len(layers) > 1 and layers[1].name == "ICMP" and layers[1]["type"].startswith("3 ")
