"""The daemon as a service: with CAP_NET_ADMIN and nothing else, under systemd's protocol, probed and scraped."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.registry import open_registry
from flannel_udp.underlay import SOCKET_BUFFER

from ..conftest import DEADLINE, require, require_commands, require_tun, wait_until
from .as_nobody import NOBODY
from .node_daemon import Daemon
from .test_daemon import reached
from .topology import Topology

PORT = 10270
NET_ADMIN = f"{1 << 12:016x}"  # specification: linux/capability.h
HEALTHY = (200, "flannel-udp is running\n")


class Service(Daemon):
    """A daemon that runs as nobody, with one capability; a health server, and a socket of systemd's."""

    def start(self) -> None:
        os.chown(self.home, NOBODY, NOBODY)
        words = ["-P", str(Path(__file__).with_name("as_nobody.py")), "--net-admin", "env",
                 f"NOTIFY_SOCKET={self.home}/notify", "WATCHDOG_USEC=100000", sys.executable]
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.words: list[str] = []
        self.systemd.bind(f"{self.home}/notify")
        (self.home / "notify").chmod(0o666)
        with (self.home / "log").open("a") as log:
            self.process = self.node.start(sys.executable, *words, *self.argv, f"--healthz-port={PORT}", output=log)

    def get(self, path: str) -> tuple[int, str]:
        """A page; status 0 where nobody listens."""
        with self.node.entered():
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=DEADLINE)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except ConnectionRefusedError:
                return 0, ""
            finally:
                connection.close()

    def figures(self) -> dict[tuple[str, ...], float]:
        """By name and values of labels."""
        return {(sample.name.removeprefix("flannel_udp_"), *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(self.get("/metrics")[1]) for sample in family.samples}

    def told(self, word: str) -> bool:
        """Whether systemd was told this, by now and since the start."""
        self.systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.words.append(self.systemd.recv(1 << 16).decode())
        return any(word in said for said in self.words)

    def heard(self, word: str) -> None:
        """Wait until systemd is told this."""
        wait_until(lambda: self.told(word), f"systemd is told {word}")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that nobody may enter and write to, with a registry; pytest's own is closed to others."""
    place = Path(tempfile.mkdtemp(prefix="flannel-udp-"))
    with closing(open_registry(f"sqlite://{place}/registry.db")) as opened:
        opened.write_config('{"Network": "10.5.0.0/16"}')
    for file in (place, *place.iterdir()):
        os.chown(file, NOBODY, NOBODY)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def services(topology: Callable[..., Topology], home: Path) -> Iterator[list[Service]]:
    """Two nodes with services and a pod each."""
    require_tun()
    require_commands("setpriv", "ss")
    require(os.getuid() == 0, "needs root to become nobody with one capability")
    made = [Service(node, home, f"sqlite://{home}/registry.db") for node in topology(2).nodes]
    for service in made:
        service.heard("READY=1")
        service.node.add_pod(service.subnet())
    yield made
    for service in made:
        service.systemd.close()


def test_one_capability_is_enough_for_all_of_it(services: list[Service]) -> None:
    one, two = services
    told = dict(line.split(":\t") for line in Path(f"/proc/{one.process.pid}/status").read_text().splitlines())
    assert told["Uid"].split() == [str(NOBODY)] * 4
    assert {told[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {NET_ADMIN}
    assert told["NoNewPrivs"] == "1"
    wait_until(lambda: reached(one, two) and reached(two, one), "pods reach each other")
    assert {line["state"] for line in one.status()["offloads"]} == {"granted"}
    assert one.status()["warnings"] == []
    # What only the capability allows: buffers above the host's limit, and no IPv6 noise on the device.
    assert f"rb{2 * SOCKET_BUFFER}" in one.node.run("ss", "-uanm", "sport = :8285").stdout
    assert one.node.run("cat", "/proc/sys/net/ipv6/conf/flannel0/disable_ipv6").stdout == "1\n"
    one.node.ip("link del flannel0")
    wait_until(lambda: reached(one, two), "the device is made again")
    assert "level=error" not in one.log()
    assert one.end(signal.SIGTERM) == 0
    assert one.left() - {"notify"} == {"subnet.env", "state/subnet.env"}


def test_pages_and_systemd_tell_of_a_nodes_life(services: list[Service]) -> None:
    one, two = services
    assert one.get("/healthz") == HEALTHY
    assert one.get("/readyz") == (200, "flannel-udp is ready\n")
    wait_until(lambda: one.status()["peers"], "it has a peer")
    one.heard("device flannel0, 1 peers")
    before, size = one.figures(), 84  # of a ping as it is sent by default
    assert one.node.pods[0].ping(two.node.pods[0].address, count=3).returncode == 0
    one.node.pods[0].ping("10.5.255.9", "-W", "1")
    wait_until(lambda: one.figures()["dropped_packets_total", "out", "ipv4", "no_route"] == 1, "the drop is told")
    after = one.figures()
    for direction in ("out", "in"):
        assert after["packets_total", direction, "ipv4"] - before["packets_total", direction, "ipv4"] == 3
        assert after["bytes_total", direction, "ipv4"] - before["bytes_total", direction, "ipv4"] == 3 * size
    assert after["peers", "ipv4"] == 1
    assert after["watch_lag_seconds",] < DEADLINE
    assert after["lease_expiry_timestamp_seconds",] > time.time() + 80000
    assert 0 <= after["lease_age_seconds",] < DEADLINE
    for direction, counters in one.status()["counters"].items():
        told = after["packets_total", direction, "ipv4"] + sum(
            value for key, value in after.items() if key[:2] == ("dropped_packets_total", direction))
        assert counters["packets"] == told
    one.process.send_signal(signal.SIGTERM)
    one.heard("STOPPING=1")
    assert one.process.wait(10) == 0
    assert one.get("/healthz")[0] == 0


def test_a_stopped_process_is_not_fed_and_not_healthy_again_until_it_goes_on(services: list[Service]) -> None:
    one = services[0]
    one.heard("WATCHDOG=1")
    one.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{one.process.pid}/status").read_text(), "it stands still")
    one.told("")
    one.words.clear()
    time.sleep(2.0)  # twice the tick in which it is fed
    assert not one.told("")
    one.process.send_signal(signal.SIGCONT)
    one.heard("WATCHDOG=1")
    assert one.get("/healthz") == HEALTHY
