"""One ping between two pods, caught twice on its way and read aloud: on the overlay, and on the underlay."""

import signal
from dataclasses import dataclass

from flannel_udp.dissect import Layer, dissect, format_layers
from flannel_udp.errors import LabError
from flannel_udp.lab import client, layout
from flannel_udp.lab.tour import Tour, Wiretap


@dataclass(frozen=True)
class Trace:
    """The same echo request: `inner` as read from the TUN `device`, `outer` as it left by the external interface."""

    source: str
    device: str
    backend: str
    inner: bytes
    outer: bytes
    ping: str

    @property
    def carried(self) -> bytes:
        """The packet within the outer datagram."""
        return self.outer[len(self.outer) - len(self.inner) :]


def show_ping(lab: client.Lab, source: str, destination: str) -> None:
    """Send one ping from pod to pod of a running lab and print it layer by layer."""
    tour = Tour(lab)
    if source == destination:
        raise LabError(f"from {source} to {source}: such a packet never leaves the node; name two nodes")
    tour.node(source)
    tour.node(destination)

    def show() -> int:
        print("\n\n".join(describe(trace_ping(tour, source, destination, family)) for family in tour.overlay.families))
        return 0

    try:
        status = client.run_inside(tour.base, show)
        if status == 128 + signal.SIGPIPE:  # the reader of the output has left, and is owed no more words
            raise BrokenPipeError
        if status == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if status:
            raise LabError(f"the ping from {source} to {destination} could not be shown")
    finally:
        tour.close()


def trace_ping(tour: Tour, source: str, destination: str, family: int) -> Trace:
    """Send one ping and catch its request on both sides of the daemon; to be called inside the lab."""
    ends = (tour.of_family(source, "pod", family), tour.of_family(destination, "pod", family))
    device = tour.device(source, family)

    def is_request(packet: bytes, first: str) -> bool:
        layers = dissect(packet, "ethernet" if first == "ethernet" else "ip")
        return _echo_between(layers, *ends)

    with tour.at(source):
        on_overlay, on_underlay = Wiretap(device), Wiretap(layout.EXTERNAL_INTERFACE)
    with on_overlay, on_underlay:
        ping = tour.ping(source, destination, family)
        if ping.returncode:
            raise LabError(f"the ping from {source} to {destination} got no answer:\n{ping.stdout}{ping.stderr}")
        inner = on_overlay.wait_for(lambda packet: is_request(packet, "ip"), "the request on the overlay")
        outer = on_underlay.wait_for(lambda packet: is_request(packet, "ethernet"), "the request on the underlay")
    return Trace(source, device, tour.overlay.backend, inner, outer, ping.stdout)


def _echo_between(layers: list[Layer], source: str, destination: str) -> bool:
    """Whether the innermost packet is an echo request from the one to the other."""
    if [layer.name for layer in layers][-3:] not in (["IPv4", "ICMP", "data"], ["IPv6", "ICMPv6", "data"]):
        return False
    ip, icmp = layers[-3:-1]
    return (ip["source"], ip["destination"]) == (source, destination) and icmp["type"].endswith("(echo request)")


def differences(trace: Trace) -> list[str]:
    """The names of the fields in which the carried packet differs from the one read from the TUN."""
    pairs = zip(dissect(trace.inner), dissect(trace.carried), strict=True)
    return [
        before.name
        for one, other in pairs
        for before, after in zip(one.fields, other.fields, strict=True)
        if before.value != after.value
    ]


def describe(trace: Trace) -> str:
    """Put a trace into words: both packets, and what the tunnel did to the inner one."""
    added = len(trace.outer) - len(trace.inner)
    return "\n".join(
        [
            f"The inner packet, as {trace.source} reads it from the TUN {trace.device}: {len(trace.inner)} bytes",
            "",
            format_layers(dissect(trace.inner), "  "),
            "",
            f"The outer packet, as caught on {trace.source}'s {layout.EXTERNAL_INTERFACE}: {len(trace.outer)} bytes",
            "",
            format_layers(dissect(trace.outer, "ethernet"), "  "),
            "",
            f"{added} bytes were put in front. {_TOLD[trace.backend](trace)}",
        ]
    )


def _of_a_router(trace: Trace) -> str:
    inner, carried = dissect(trace.inner)[0], dissect(trace.carried)[0]
    hops, patched = ("TTL", ", the header's checksum with it") if inner.name == "IPv4" else ("hop limit", "")
    return (
        f"Within, what changed is: {', '.join(differences(trace))}. The tunnel\n"
        f"counts as a router: the {hops} went from {inner[hops]} to {carried[hops]}{patched}."
    )


def _of_a_cable(trace: Trace) -> str:
    layers = dissect(trace.outer, "ethernet")
    worn = ", ".join(f"{layer.name} {layer.size}" for layer in layers if not layer.depth or layer.name == "Ethernet")
    changed = ", ".join(differences(trace)) or "nothing"
    return (
        f"From the outside in: {worn}.\nWithin, what changed is: {changed}. The tunnel is a cable between "
        "two switches: it counts no hop,\nand carries Ethernet, which says by the VtepMACs from whom to whom."
    )


_TOLD = {"udp": _of_a_router, "vxlan": _of_a_cable}
