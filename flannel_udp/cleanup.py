"""Undo what a daemon of this host left when it ended: its rules, its routes, its files. Nothing of others is touched.

subnet.env stays: the CNI plugin reads it for as long as there are pods, and flannel, to get the same subnet again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from flannel_udp.backend import vtep
from flannel_udp.control import socket_path
from flannel_udp.firewall import Firewall
from flannel_udp.instance import sole_instance
from flannel_udp.link import within
from flannel_udp.netlink import ROUTE_PROTOCOL, Links
from flannel_udp.subnet_env import kept_env, known_before

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannel_udp.options import NodeOptions


def cleanup(options: NodeOptions) -> Iterator[str]:
    """Remove, and tell of each thing removed; InstanceError while the daemon of these directories runs."""
    folders = (options.run_dir, options.state_dir, options.subnet_file.parent)
    there = [folder for folder in folders if folder.exists()]
    with sole_instance(options):  # it makes these folders
        yield from Firewall(options.run_dir).remove()
        yield from _routes(options)
        for file in (socket_path(options.run_dir), kept_env(options), vtep.file_of(options)):
            if file.exists():
                file.unlink()
                yield f"file {file}"
    for folder in folders:
        if folder != options.subnet_file.parent or folder not in there:
            with contextlib.suppress(OSError):  # it holds more, such as the registry
                folder.rmdir()
                if folder in there:
                    yield f"folder {folder}"


def _routes(options: NodeOptions) -> Iterator[str]:
    """Routes with our protocol that lead nowhere, or by way of a peer; those over a device are a living daemon's."""
    before = known_before(options)
    networks = [network for network in (before.network, before.ipv6_network) if network]
    with Links() as links:
        for family in (4, 6):
            for route in links.our_routes(family):
                network, gateway = route.network, route.gateway
                if network is None or (networks and not any(within(network, one) for one in networks)):
                    continue
                if route.blackhole and links.delete_blackhole(network):
                    yield f"blackhole route {network}"
                elif gateway and route.index and links.delete_route(network, route.index, gateway, ROUTE_PROTOCOL):
                    yield f"route {network} via {gateway}"
