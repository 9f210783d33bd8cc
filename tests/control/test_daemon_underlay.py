"""The daemon when the underlay changes under it: another address, interface or MTU; and when it leaves for good."""

import io
import time
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest

from flannel_udp.errors import LeaseError, NetlinkError, RegistryUnavailable, UnderlayError
from flannel_udp.link import Link, LinkAddress, LinkEvent
from flannel_udp.options import NodeOptions
from flannel_udp.subnet import OwnLeaseLost, Trouble
from flannel_udp.subnet_env import read_subnet_env
from flannel_udp.underlay import find_external_interface, follow_external_interface

from ..conftest import wait_until
from .daemon_node import Node
from .fakes import FakeLinks, lease

NEW = LinkAddress(2, ip_interface("192.0.2.77/24"))


def readdress(node: Node, address: LinkAddress = NEW) -> None:
    node.links.here = [one for one in node.links.here if one.index != 2] + [address]
    node.links.post(LinkEvent("address", 2))


def public_ip(node: Node) -> object:
    asked = node.asked()
    return asked and asked["lease"]["public_ip"]


def test_another_address_is_gone_over_to_and_told(node: Node) -> None:
    node.manager.peers = (lease("10.5.2.0/24", "192.0.2.2"),)
    with node.running():
        readdress(node)
        wait_until(lambda: public_ip(node) == "192.0.2.77", "peers are told")
        assert (node.plane.starts, node.plane.running, len(node.tunnel.queues)) == (2, True, 1)  # the device stays
        assert [one.fileno() >= 0 for one in node.tunnel.sockets] == [False, False, True, True]
        assert node.plane.published == {"10.5.2.0/24": "192.0.2.2:8285"}
        asked = node.asked()
        assert asked
        assert (asked["external_interface"]["address"], asked["warnings"]) == ("192.0.2.77", [])
    assert node.manager.deeds.count("update 192.0.2.77") == 1


def test_an_address_taken_away_is_said_and_its_return_is_no_change(node: Node, said: io.StringIO) -> None:
    with node.running():
        here = node.links.here.pop(0)
        node.links.post(LinkEvent("address gone", 2))
        wait_until(lambda: "192.0.2.1 is no longer on this host" in said.getvalue(), "it is said")
        node.links.here.append(here)
        node.links.post(LinkEvent("address", 2))
        wait_until(lambda: "problem is gone" in said.getvalue(), "it is back")
        assert node.plane.starts == 1
    assert not [deed for deed in node.manager.deeds if deed.startswith("update")]


def test_a_second_address_is_no_reason_to_leave_the_first(node: Node) -> None:
    with node.running():
        node.links.here.insert(0, NEW)
        node.links.post(LinkEvent("address", 2))
        wait_until(lambda: "192.0.2.77" in node.plane.own[2], "it is seen")
        wait_until(lambda: not node.daemon._links_moved, "it was looked at")
        assert (node.plane.starts, public_ip(node)) == (1, "192.0.2.1")


def test_another_mtu_is_told_to_pods_device_and_loops(node: Node) -> None:
    with node.running():
        node.links.devices[2] = replace(node.links.devices[2], mtu=1400)
        node.links.post(LinkEvent("link", 2))
        wait_until(lambda: read_subnet_env(node.options.subnet_file).mtu == 1372, "subnet.env tells it")
        assert node.links.devices[10].mtu == 1372
        assert (node.plane.doors.mtu, node.plane.starts, len(node.tunnel.sockets)) == (1372, 2, 2)
    assert not [deed for deed in node.manager.deeds if deed.startswith("update")]


