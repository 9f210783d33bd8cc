"""The demo: the whole way of a packet, told in a lab of its own, every claim checked against what really happens."""

import contextlib
import json
import os
import subprocess
import sys
import time
from ipaddress import ip_interface, ip_network
from typing import Any

from flannel_udp.dissect import Layer, dissect, format_layers
from flannel_udp.errors import LabError
from flannel_udp.lab import client, layout, plug
from flannel_udp.lab.layout import Overlay
from flannel_udp.lab.tour import Tour, Wiretap, wait_until
from flannel_udp.lab.trace import Trace, describe, differences, trace_ping
from flannel_udp.registry import open_registry
from flannel_udp.render import table

NODES = 3
TRANSFER = 64 << 20
WIDTH = 26  # of a node in the drawing, if that is enough
CHANGES = {("udp", 4): ["TTL", "checksum"], ("udp", 6): ["hop limit"]}
HOPS = {
    "udp": (60, "four hops: either node's kernel, either end of the tunnel, counts"),
    "vxlan": (62, "two hops: either node's kernel counts, the tunnel does not"),
}
UNREACHABLE = {4: "Net Unreachable", 6: "No route"}
BACKEND_DATA = {4: "BackendData", 6: "BackendV6Data"}


def run(overlay: Overlay) -> int:
    """Start a lab, tell the story, end the lab; 0 if all was as it should be."""
    begin = time.monotonic()
    _title(f"A lab of {NODES} nodes: network namespaces of this machine, a daemon in each")
    name = f"demo-{os.getpid()}"
    started = client.start(NODES, name, overlay)
    with contextlib.closing(started), contextlib.closing(Tour(started.lab)) as tour:
        story = Story(tour)
        status = client.run_inside(tour.base, story.tell)
    print(f"\nThe lab is gone. {time.monotonic() - begin:.1f} seconds in all.")
    return status


