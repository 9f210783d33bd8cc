"""notify: a real socket of systemd's kind hears what the protocol says, and the watchdog only from a living owner."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryUnavailable
from flannel_udp.notify import Supervisor
from flannel_udp.subnet import OwnLeaseLost, PeersChanged

from ..conftest import DEADLINE, wait_until
from .daemon_node import Node
from .fakes import lease


class Systemd:
    """The other end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def hear(self) -> str:
        return self.socket.recv(1 << 16).decode()

    def hear_until(self, word: str) -> list[str]:
        heard = [self.hear()]
        while word not in heard[-1]:
            heard.append(self.hear())
        return heard

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(DEADLINE)
        return False


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    place = tmp_path_factory.mktemp("systemd")  # not the node's folder, of which nothing may be left
    opened = Systemd(str(place / "notify") if request.param == "path" else f"@flannel-udp-test-{os.getpid()}")
    yield opened
    opened.socket.close()


def test_each_word_is_a_datagram(systemd: Systemd) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.name})
    supervisor.status("two\nlines")
    supervisor.ready()
    supervisor.status("two\nlines")
    supervisor.status("another")
    supervisor.stopping()
    assert [systemd.hear() for _ in range(4)] == [
        "STATUS=two lines", "READY=1", "STATUS=another", "STOPPING=1\nSTATUS=stopping"]
    supervisor.feed()
    assert systemd.silent()  # nobody asked for a watchdog's food


def test_the_watchdog_is_fed_twice_in_its_time(systemd: Systemd) -> None:
    now = [100.0]
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "30000000",
                             "WATCHDOG_PID": str(os.getpid())}, lambda: now[0])
    for time, fed in ((100.0, True), (101.0, False), (114.9, False), (115.0, True), (129.0, False), (131.0, True)):
        now[0] = time
        supervisor.feed()
        assert (not fed and systemd.silent()) or (fed and systemd.hear() == "WATCHDOG=1"), time


@pytest.mark.parametrize("environ", [{"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}])
def test_a_watchdog_of_another_process_is_not_fed(systemd: Systemd, environ: dict[str, str]) -> None:
    Supervisor({"NOTIFY_SOCKET": systemd.name, **environ}).feed()
    assert systemd.silent()


def test_without_systemd_nothing_happens_and_no_child_inherits_it(systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "HOME": "/"}
    Supervisor(environ)
    assert environ == {"HOME": "/"}
    supervisor = Supervisor({"WATCHDOG_USEC": "1"})
    for deed in (supervisor.ready, supervisor.feed, supervisor.stopping):
        deed()


def test_a_socket_that_is_gone_or_full_is_a_line_in_the_log_and_no_wait(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert 'event="systemd cannot be told"' in capfd.readouterr().err
    full = Systemd(str(tmp_path / "full"))
    supervisor = Supervisor({"NOTIFY_SOCKET": full.name, "WATCHDOG_USEC": "2"}, lambda: 0.0)
    for number in range(1000):
        supervisor.status(str(number))
    assert "Resource temporarily unavailable" in capfd.readouterr().err
    while not full.silent():
        pass
    supervisor.feed()
    assert full.hear() == "WATCHDOG=1"
    full.socket.close()


def test_systemd_hears_of_a_daemons_whole_life(
        node: Node, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    node.manager.configs = [RegistryUnavailable("nobody answers"), *node.manager.configs]
    with node.running():
        assert systemd.hear() == "STATUS=waiting for the network configuration: nobody answers"
        assert [systemd.hear(), systemd.hear()] == ["STATUS=subnet 10.5.1.0/24, device flannel0, 0 peers", "READY=1"]
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        assert systemd.hear() == "STATUS=subnet 10.5.1.0/24, device flannel0, 1 peers"
        node.manager.leases = [RegistryUnavailable("away")]
        node.manager.post(OwnLeaseLost("expired"))
        assert "lease: expired" in systemd.hear_until("STATUS=lease")[-1]
    assert systemd.hear_until("STOPPING")[-1] == "STOPPING=1\nSTATUS=stopping"


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
def test_a_frozen_owner_feeds_no_watchdog(node: Node, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is held where it works on an event; all other threads live on."""
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    entered, gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        gate.wait(DEADLINE)

    with node.running():
        for _ in range(3):
            systemd.hear_until("WATCHDOG=1")
        node.plane.before_peer = hold
        node.manager.post(PeersChanged((lease("10.5.2.0/24", "192.0.2.2"),), ()))
        assert entered.wait(DEADLINE)
        while not systemd.silent():
            pass
        systemd.socket.settimeout(0.5)  # 25 times the interval
        with pytest.raises(TimeoutError):
            systemd.hear()
        systemd.socket.settimeout(DEADLINE)
        gate.set()
        systemd.hear_until("WATCHDOG=1")


def test_a_stopped_process_feeds_no_watchdog_either(tmp_path: Path) -> None:
    """The same from outside: what systemd sees of a program under SIGSTOP."""
    systemd = Systemd(str(tmp_path / "notify"))
    code = ("import time\nfrom flannel_udp.notify import Supervisor\ns = Supervisor()\n"
            "while True: s.feed(); time.sleep(0.01)")
    with subprocess.Popen([sys.executable, "-c", code], env={
            **os.environ, "NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "20000"}) as child:
        try:
            systemd.hear_until("WATCHDOG=1")
            child.send_signal(signal.SIGSTOP)
            wait_until(lambda: "T (stopped)" in Path(f"/proc/{child.pid}/status").read_text(), "it stands still")
            while not systemd.silent():
                pass
            systemd.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                systemd.hear()
            child.send_signal(signal.SIGCONT)
            systemd.socket.settimeout(DEADLINE)
            assert systemd.hear() == "WATCHDOG=1"
        finally:
            child.kill()
    systemd.socket.close()
