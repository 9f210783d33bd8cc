"""What others take from the host comes back: routes, blackholes, links; and cleanup undoes what a daemon left."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry

from ..conftest import require_tun, wait_until
from .firewalled import HOSTS, ready, require_firewalls, routes
from .node_daemon import Daemon
from .test_daemon import cluster, reached, registry  # noqa: F401 - fixtures
from .topology import Topology

MakeTopology = Callable[..., Topology]
DUAL = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {"Type": "udp"}}'


@pytest.mark.parametrize("deed", ["route flush proto 82", "link set flannel0 down", "link del flannel0"])
def test_routes_of_ours_come_back(cluster: list[Daemon], deed: str) -> None:  # noqa: F811 - the fixture
    one, two = cluster
    one.node.ip(deed)
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")
    route, = routes(one.node, "route", "show", "proto", "82")
    assert (route["dst"], route["dev"]) == ("10.5.0.0/16", "flannel0")


def test_flushed_table_is_made_good_as_far_as_it_is_ours(cluster: list[Daemon]) -> None:  # noqa: F811
    one, two = cluster
    host = one.node.run("ip", "route", "show", "proto", "kernel").stdout.splitlines()
    one.node.ip("route flush table main")
    one.node.ip(*(f"route replace {line}" for line in host))  # what the host's own network manager does
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")


def test_flap_of_the_external_link_is_survived(cluster: list[Daemon]) -> None:  # noqa: F811
    one, two = cluster
    one.node.ip("link set eth0 down", "link set eth0 up")
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other again")
    assert "data path broken" not in one.log()


@pytest.fixture
def holed(topology: MakeTopology, tmp_path: Path) -> Daemon:
    """A daemon of a dual-stack network with blackhole routes; no pods, so no bridge."""
    require_tun()
    require_firewalls()
    url = f"sqlite://{tmp_path}/registry.db"
    opened = open_registry(url)
    opened.write_config(DUAL)
    opened.close()
    daemon = Daemon(topology(1).nodes[0], tmp_path, url, "", "--iface=eth0", "--ip-blackhole-route",
                    "--iptables-resync=1", "--ip-masq")
    ready(daemon)
    return daemon


def holes(daemon: Daemon) -> list[str]:
    """The blackhole routes of both families."""
    return [route["dst"] for family in ("-4", "-6")
            for route in routes(daemon.node, family, "route", "show", "type", "blackhole")]


def test_blackholes_come_back_and_end_with_the_daemon(holed: Daemon) -> None:
    before = holes(holed)
    assert before[0] == str(holed.subnet())
    assert len(before) == 2
    for subnet in before:
        holed.node.ip(f"route del blackhole {subnet}")
        wait_until(lambda: holes(holed) == before, f"{subnet} is back")
    holed.end(signal.SIGTERM)
    assert holes(holed) == []


def test_blackhole_keeps_packets_for_nobody_out_of_the_tunnel(holed: Daemon) -> None:
    before = holed.status()["counters"]["out"]["packets_ipv4"]
    assert holed.node.ping(holed.subnet()[77], "-W", "1").returncode
    assert holed.status()["counters"]["out"]["packets_ipv4"] == before
    pod = holed.node.add_pod(holed.subnet())
    assert holed.node.ping(pod.address).returncode == 0


def cleanup(daemon: Daemon) -> tuple[int, str]:
    places = (f"--{name}={daemon.home}/{file}" for name, file in (
        ("run-dir", "run"), ("state-dir", "state"), ("subnet-file", "subnet.env")))
    done = daemon.node.run(sys.executable, "-m", "flannel_udp.cli", "cleanup", *places, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("engine", HOSTS)
def test_cleanup_removes_all_of_ours_and_nothing_else(holed: Daemon, engine: str) -> None:
    node = holed.node
    for command in HOSTS[engine]:
        node.run(*command)
    wait_until(lambda: holed.status()["firewall"]["engine"] == engine, "rules are there")
    node.run("nft", "add", "table", "inet", "others")
    node.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "203.0.113.0/24", "-j", "MASQUERADE")
    node.ip("route add blackhole 203.0.113.0/24", "route add 10.5.200.0/24 via 192.0.2.9")
    assert cleanup(holed)[0] == 1
    assert "in use by another flannel-udp" in cleanup(holed)[1]
    holed.end(signal.SIGKILL)
    status, told = cleanup(holed)
    assert status == 0
    for what in ("table inet" if engine == "nft" else "FLANNEL-UDP-POSTRTG", "blackhole route 10.5.",
                 "blackhole route fd05:", "control.sock", "kept "):
        assert what in told
    rules = "".join(node.run(*words.split()).stdout for words in (
        "nft list ruleset", "iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"))
    assert "10.5." not in rules
    assert "FLANNEL" not in rules.upper()
    assert "table inet others" in rules
    assert "-s 203.0.113.0/24 -j MASQUERADE" in rules
    assert holes(holed) == ["203.0.113.0/24"]
    assert routes(node, "route", "show", "10.5.200.0/24")
    assert holed.left() == {"subnet.env"}
    assert cleanup(holed) == (0, f"nothing to remove\n{told.splitlines()[-1]}\n")


def test_docker_is_told_when_the_subnet_is_routed_elsewhere(holed: Daemon) -> None:
    out = holed.home / "docker"
    words = ["-m", "flannel_udp.cli", "mk-docker-opts", "-f", f"{holed.home}/subnet.env", "-d", f"{out}"]
    assert holed.node.run(sys.executable, *words).returncode == 0
    assert f"--bip={holed.subnet()[1]}/24" in out.read_text()
    holed.node.ip(f"route add {holed.subnet()} via 192.0.2.9")
    done = holed.node.run(sys.executable, *words, check=False)
    assert done.returncode == 1
    assert f"{holed.subnet()} via 192.0.2.9" in done.stderr
