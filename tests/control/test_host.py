"""What the daemon sees to on the host, with firewall and links on paper (fakes.py)."""

import io
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp import firewall
from flannel_udp.daemon import Daemon
from flannel_udp.errors import FirewallError, InstanceError, NetlinkError
from flannel_udp.firewall import Overlay, State, bridge_warning
from flannel_udp.firewall.flannel import Leftover
from flannel_udp.instance import sole_instance
from flannel_udp.link import LinkEvent, Route
from flannel_udp.subnet import OwnLeaseChanged
from flannel_udp.subnet_env import SubnetEnv, write_subnet_env

from ..conftest import wait_until
from .daemon_node import Node
from .fakes import lease

NETWORK, SUBNET = IPv4Network("10.5.0.0/16"), IPv4Network("10.5.1.0/24")


def options(node: Node, **changes: Any) -> None:  # noqa: ANN401 - any of the options
    node.options = replace(node.options, **changes)
    node.daemon = Daemon(node.options, node.manager)


def warnings(node: Node) -> list[str]:
    asked = node.asked()
    assert asked
    told: list[str] = asked["warnings"]
    return told


def test_rules_are_those_of_the_lease_and_follow_it(node: Node) -> None:
    options(node, ip_masq=True, iptables_resync=0.01)
    with node.running():
        wanted = node.firewall.wanted[0]
        assert wanted.overlays == (Overlay(NETWORK, SUBNET),)
        assert (wanted.masquerade, wanted.forward, wanted.fully_random) == (True, True, True)
        node.manager.post(OwnLeaseChanged(lease("10.5.9.0/24")))
        wait_until(lambda: node.firewall.wanted[-1].overlays[0].subnet == IPv4Network("10.5.9.0/24"), "they follow")
        assert node.asked()["firewall"]["engine"] == "nft"  # type: ignore[index]


@pytest.mark.parametrize("step", ["check", "assure"])
def test_without_masquerading_that_was_asked_for_there_is_no_start(node: Node, said: io.StringIO, step: str) -> None:
    options(node, ip_masq=True)
    node.firewall.refusals[step] = FirewallError("--ip-masq needs nft or iptables")
    assert node.run() == 1
    assert node.nothing_is_left()
    assert "--ip-masq needs nft or iptables" in said.getvalue()
    assert (step == "check") == ("acquire" not in node.manager.deeds)


def test_forward_rules_that_cannot_be_set_are_told_until_they_can(node: Node) -> None:
    options(node, iptables_resync=0.01)
    node.firewall.refusals["assure"] = FirewallError("no chain by that name")
    with node.running():
        assert "cannot be set: no chain by that name" in warnings(node)[0]
        del node.firewall.refusals["assure"]
        wait_until(lambda: not warnings(node), "it is well")


def test_fault_in_a_look_is_not_swallowed(node: Node) -> None:
    options(node, iptables_resync=0.01)
    node.firewall.refusals["assure"] = ZeroDivisionError("a bug")  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        node.run()


def test_obstacles_are_told(node: Node) -> None:
    node.firewall.state = State("nft", "", "", ("the chain x drops",))
    with node.running():
        assert warnings(node) == ["the chain x drops"]


def test_blackhole_is_kept_followed_and_taken_away(node: Node) -> None:
    options(node, ip_blackhole_route=True)
    node.links.blackholes = [IPv4Network("10.5.7.0/24"), IPv4Network("10.99.1.0/24")]  # a killed run's, and another's
    with node.running():
        assert node.links.blackholes == [IPv4Network("10.99.1.0/24"), SUBNET]
        node.links.blackholes.remove(SUBNET)
        node.links.post(LinkEvent("route", 0, network=SUBNET))
        wait_until(lambda: SUBNET in node.links.blackholes, "it is put back")
        node.manager.post(OwnLeaseChanged(lease("10.5.9.0/24")))
        wait_until(lambda: node.links.blackholes[1:] == [IPv4Network("10.5.9.0/24")], "it follows the lease")
    assert node.links.blackholes == [IPv4Network("10.99.1.0/24")]


def test_netlink_that_fails_at_a_move_is_told_and_made_good(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    options(node, ip_blackhole_route=True, iptables_resync=0.01)

    def refuse(_: int) -> list[Route]:
        raise NetlinkError("the kernel has no memory")

    with node.running():
        with monkeypatch.context() as failing:
            failing.setattr(node.links, "our_routes", refuse)
            failing.setattr(node.links, "add_blackhole", refuse)
            node.manager.post(OwnLeaseChanged(lease("10.5.9.0/24")))
            wait_until(lambda: "the kernel has no memory" in warnings(node), "it is told, and the daemon goes on")
        wait_until(lambda: not warnings(node), "the next look makes it good")
        assert IPv4Network("10.5.9.0/24") in node.links.blackholes


def test_lease_is_released_while_no_other_daemon_can_take_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    options(node, release_on_exit=True)
    others: list[str] = []

    def release() -> None:
        with pytest.raises(InstanceError) as caught, sole_instance(node.options):
            pass
        others.append(str(caught.value))

    monkeypatch.setattr(node.manager, "release", release)
    with node.running():
        pass
    assert len(others) == 1
    assert "in use by another" in others[0]


def test_blackhole_of_the_last_network_goes(node: Node) -> None:
    before = SubnetEnv(IPv4Network("10.99.0.0/16"), IPv4Network("10.99.1.0/24"), mtu=1472)
    write_subnet_env(node.options.subnet_file, before)
    node.links.blackholes = [IPv4Network("10.99.1.0/24")]
    with node.running():
        assert node.links.blackholes == []


def test_leftovers_are_removed_once_there_is_a_lease(node: Node, said: io.StringIO) -> None:
    removed: list[bool] = []
    node.left = [Leftover("chain FLANNEL-FWD", lambda: removed.append("acquire" in node.manager.deeds))]
    with node.running():
        assert removed == [True]
    assert 'event="removed what flannel left" what="chain FLANNEL-FWD"' in said.getvalue()


def test_leftover_that_cannot_be_removed_is_told(node: Node) -> None:
    def refuse() -> None:
        raise FirewallError("device or resource busy")

    node.left = [Leftover("chain FLANNEL-FWD", refuse)]
    with node.running():
        assert "left by flannel, and cannot be removed: device or resource busy" in warnings(node)[0]


def test_running_flanneld_with_nothing_of_this_network_is_no_hindrance(node: Node) -> None:
    node.flanneld = 4711
    with node.running():
        assert warnings(node) == []


def test_running_flanneld_of_this_network_is_refused_before_a_lease_is_taken(node: Node, said: io.StringIO) -> None:
    node.flanneld, node.left = 4711, [Leftover("chain FLANNEL-FWD", lambda: None)]
    assert node.run() == 1
    assert "flanneld (process 4711) runs on this host, for the same network (chain FLANNEL-FWD)" in said.getvalue()
    assert "acquire" not in node.manager.deeds


@pytest.mark.parametrize(("engine", "text", "told"), [
    ("nft", "0", ""), ("iptables", "1", ""), ("iptables", "0", "bridge-nf-call-iptables is 0"),
    ("iptables-legacy", None, "br_netfilter is not loaded")])
def test_bridges_are_warned_of_where_iptables_is_used(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, text: str | None, told: str) -> None:
    file = tmp_path / "bridge-nf-call-iptables"
    if text:
        file.write_text(f"{text}\n")
    monkeypatch.setitem(firewall.BRIDGE, 4, file)
    line = bridge_warning(State(engine), 4)
    assert told in line
    assert bool(line) == bool(told)
