"""Condition and probes: what /healthz, /readyz and /metrics say of a daemon through its life (its world on paper)."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp import condition, daemon
from flannel_udp.errors import ConfigError, OutOfSubnets, RegistryUnavailable, TunError
from flannel_udp.link import LinkEvent
from flannel_udp.subnet import ConfigChanged, OwnLeaseLost, OwnLeaseRenewed, PeersChanged

from ..conftest import DEADLINE, wait_until
from .daemon_node import Node
from .fakes import CONFIG, lease


@pytest.fixture
def node(node: Node) -> Node:
    """A node with a health server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node.options = replace(node.options, healthz_ip=IPv4Address("127.0.0.1"), healthz_port=port)
    node.daemon = daemon.Daemon(node.options, node.manager)
    return node


def get(node: Node, path: str) -> tuple[int, list[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", node.options.healthz_port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode().splitlines()
    except ConnectionRefusedError:
        return 0, []
    finally:
        connection.close()


def missing(node: Node) -> list[str]:
    """What /readyz names; its status tells the same."""
    status, (head, *lines) = get(node, "/readyz")
    assert (status, head) == ((503, "flannel-udp is not ready") if lines else (200, "flannel-udp is ready"))
    return lines


def figures(node: Node) -> dict[str, float]:
    status, lines = get(node, "/metrics")
    assert status == 200
    return {sample.name.removeprefix("flannel_udp_") + "".join(f" {value}" for value in sample.labels.values()):
            sample.value for family in text_string_to_metric_families("\n".join(lines) + "\n")
            for sample in family.samples}


def test_while_it_waits_at_the_start_it_is_healthy_not_ready_and_says_why(node: Node) -> None:
    node.manager.configs = [ConfigError("Network is missing")]
    with node.started():
        wait_until(lambda: get(node, "/healthz")[0], "it listens")
        assert get(node, "/healthz") == (200, ["flannel-udp is running"])
        wait_until(lambda: missing(node) == ["waiting for the network configuration: Network is missing"], "it says so")
        assert figures(node)["ready"] == 0
        node.manager.leases = [RegistryUnavailable("nobody answers")]
        node.manager.configs.append(CONFIG)
        wait_until(lambda: missing(node) == ["waiting for a lease: nobody answers"], "it says so")
        node.manager.leases.append(lease("10.5.1.0/24"))
        wait_until(lambda: missing(node) == [], "it is ready")
        assert figures(node)["ready"] == 1
    assert get(node, "/healthz")[0] == 0


def test_an_errand_that_hangs_at_the_start_is_no_illness(node: Node) -> None:
    gate = threading.Event()
    node.manager.leases = [lambda: gate.wait(DEADLINE) and lease("10.5.1.0/24")]
    with node.started():
        wait_until(lambda: "acquire" in node.manager.deeds, "it asks for a lease")
        assert get(node, "/healthz")[0] == 200
        assert missing(node) == ["starting"]
        gate.set()
        wait_until(lambda: missing(node) == [], "it is ready")


def test_a_lease_that_is_lost_or_over_is_missing(node: Node) -> None:
    with node.running():
        assert missing(node) == []
        node.manager.leases = [OutOfSubnets("all taken")]
        node.manager.post(OwnLeaseLost("lease 10.5.1.0-24 expired or was deleted"))
        wait_until(lambda: missing(node) == ["lease: lease 10.5.1.0-24 expired or was deleted",
                                             "lease: no lease: all taken"], "both are said")
        node.manager.leases = [lease("10.5.1.0/24", expiry=time.time() + 3600)]
        wait_until(lambda: missing(node) == [], "it is had again")
        node.manager.post(OwnLeaseRenewed(lease("10.5.1.0/24", expiry=time.time() - 1)))
        wait_until(lambda: missing(node) == ["lease: 10.5.1.0-24 has expired"], "its end is said")
        assert figures(node)["lease_expiry_timestamp_seconds"] < time.time()


def test_a_registry_that_is_away_is_missing_after_its_grace(node: Node) -> None:
    with node.running():
        node.manager.trouble, node.manager.lag = "no route to host", condition.REGISTRY_GRACE - 5
        assert missing(node) == []
        assert (figures(node)["registry_up"], figures(node)["watch_lag_seconds"]) == (0, node.manager.lag)
        node.manager.lag = condition.REGISTRY_GRACE + 5
        assert missing(node) == ["registry: not heard for 65 s: no route to host"]
        node.manager.trouble = ""
        assert missing(node) == []
        assert figures(node)["registry_up"] == 1


def test_a_broken_data_path_is_missing(node: Node) -> None:
    with node.running():
        before = figures(node)
        assert (before["data_path_up ipv4"], before["data_path_breaks_total ipv4"]) == (1, 0)
        node.tunnel.refusals["open_device"] = TunError("cannot open")
        del node.links.devices[10]
        node.links.post(LinkEvent("link gone", 10, "flannel0"))
        wait_until(lambda: missing(node) == ["data path: no IPv4 packets pass: cannot open"], "it is said")
        after = figures(node)
        assert after["data_path_up ipv4"] == 0
        assert after["data_path_breaks_total ipv4"] >= 2
        del node.tunnel.refusals["open_device"]
        wait_until(lambda: missing(node) == [], "it is mended")


def test_an_address_that_is_gone_is_missing_and_a_changed_configuration_is_not(node: Node) -> None:
    with node.running():
        gone = node.links.here.pop(0)
        node.links.post(LinkEvent("address gone", 2))
        line = wait_until(lambda: missing(node), "it is said")[0]
        assert line.startswith("external: the underlay address 192.0.2.1 is no longer on this host")
        assert figures(node)["problem external"] == 1
        node.links.here.append(gone)
        node.links.post(LinkEvent("address", 2))
        wait_until(lambda: missing(node) == [], "it is back")
        for event, changed, invalid in ((ConfigChanged(replace(CONFIG, subnet_len=25), ""), 1, 0),
                                        (ConfigChanged(None, "not JSON"), 0, 1), (ConfigChanged(CONFIG, ""), 0, 0)):
            node.manager.post(event)
            wait_until(lambda: (figures(node)["config_changed"], figures(node)["config_invalid"])
                       == (changed, invalid), "it is told")  # noqa: B023 - called at once
            assert missing(node) == []


def test_a_frozen_owner_is_neither_healthy_nor_ready(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "PATIENCE", 0.2)
    entered, gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        gate.wait(DEADLINE)

    with node.running():
        node.plane.before_peer = hold
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        assert entered.wait(DEADLINE)
        words = "the daemon did not find time to answer within 0.2 s"
        assert get(node, "/healthz") == (503, [f"flannel-udp is not well: {words}"])
        assert missing(node) == [words]
        assert get(node, "/metrics") == (503, [words])
        gate.set()
        wait_until(lambda: get(node, "/healthz")[0] == 200, "it is well again")
        assert figures(node)["peers ipv4"] == 1


def test_a_health_port_in_use_ends_the_start_and_leaves_nothing(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", node.options.healthz_port)):
        assert node.run() == 1
    assert node.nothing_is_left()
    assert "Address already in use" in capfd.readouterr().err


def test_without_the_port_nothing_listens_and_nothing_is_loaded() -> None:
    code = ("import sys, flannel_udp.daemon\n"
            "sys.exit(bool({'flannel_udp.health', 'http.server', 'prometheus_client'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=DEADLINE).returncode == 0
