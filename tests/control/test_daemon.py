"""The daemon's decisions, with everything around it on paper (fakes.py); tests/netns/ has the real world."""

import io
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from ipaddress import IPv4Network, ip_interface
from typing import Any

import pytest

from flannel_udp import control, daemon
from flannel_udp.config import parse_network_config
from flannel_udp.errors import (
    ConfigError,
    ControlError,
    Fault,
    NetlinkError,
    NoConfig,
    OutOfSubnets,
    RegistryUnavailable,
    TunError,
    UnderlayError,
)
from flannel_udp.forwarder import Doors, Notice
from flannel_udp.instance import sole_instance
from flannel_udp.link import LinkAddress, LinkEvent
from flannel_udp.subnet import (
    ConfigChanged,
    OwnLeaseChanged,
    OwnLeaseLost,
    OwnLeaseRenewed,
    PeersChanged,
    PeersReset,
    Trouble,
)
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import wait_until
from .daemon_node import Node
from .fakes import CONFIG, FakeManager, lease

NETWORK = IPv4Network("10.5.0.0/16")


def told(said: io.StringIO, words: str) -> int:
    return sum(words in line for line in said.getvalue().splitlines())


def test_start_tells_everybody_and_stop_leaves_what_the_next_start_needs(
        node: Node, said: io.StringIO) -> None:
    node.manager.peers = (lease("10.5.2.0/24", "192.0.2.2"),)
    with node.running():
        assert node.plane.running
        assert node.plane.own == ("10.5.1.0/24", "10.5.1.0", {"192.0.2.1", "10.5.1.0"})
        assert node.plane.published == {"10.5.2.0/24": "192.0.2.2:8285"}
        assert read_subnet_env(node.options.subnet_file) == read_subnet_env(node.options.state_dir / "subnet.env")
    assert node.env() == "10.5.1.0/24"
    assert node.manager.deeds == ["config", "acquire", "close"]
    ready, = (line for line in said.getvalue().splitlines() if "event=ready" in line)
    assert "subnet=10.5.1.0/24 device=flannel0 mtu=1472 peers=1" in ready


def test_configuration_is_waited_for_and_each_cause_is_told_once(
        node: Node, said: io.StringIO) -> None:
    node.manager.configs = [*[NoConfig("none yet")] * 3, *[RegistryUnavailable("away")] * 2, ConfigError("bad"), CONFIG]
    with node.running():
        assert [said.getvalue().count(f"reason={word}") for word in ('"none yet"', "away", "bad")] == [1, 1, 1]


def test_registry_that_fails_between_configuration_and_lease_is_waited_for(node: Node, said: io.StringIO) -> None:
    node.manager.leases = [*[RegistryUnavailable("away")] * 3, lease("10.5.1.0/24")]
    with node.running():
        assert node.manager.deeds == ["config", *["acquire"] * 4]
        assert told(said, 'event="waiting for a lease" reason=away') == 1


def test_stop_while_the_registry_does_not_come_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "START_RETRY", 60.0)
    node.manager.leases = [RegistryUnavailable("away")]
    with node.started():
        wait_until(lambda: "acquire" in node.manager.deeds, "it waits")


@pytest.mark.parametrize("step", ["config", "acquire"])
def test_stop_during_the_start(node: Node, step: str) -> None:
    gate = threading.Event()
    if step == "config":
        node.manager.configs = [NoConfig("none yet")]
    else:
        node.manager.leases = [gate.wait]
    with node.started():
        wait_until(lambda: step in node.manager.deeds, "it waits")
    gate.set()


FAILURES: list[tuple[str, Callable[[Node], Any], str]] = [
    ("backend", lambda node: node.backend.refusals.update(make=ConfigError("no such backend")), "no such backend"),
    ("interface", lambda node: node.links.devices.clear(), "no external interface"),
    ("sockets", lambda node: node.tunnel.refusals.update(open_sockets=UnderlayError("port in use")), "port in use"),
    ("tun", lambda node: node.tunnel.refusals.update(check_device=TunError("no tun")), "no tun"),
    ("lease", lambda node: setattr(node.manager, "leases", [OutOfSubnets("all taken")]), "all taken"),
    ("device", lambda node: node.tunnel.refusals.update(open_device=TunError("route taken")), "route taken"),
    ("control", lambda node: node.options.run_dir.joinpath("control.sock").mkdir(parents=True), "not a socket"),
]


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES])
def test_failure_of_any_step_is_one_line_and_leaves_nothing(
        node: Node, spoil: Callable[[Node], Any], words: str, said: io.StringIO) -> None:
    spoil(node)
    assert node.run() == 1
    assert node.nothing_is_left()
    line, = (line for line in said.getvalue().splitlines() if "level=error" in line)
    assert 'event="cannot start"' in line
    assert words in line


