"""The lab's part of the command line: `flannel-udp lab ...`, one function per command, no logic."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from flannel_udp import lab
from flannel_udp.errors import UsageError

if TYPE_CHECKING:
    from flannel_udp.lab.layout import Overlay

Command = Callable[[argparse.Namespace], int]


def up(arguments: argparse.Namespace) -> int:
    """Build a lab."""
    lab.up(arguments.nodes, arguments.name, _overlay(arguments))
    return 0


def execute(arguments: argparse.Namespace) -> int:
    """Run a command on a node, or in its pod."""
    if not arguments.words:
        raise UsageError("no command to run: say it after --, as in lab exec 1 --pod -- ip address")
    return lab.execute(arguments.name, arguments.node, arguments.pod, arguments.words)


def status(arguments: argparse.Namespace) -> int:
    """Show the nodes of a lab."""
    lab.status(arguments.name)
    return 0


def down(arguments: argparse.Namespace) -> int:
    """End a lab."""
    lab.down(arguments.name)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Show the whole way of a packet in a lab of its own."""
    return lab.demo(_overlay(arguments))


def packet(arguments: argparse.Namespace) -> int:
    """Show one ping between two pods layer by layer."""
    lab.packet(arguments.name, arguments.source, arguments.destination)
    return 0


def add(command: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Tell the command line of all of these: command(name, function, text) makes one's parser."""
    made = command("up", up, "build a lab")
    made.add_argument("--nodes", type=int, default=3, metavar="N", help="how many nodes (default %(default)s)")
    _add_overlay(made)
    entered = command("exec", execute, "run a command on a node: exec NODE [--pod] -- COMMAND ...")
    entered.add_argument("node", metavar="NODE", help="its number or name")
    entered.add_argument("--pod", action="store_true", help="in the node's pod")
    traced = command("packet", packet, "show one ping between two pods layer by layer")
    traced.add_argument("source", metavar="FROM", help="a node")
    traced.add_argument("destination", metavar="TO", help="another node")
    shown = command("status", status, "show the nodes of a lab")
    ended = command("down", down, "end a lab; nothing is left of it")
    for added in (made, entered, traced, shown, ended):
        added.add_argument("--name", default="lab", help="which lab (default %(default)s)")
    _add_overlay(command("demo", demo, "the whole way of a packet, shown step by step"))


def _overlay(arguments: argparse.Namespace) -> Overlay:
    return lab.overlay(arguments.backend, arguments.families, cni=arguments.cni)


def _add_overlay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=("udp", "vxlan"), default="udp", help="default %(default)s")
    parser.add_argument("--cni", action="store_true",
                        help="plug the pods in through the CNI plugin, not by the lab itself (plugins: CNI_PATH, or "
                             "Debian's containernetworking-plugins)")  # fmt: skip
    parser.set_defaults(families=(4,))
    either = parser.add_mutually_exclusive_group()
    for flag, families, text in (("--ipv6", (6,), "IPv6 instead of IPv4"), ("--dual-stack", (4, 6), "both")):
        either.add_argument(flag, action="store_const", dest="families", const=families, help=text)