class Story:
    """The demo's scenes, told by a process inside the lab."""

    def __init__(self, tour: Tour) -> None:
        self.tour = tour
        self.overlay = tour.overlay
        self.failures: list[str] = []

    def tell(self) -> int:
        """Tell all scenes; the exit status."""
        self.topology()
        self.leases()
        if self.overlay.plugins:
            self.plugged_in("node1")
        for family in self.overlay.families:
            self.ping(family)
            self.transfer(family)
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
        nodes = {node: self._stations(node) for node in self.tour.nodes}
        width = max(WIDTH, 3 + max(len(station) for stations in nodes.values() for station in stations))
        columns = [_draw_node(node, stations, width) for node, stations in nodes.items()]
        for parts in zip(*columns, strict=True):
            print("  ".join(parts))
        line = "══".join("╧".center(width, "═") for _ in columns)
        underlay = " and ".join(f"{layout.UNDERLAY[family]}" for family in self.overlay.families)
        print(f"{line}\n{f'underlay {underlay}, a bridge'.center(len(line))}")

    def _stations(self, node: str) -> list[str]:
        """What a packet passes on its way from a pod to the underlay, top down."""
        families = self.overlay.families
        subnets = {family: ip_network(self.tour.of_family(node, "subnet", family)) for family in families}
        rows = [("pod eth0", self.tour.of_family(node, "pod", family)) for family in families]
        rows += [("cni0", f"{subnets[family][1]}") for family in families]
        rows += [(self.tour.device(node, family), f"{subnets[family][0]}") for family in families]
        rows += [("", "flannel-udp run")]
        rows += [("eth0", self.tour.of_family(node, "address", family)) for family in families]
        width = 3 + max(len(name) for name, _ in rows)
        return [f"{name.ljust(width)}{what}" if name else what for name, what in rows]

    def leases(self) -> None:
        """Show who has which subnet."""
        _title("The leases: every node took a subnet of its own")
        command = [sys.executable, "-P", "-m", "flannel_udp.cli", "leases", "--registry", layout.REGISTRY_URL]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"  $ flannel-udp leases --registry {layout.REGISTRY_URL}\n{_indented(shown.stdout + shown.stderr)}")
        subnets = {state["subnet"] for state in self.tour.nodes.values()}
        listed = shown.returncode == 0 and all(subnet in shown.stdout for subnet in subnets)
        self.check(listed and len(subnets) == NODES, f"{NODES} nodes, {NODES} different subnets")

    def plugged_in(self, node: str) -> None:
        """Show how the CNI plugin was called for a pod, and what it made of that."""
        _title(f"How {node}'s pod was plugged in: the CNI plugin, called as a container runtime calls it")
        with self.tour.at(node):
            said, delegated, result = plug.kept(node)
            variables = plug.variables("ADD", node, self.overlay.plugins)
            again = plug.call("CHECK", node, self.overlay.plugins, {**said, "prevResult": result})
        words = "\n".join(f"{name}={value}" for name, value in variables.items())
        called = delegated["type"]
        for what, lines in (("in the environment", words), ("on stdin", _members(said)),
                            (f"what subnet.env makes of it, for the {called} plugin", _members(delegated)),
                            (f"{called}'s answer, and so ours", _members(result))):  # fmt: skip
            print(_indented(f"{what}:\n{_indented(lines)}\n") + "\n")
        given = [ip_interface(ip["address"]) for ip in result["ips"]]
        leased = [ip_network(self.tour.of_family(node, "subnet", family)) for family in self.overlay.families]
        self.check([address.network for address in given] == leased,
                   f"{', '.join(str(address.ip) for address in given)}: of the subnet that {node} leased")  # fmt: skip
        self.check(again.returncode == 0, f"CHECK finds the pod as it was added{again.stdout and ': ' + again.stdout}")

    def ping(self, family: int) -> None:
        """Ping from pod to pod and show one ping on its way."""
        _title(f"A ping from node1's pod to node2's{self._among(family)}")
        pinged = self.tour.ping("node1", "node2", family, count=3)
        print(_indented(pinged.stdout))
        self.check(" 3 received" in pinged.stdout, "three requests, three answers")
        left, why = HOPS[self.overlay.backend]
        self.check(f"ttl={left}" in pinged.stdout, f"TTL 64 lost {why}")
        _title("One of these pings, layer by layer")
        trace = trace_ping(self.tour, "node1", "node2", family)
        print(_indented(describe(trace)))
        changes = CHANGES.get((self.overlay.backend, family), [])
        exception = f" but for {' and '.join(changes)}" if changes else ""
        self.check(differences(trace) == changes, f"the inner packet is the same{exception}")
        outer = dissect(trace.outer, "ethernet")
        wrong = [layer.name for layer in outer if any("wrong" in field.value for field in layer.fields)]
        self.check(not wrong, "no checksum is wrong; UDP's own is filled in by the network card, or here by nobody")
        if self.overlay.backend == "vxlan":
            self._vteps(trace, family)

    def _vteps(self, trace: Trace, family: int) -> None:
        """Compare the inner Ethernet header with what the nodes' leases tell."""
        ethernet = dissect(trace.outer, "ethernet")[4]
        ends = [self._lease("node1", family), self._lease("node2", family)]
        macs = [json.loads(value)[BACKEND_DATA[family]]["VtepMAC"] for _, value, _ in ends]
        self.check([ethernet["source"], ethernet["destination"]] == macs,
                   f"from VtepMAC {macs[0]} to {macs[1]}, as the leases of node1 and node2 have it")  # fmt: skip

    def _among(self, family: int) -> str:
        """Name the family where there are two."""
        return f", IPv{family}" if len(self.overlay.families) > 1 else ""

    def transfer(self, family: int) -> None:
        """Send a lot over TCP."""
        _title(f"{TRANSFER >> 20} MiB over TCP from node1's pod to node3's{self._among(family)}")
        done = self.tour.transfer("node1", "node3", family, TRANSFER)
        rate = done.size * 8 / done.seconds / 1e9
        print(f"  sent      sha256 {done.sent}\n  received  sha256 {done.received}")
        print(f"  {done.seconds:.2f} seconds, {rate:.2f} Gb/s\n")
        self.check(done.sent == done.received, "what arrived is what was sent")

    def loss_of_a_node(self) -> None:
        """Stop a node, give its lease back, and see what its peers tell those who want to go there."""
        _title("node3 stops, and its lease is given back")
        before = self._no_route()
        self.tour.stop_daemon("node3")
        self._release_lease("node3")
        left = (NODES - 2) * len(self.overlay.families)
        wait_until(lambda: len(self.tour.daemon_status("node1")["peers"]) == left, "node1 to drop its route")
        for family in self.overlay.families:
            self._ping_nobody(family)
        dropped = self._no_route()
        meaning = dropped["meaning"]
        print(f"  node1 counts the drop: no_route {before['count']} -> {dropped['count']} ({meaning})")
        self.check(dropped["count"] > before["count"], "the drop has its reason")
        reached = [self.tour.ping("node1", "node2", family).returncode == 0 for family in self.overlay.families]
        self.check(all(reached), "node2 is reached as before")

    def _ping_nobody(self, family: int) -> None:
        """Ping a pod whose node is gone."""
        device = self.tour.device("node1", family)
        with self.tour.at("node1"):
            on_overlay = Wiretap(device)
        with on_overlay:
            pinged = self.tour.ping("node1", "node3", family)
            print(_indented(pinged.stdout))
            said = UNREACHABLE[family]
            self.check(said in pinged.stdout, f"node1 answers in node3's place: {said.lower()}")
            error = on_overlay.wait_for(lambda packet: _is_unreachable(dissect(packet)), "the ICMP error")
        print(f"\n  The answer, as node1 writes it into {device}:\n\n{format_layers(dissect(error), '    ')}\n")

    def _no_route(self) -> dict[str, Any]:
        found: dict[str, Any] = self.tour.daemon_status("node1")["counters"]["out"]["outcomes"]["no_route"]
        return found

    def _release_lease(self, node: str) -> None:
        key, _, revision = self._lease(node, self.overlay.families[0])
        with contextlib.closing(open_registry(layout.REGISTRY_URL)) as registry:
            registry.delete(key, revision)

    def _lease(self, node: str, family: int) -> tuple[str, bytes, int]:
        """Return key, value and revision of a node's lease."""
        part = self.tour.of_family(node, "subnet", family).replace("/", "-")
        with contextlib.closing(open_registry(layout.REGISTRY_URL)) as registry:
            for entry in registry.snapshot().entries:
                if part in entry.key.split("&"):
                    return entry.key, entry.value, entry.revision
        raise LabError(f"the registry has no lease {part}")

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


def _members(value: dict[str, Any]) -> str:
    """A JSON object, a line for each of its members."""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "\n}"


def _draw_node(node: str, stations: list[str], width: int) -> list[str]:
    """One node of the drawing."""
    lines = [f"┌{f' {node} '.center(width - 2, '─')}┐"]
    for number, station in enumerate(stations):
        lines += [f"│{'│'.center(width - 2)}│"] if number else []
        lines.append(f"│ {station.ljust(width - 3)}│")
    return [*lines, f"└{'┬'.center(width - 2, '─')}┘"]


def _is_unreachable(layers: list[Layer]) -> bool:
    return len(layers) > 1 and layers[1].name.startswith("ICMP") and "unreachable" in layers[1]["type"]