def test_devices_are_tried_before_a_lease_is_taken(node: Node) -> None:
    node.tunnel.refusals["check_device"] = TunError("no tun")
    assert node.run() == 1
    assert "acquire" not in node.manager.deeds


def test_second_instance_is_refused(node: Node, said: io.StringIO) -> None:
    with sole_instance(node.options):
        assert node.run() == 1
    assert told(said, "in use by another flannel-udp") == 1


def test_fault_of_the_programs_own_is_not_swallowed(node: Node) -> None:
    node.manager.leases = [ZeroDivisionError("a bug")]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        node.run()
    assert node.nothing_is_left()


@pytest.mark.parametrize("thread", ["subnet-manager", "link-monitor"])
def test_part_that_breaks_down_ends_the_daemon(
        node: Node, said: io.StringIO, thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def events(_: FakeManager, post: Callable[[Any], None]) -> None:
        post(PeersReset(()))
        threading.Timer(0.1, post, [Fault(thread, ZeroDivisionError("a bug"))]).start()

    monkeypatch.setattr(FakeManager, "events", events)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        node.run()
    assert node.nothing_is_left()
    assert told(said, f"thread={thread} reason=\"ZeroDivisionError('a bug')\"") == 1


def test_start_goes_on_without_word_of_peers(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeManager, "events", lambda self, post: setattr(self, "post", post))
    with node.running():
        node.manager.post(PeersReset((lease("10.5.2.0/24", "192.0.2.2"),)))
        wait_until(lambda: node.plane.published, "late peers are routed to")


def test_peers_come_move_and_go(node: Node) -> None:
    two, three = lease("10.5.2.0/24", "192.0.2.2"), lease("10.5.3.0/24", "192.0.2.3")
    with node.running():
        node.manager.post(PeersChanged((two, three), ()))
        wait_until(lambda: len(node.plane.published) == 2, "both are routed to")
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.9"),), (three,)))
        wait_until(lambda: node.plane.published == {"10.5.2.0/24": "192.0.2.9:8285"}, "one moved, one is gone")
        node.manager.post(PeersReset((three,)))
        wait_until(lambda: node.plane.published == {"10.5.3.0/24": "192.0.2.3:8285"}, "others are all there is")


def test_a_batch_is_published_once(node: Node) -> None:
    entered, gate = threading.Event(), threading.Event()
    with node.running():
        before = node.plane.publishes

        def hold() -> None:
            entered.set()
            gate.wait(10)

        node.plane.before_peer = hold
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        assert entered.wait(10)
        for number in range(3, 103):
            node.manager.post(PeersChanged((lease(f"10.5.{number}.0/24", "192.0.2.2"),), ()))
        gate.set()
        wait_until(lambda: len(node.plane.published) == 101, "all are routed to")
        assert node.plane.publishes == before + 2


def test_lost_lease_is_taken_again(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.manager.peers = ()
        node.manager.leases = [RegistryUnavailable("away"), RegistryUnavailable("away"), lease("10.5.1.0/24")]
        node.manager.post(OwnLeaseLost("deleted"))
        wait_until(lambda: node.manager.deeds.count("acquire") == 4, "it is taken again")
        wait_until(lambda: told(said, "lease is held as before"), "that is said")
        assert node.plane.starts == 1
        assert node.env() == "10.5.1.0/24"


def test_status_tells_when_the_lease_expires(node: Node) -> None:
    node.manager.leases = [lease("10.5.1.0/24", expiry=5e9)]

    def told_lease() -> dict[str, Any]:
        told: dict[str, Any] = (node.asked() or {})["lease"]
        return told

    with node.running():
        assert (told_lease()["expiry"], told_lease()["reserved"]) == (5e9, False)
        node.manager.post(OwnLeaseRenewed(lease("10.5.9.0/24", expiry=7e9)))  # one that is no longer held
        node.manager.post(OwnLeaseRenewed(lease("10.5.1.0/24", expiry=6e9)))
        wait_until(lambda: told_lease()["expiry"] == 6e9, "the renewed one is told")
        assert node.env() == "10.5.1.0/24"


def test_data_path_moves_to_another_lease_and_routes_stand(node: Node) -> None:
    heir = lease("10.5.1.0/24", "192.0.2.9")
    with node.running():
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        node.manager.leases = [OutOfSubnets("for a moment"), lease("10.5.7.0/24")]
        node.manager.post(OwnLeaseLost("another has it"))
        node.manager.post(PeersChanged((heir,), ()))  # while the subnet is still thought to be ours
        wait_until(lambda: node.env() == "10.5.7.0/24", "subnet.env tells the new one")
        wait_until(lambda: "10.5.1.0/24" in node.plane.published, "the heir is routed to")
        assert node.plane.own == ("10.5.7.0/24", "10.5.7.0", {"192.0.2.1", "10.5.7.0"})
        assert node.plane.published == {"10.5.2.0/24": "192.0.2.2:8285", "10.5.1.0/24": "192.0.2.9:8285"}
        assert node.plane.starts == 1
        node.manager.post(OwnLeaseChanged(lease("10.5.8.0/24")))
        wait_until(lambda: node.env() == "10.5.8.0/24", "a change from outside is followed, too")


def test_without_a_lease_packets_pass_and_status_says_why(node: Node) -> None:
    with node.running():
        node.manager.leases = [OutOfSubnets("all taken")]
        node.manager.post(OwnLeaseLost("deleted"))
        wait_until(lambda: "no lease: all taken" in (node.asked() or {})["warnings"], "it is said")
        assert node.plane.running


def test_changed_configuration_is_not_obeyed_but_said(node: Node, said: io.StringIO) -> None:
    other = parse_network_config('{"Network": "10.6.0.0/16"}')
    with node.running():
        assert node.asked() is not None
        for _ in range(3):
            node.manager.post(ConfigChanged(other, ""))
        wait_until(lambda: (node.asked() or {})["config_problem"], "status says it")
        assert told(said, "level=warning") == 1
        node.manager.post(ConfigChanged(None, "Network is missing"))
        wait_until(lambda: "is missing; this node keeps the old" in (node.asked() or {})["config_problem"], "both said")
        node.manager.post(ConfigChanged(CONFIG, ""))
        wait_until(lambda: (node.asked() or {"config_problem": 1})["config_problem"] is None, "it is as it was")


def test_deleted_device_is_made_again_with_patience(node: Node) -> None:
    with node.running():
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        node.tunnel.refusals["open_device"] = TunError("cannot open")
        del node.links.devices[10]
        node.links.post(LinkEvent("link gone", 10, "flannel0"))
        wait_until(lambda: (node.asked() or {})["warnings"] == ["no IPv4 packets pass: cannot open"], "status says it")
        assert (node.asked() or {})["devices"] == []
        del node.tunnel.refusals["open_device"]
        wait_until(lambda: node.plane.running, "it is made again")
        wait_until(lambda: (node.asked() or {})["warnings"] == [], "and well")
        assert node.plane.starts == 2
        assert node.plane.published == {"10.5.2.0/24": "192.0.2.2:8285"}


def test_ended_loop_is_started_again_once(node: Node, said: io.StringIO) -> None:
    with node.running():
        late = node.plane.on_exit
        for _ in range(3):  # both loops end, and one of them is told of twice
            node.plane.on_exit("tun_to_udp", OSError(77, "File descriptor in bad state"))
        wait_until(lambda: node.plane.starts == 2 and node.plane.running, "it is started again")
        late("udp_to_tun", OSError(9, "Bad file descriptor"))
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        wait_until(lambda: node.plane.published, "later events are worked on")
    assert told(said, "data path broken") == 1


def test_refusal_while_moving_is_mended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.running():
        def refuse(*_: object) -> bool:
            raise NetlinkError("no such device")

        with monkeypatch.context() as patch:
            patch.setattr(node.links, "delete_address", refuse)
            node.manager.post(OwnLeaseChanged(lease("10.5.7.0/24")))
            wait_until(lambda: node.plane.starts == 2 and node.plane.running, "the path is opened anew")
        assert node.plane.own[0] == "10.5.7.0/24"
        wait_until(lambda: node.env() == "10.5.7.0/24", "subnet.env follows")


def test_heir_is_routed_to_after_a_move_that_failed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the move fails the old subnet counts as ours; the heir's lease comes meanwhile and says nothing again."""
    def refuse(*_: object) -> bool:
        raise NetlinkError("no such device")

    with node.running():
        node.manager.post(PeersChanged((lease("10.5.1.0/24", "192.0.2.9"),), ()))
        wait_until(lambda: (node.asked() or {})["skipped_peers"], "the heir is skipped")
        with monkeypatch.context() as patch:
            patch.setattr(node.links, "delete_address", refuse)
            node.manager.post(OwnLeaseChanged(lease("10.5.7.0/24")))
            wait_until(lambda: node.plane.starts == 2 and node.plane.running, "the path is opened anew")
        wait_until(lambda: node.plane.published == {"10.5.1.0/24": "192.0.2.9:8285"}, "the heir is routed to")
        assert (node.asked() or {})["skipped_peers"] == []


def test_addresses_of_this_host_are_followed(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.links.here.append(LinkAddress(1, ip_interface("198.51.100.1/24")))
        node.links.post(LinkEvent("address", 1))
        wait_until(lambda: "198.51.100.1" in node.plane.own[2], "the new one is told")
        underlay = node.links.here.pop(0)
        node.links.post(LinkEvent("address gone", 2))
        wait_until(lambda: told(said, "192.0.2.1 is no longer on this host"), "the loss of the external one is said")
        assert "192.0.2.1" not in node.plane.own[2]
        node.links.here.append(underlay)
        node.links.post(LinkEvent("lost"))
        wait_until(lambda: "192.0.2.1" in node.plane.own[2], "everything is read anew when events were missed")
        wait_until(lambda: (node.asked() or {})["warnings"] == [], "the warning is gone")


@pytest.mark.parametrize("event", [LinkEvent("route", 10, network=NETWORK), LinkEvent("lost"), None],
                         ids=["event", "lost", "tick"])
def test_what_others_took_from_the_device_is_put_back(
        node: Node, said: io.StringIO, monkeypatch: pytest.MonkeyPatch, event: LinkEvent | None) -> None:
    if event:
        monkeypatch.setattr(daemon, "ASSURE", 1000.0)
    with node.running():
        wait_until(lambda: node.daemon._assure_at, "the first look is over")
        device = node.links.devices[10]
        node.links.devices[10] = replace(device, mtu=9000, up=False)
        node.links.here = [one for one in node.links.here if one.index != 10]
        node.links.routed.clear()
        if event:
            node.links.post(event)
        wait_until(lambda: told(said, "device set right again"), "it is said")
        wait_until(lambda: node.links.routed == {NETWORK: 10}, "all is as it was")
        assert node.links.devices[10] == device
        assert node.plane.starts == 1


def test_route_taken_by_another_is_said_until_it_is_back(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.links.routed[NETWORK] = 2
        wait_until(lambda: "route 10.5.0.0/16 is taken by eth0" in str((node.asked() or {})["warnings"]), "status says")
        assert told(said, "taken by eth0") == 1
        del node.links.routed[NETWORK]
        wait_until(lambda: (node.asked() or {"warnings": 1})["warnings"] == [], "it is well again")
        assert node.links.routed == {NETWORK: 10}


def test_addresses_are_read_when_they_change_and_not_with_every_peer(node: Node) -> None:
    with node.running():
        before = node.links.dumps
        for number in range(2, 22):
            node.manager.post(PeersChanged((lease(f"10.5.{number}.0/24", "192.0.2.2"),), ()))
        wait_until(lambda: len(node.plane.published) == 20, "all are routed to")
        assert node.links.dumps == before
        node.links.here.append(LinkAddress(2, ip_interface("198.51.100.1/24")))
        node.links.post(LinkEvent("address", 2))
        wait_until(lambda: "198.51.100.1" in node.plane.own[2], "the new one is told")
        assert node.links.dumps <= before + 3  # for the data plane, and for the choice of the underlay


def test_unwritable_subnet_file_is_said_and_tried_again(node: Node, said: io.StringIO) -> None:
    node.options.subnet_file.mkdir(parents=True)
    with node.running():
        assert "subnet.env cannot be written" in str((node.asked() or {})["warnings"])
        node.options.subnet_file.rmdir()
        wait_until(node.options.subnet_file.is_file, "it is written when it can be")
    assert told(said, "level=warning") == 1


def test_notices_and_troubles_are_logged(node: Node, said: io.StringIO) -> None:
    with node.running():
        node.plane.heard = [Notice("unknown_sender", 3, "from an address that no peer has", "192.0.2.77")]
        node.manager.post(Trouble("skipped-key", "subnets/junk: not a subnet"))
        wait_until(lambda: told(said, "192.0.2.77") and told(said, "subnets/junk: not a subnet"), "both are told")
        node.manager.post(Trouble("registry-recovered", "the registry answers again"))
        wait_until(lambda: told(said, "answers again"), "good news is told")
    assert told(said, "level=warning") == 2


def test_what_the_kernel_refused_is_said_once(node: Node, said: io.StringIO) -> None:
    with node.running():
        assert node.plane.doors == Doors(vnet=True, uso=False, segment=True, mtu=1472)
        node.plane.on_exit("tun_to_udp", OSError(77, "File descriptor in bad state"))
        wait_until(lambda: node.plane.starts == 2 and node.plane.running, "the path is opened anew")
    assert told(said, "offload refused by the kernel") == 1
    assert told(said, 'offloads=tun_tso4,tun_tso6 reason="Invalid argument"') == 1


def test_what_was_given_up_is_logged_and_shown(node: Node, said: io.StringIO) -> None:
    with node.running():
        before = {line["offload"]: line["state"] for line in (node.asked() or {})["offloads"]}
        assert (before["udp_segment"], before["tun_tso4"], before["udp_gro"]) == ("granted", "refused", "off")
        node.plane.lost = {"udp_segment": "Input/output error"}
        node.plane.heard = [Notice("udp_segment", 1, "one by one", "Input/output error", "offload given up")]
        wait_until(lambda: told(said, 'event="offload given up"'), "it is logged")
        after = {line["offload"]: line["reason"] for line in (node.asked() or {})["offloads"]}
        assert after["udp_segment"] == "Input/output error"


def test_queues_that_cannot_be_steered_are_said_once_and_stand_in_the_status(node: Node, said: io.StringIO) -> None:
    node.tunnel.unsteered = "one queue instead of 4: not permitted"
    with node.running():
        wait_until(lambda: (node.asked() or {})["devices"][0]["index"] == 10, "it is open")
        status = node.asked() or {}
        assert (status["devices"][0]["queues"], status["devices"][0]["queues_asked"]) == (1, 4)
        assert status["warnings"] == ["one queue instead of 4: not permitted"]
        node.plane.on_exit("both_ways", OSError(5, "Input/output error"))
        wait_until(lambda: node.plane.starts == 2, "it is mended")
        assert (node.asked() or {})["warnings"] == ["one queue instead of 4: not permitted"]
    assert told(said, "one queue instead of 4: not permitted") == 1


def test_status_over_the_control_socket(node: Node) -> None:
    node.manager.peers = (lease("10.5.2.0/24", "192.0.2.2"),)
    with node.running():
        status = node.asked() or {}
        assert status["lease"]["subnet"] == "10.5.1.0/24"
        assert status["devices"] == [{"name": "flannel0", "index": 10, "mtu": 1472, "address": "10.5.1.0/32",
                                      "route": str(IPv4Network("10.5.0.0/16")), "queues": 1, "queues_asked": 1}]
        peer, = status["peers"]
        assert peer == {"subnet": "10.5.2.0/24", "underlay": "192.0.2.2", "packets_out": 1, "bytes_out": 84,
                        "packets_in": 2, "bytes_in": 168, "last_heard": None}
        assert status["external_interface"]["reason"] == "it has the default route"
        assert {"fib", "threads", "counters", "config_problem", "version", "skipped_peers"} <= status.keys()
        with pytest.raises(ControlError, match="knows no command 'dance', only health, metrics, status"):
            control.ask(control.socket_path(node.options.run_dir), {"command": "dance"})


def test_stop_takes_less_than_a_second(node: Node) -> None:
    with node.running():
        for number in range(2, 202):
            node.manager.post(PeersChanged((lease(f"10.5.{number}.0/24", "192.0.2.2"),), ()))
        before = time.monotonic()
    assert time.monotonic() - before < 1


def test_living_control_socket_is_given_way_to(node: Node, said: io.StringIO) -> None:
    server = control.serve(control.socket_path(node.options.run_dir), lambda _: {})
    try:
        assert node.run() == 1
    finally:
        server.close()
    assert told(said, "another daemon listens at") == 1


def test_a_question_that_cannot_be_answered_costs_no_packets(
        node: Node, said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    with node.running():
        with monkeypatch.context() as patch:
            patch.setattr(node.plane, "peers", fail)
            with pytest.raises(ControlError, match="a bug"):
                control.ask(control.socket_path(node.options.run_dir), {"command": "status"})
        assert node.plane.running
        assert node.asked()
    assert told(said, "request failed") == 1


def test_status_reads_nothing_of_an_installation_that_may_be_gone(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.running():
        version = (node.asked() or {})["version"]
        monkeypatch.setattr("importlib.metadata.distribution", PackageNotFoundError)
        assert (node.asked() or {})["version"] == version
