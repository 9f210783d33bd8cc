"""Nodes as namespaces on one machine: a whole overlay network in a box that leaves nothing behind.

    namespace    make, hold and enter namespaces
    layout       names, addresses and paths
    channel      messages and descriptors between client and supervisor
    supervisor   PID 1 of the lab, which holds it together
    builder      its helper, which makes links, nodes and pods
    plug         pods by the CNI plugin
    client       start, enter, ask, end
    tour         go about the nodes: run, ping, ask, listen to links
    trace        one ping, followed on its way
    story        the demo
    commands     the command line

What follows is what the command line calls; what it prints is the command's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannel_udp.lab.layout import Overlay


def up(nodes: int, name: str, overlay: Overlay) -> None:
    """Start a lab that lives on in the background, and show it."""
    from flannel_udp.lab import client

    client.start(nodes, name, overlay).detach()
    status(name)


def down(name: str) -> None:
    """End a lab; when this returns nothing is left of it."""
    from flannel_udp.lab import client

    client.Lab(name).down()
    print(f"lab {name} is down")


def status(name: str) -> None:
    """Show a lab's nodes."""
    from flannel_udp import render
    from flannel_udp.lab import client

    shown = client.Lab(name).status()
    state = "ready" if shown["ready"] else f"coming up, {len(shown['nodes'])} of {shown['expected']} nodes are there"
    print(f"lab {name}: {state}\n\n{render.document({'nodes': shown['nodes']})}")


def execute(name: str, node: str, pod: bool, command: Sequence[str]) -> int:
    """Run a command on a node or in its pod; return its exit status."""
    from flannel_udp.lab import client, layout

    place = client.Lab(name).place(layout.node_name(node), pod=pod)
    return client.run_inside(place, lambda: client.become(list(command), layout.environment()))


def packet(name: str, source: str, destination: str) -> None:
    """Send one ping from pod to pod and show it layer by layer, on the overlay and on the underlay."""
    from flannel_udp.lab import client, layout, trace

    trace.show_ping(client.Lab(name), layout.node_name(source), layout.node_name(destination))


def demo(overlay: Overlay) -> int:
    """Tell the whole way of a packet in a lab of its own; 0 if everything was as it should be."""
    from flannel_udp.lab import story

    return story.run(overlay)


def overlay(backend: str, families: tuple[int, ...], *, cni: bool) -> Overlay:
    """What a lab is to show; `cni`: its pods are plugged in by the CNI plugin."""
    from flannel_udp.lab import layout, plug

    return layout.Overlay(backend, families, plug.folders() if cni else "")