def test_an_mtu_that_is_too_small_keeps_what_was(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.backend.refusals["make"] = UnderlayError("interface eth0 has MTU 50; udp needs 96")
        node.links.devices[2] = replace(node.links.devices[2], mtu=50)
        node.links.post(LinkEvent("link", 2))
        wait_until(lambda: "the underlay stays 192.0.2.1 on eth0" in said.getvalue(), "it is said")
        assert node.plane.running


@pytest.mark.parametrize("error", [RegistryUnavailable("away"), LeaseError("no longer this node's")])
def test_peers_are_told_again_until_they_are(node: Node, said: io.StringIO, error: Exception) -> None:
    node.manager.updates = [error, error, lease("10.5.1.0/24")]
    with node.running():
        readdress(node)
        wait_until(lambda: public_ip(node) == "192.0.2.77", "peers are told")
        warned = [line for line in said.getvalue().splitlines() if "level=warn" in line and "new address yet" in line]
        assert len(warned) == 1
        asked = node.asked()
        assert asked
        assert asked["warnings"] == []


def test_sockets_that_cannot_be_had_break_the_path_until_they_can(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.tunnel.refusals["open_sockets"] = UnderlayError("port in use")
        readdress(node)
        wait_until(lambda: "data path broken" in said.getvalue(), "it is said")
        del node.tunnel.refusals["open_sockets"]
        wait_until(lambda: "data path mended" in said.getvalue(), "it is mended")
        assert node.plane.running


def test_a_lease_lost_in_an_outage_is_tried_again_as_soon_as_it_is_over(node: Node, monkeypatch: pytest.MonkeyPatch,
                                                                       ) -> None:
    monkeypatch.setattr("flannel_udp.daemon.LEASE_RETRY_MIN", 1000.0)
    with node.running():
        node.daemon._acquire_delay = 1000.0
        node.manager.leases = [RegistryUnavailable("away"), lease("10.5.1.0/24")]
        node.manager.post(OwnLeaseLost("expired"))
        wait_until(lambda: node.manager.deeds.count("acquire") == 2, "it was tried")
        time.sleep(0.05)  # its answer is on the way to the owner
        node.manager.post(Trouble("registry-recovered", "the registry answers again"))
        wait_until(lambda: node.manager.deeds.count("acquire") == 3, "it is tried again")


def test_the_lease_is_released_at_a_stop_only_if_asked_and_after_the_last_packet(node: Node) -> None:
    node.options = replace(node.options, release_on_exit=True)
    with node.running():
        assert "release" not in node.manager.deeds
    assert node.manager.deeds[-2:] == ["release", "close"]


def test_a_release_that_fails_is_said(node: Node, said: io.StringIO) -> None:
    node.options = replace(node.options, release_on_exit=True)
    node.manager.refusal = RegistryUnavailable("away")
    with node.running():
        pass
    assert 'event="lease not released: it ends by itself" reason=away' in said.getvalue()


def test_a_failed_start_releases_nothing(node: Node, tmp_path: Path) -> None:
    del tmp_path
    node.options = replace(node.options, release_on_exit=True)
    node.tunnel.refusals["open_device"] = UnderlayError("route taken")
    assert node.run() == 1
    assert "release" not in node.manager.deeds


def test_another_interface_of_the_default_route(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.running():
        node.links.devices[3] = Link(3, "eth1", 1500, True)
        node.links.here.append(LinkAddress(3, ip_interface("198.51.100.9/24")))
        routes = node.links.routes
        monkeypatch.setattr(node.links, "routes", lambda family=4: [replace(one, index=3) if one.network is None else
                                                                    one for one in routes(family)])
        node.links.post(LinkEvent("route", 3))
        wait_until(lambda: public_ip(node) == "198.51.100.9", "peers are told")
        asked = node.asked()
        assert asked
        assert asked["external_interface"]["name"] == "eth1"


def test_a_kernel_that_tells_nothing_of_routes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(family: int = 4) -> list[object]:
        raise NetlinkError(f"cannot list routes of IPv{family}: out of memory")

    links = FakeLinks()
    now = find_external_interface(NodeOptions(), links)
    links.here = [NEW]
    assert follow_external_interface(now, NodeOptions(), links).address == NEW.ip
    monkeypatch.setattr(links, "routes", refuse)
    assert follow_external_interface(now, NodeOptions(), links) is now
