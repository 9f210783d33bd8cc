"""A daemon in a thread, with everything around it on paper (fakes.py)."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from flannel_udp import control, daemon, host, takeover
from flannel_udp.backend import path as path_module
from flannel_udp.daemon import Daemon
from flannel_udp.errors import (
    ControlError,
)
from flannel_udp.link import LinkAddress
from flannel_udp.options import NodeOptions
from flannel_udp.subnet_env import read_subnet_env

from ..conftest import wait_until
from .fakes import CONFIGS, FakeBackend, FakeFirewall, FakeLinks, FakeManager, FakePlane, FakeTunnel, lease_of


class Node:
    """A daemon in a thread, and what stands around it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, families: tuple[int, ...] = (4,),
                 tunnelled: Sequence[int] | None = None) -> None:
        self.options = NodeOptions(run_dir=root / "run", state_dir=root / "state", subnet_file=root / "subnet.env")
        own = lease_of(families, 1, 1)
        self.manager = FakeManager(configs=[CONFIGS[families]], leases=[own], updates=[own], attrs=own.attrs)
        self.links = FakeLinks()
        if 6 in families:
            self.links.here.append(LinkAddress(2, ip_interface("2001:db8::1/64")))
        self.backend = FakeBackend(self.links, families if tunnelled is None else tunnelled)
        self.tunnels = {tunnel.family: tunnel for tunnel in self.backend.tunnels}
        self.firewall = FakeFirewall()
        self.left: list[Any] = []
        self.flanneld: int | None = None
        self.status: int | BaseException | None = None
        monkeypatch.setattr(daemon, "Links", lambda: self.links)
        monkeypatch.setattr(daemon, "LinkMonitor", self.links.monitor)
        monkeypatch.setattr(daemon, "backend_of", lambda _: self.backend)
        monkeypatch.setattr(path_module, "host_warnings", lambda *_: [])
        monkeypatch.setattr(host, "Firewall", self.firewall)
        monkeypatch.setattr(host, "leftovers", lambda *_: self.left)
        monkeypatch.setattr(takeover, "running", lambda: self.flanneld)
        for name, value in {"TICK": 0.02, "START_RETRY": 0.01, "LEASE_RETRY_MIN": 0.01, "FIRST_PEERS": 0.2,
                            "ASSURE": 0.02}.items():
            monkeypatch.setattr(daemon, name, value)
        for name in ("DELAY_MIN", "DELAY_MAX"):
            monkeypatch.setattr(path_module, name, 0.01)
        self.daemon = Daemon(self.options, self.manager)

    @property
    def tunnel(self) -> FakeTunnel:
        """That of IPv4."""
        return self.tunnels[4]

    @property
    def plane(self) -> FakePlane:
        """Its data plane."""
        return self.tunnel.plane

    def run(self) -> int:
        """Start, and wait for the end in this thread."""
        return self.daemon.run()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be ready inside the block, and stopped cleanly after it."""
        with self.started():
            wait_until(lambda: self.asked() is not None, "the daemon is ready")
            yield

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        def run() -> None:
            try:
                self.status = self.daemon.run()
            except BaseException as error:
                self.status = error
                raise

        self.backend.external = None  # of a run before
        self.daemon = Daemon(self.options, self.manager)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self.daemon.stop()
            thread.join(10)
        assert not thread.is_alive()
        assert self.status == 0
        assert self.nothing_is_left()

    def asked(self) -> dict[str, Any] | None:
        with contextlib.suppress(ControlError):
            return control.ask(control.socket_path(self.options.run_dir), {"command": "status"})
        return None

    def nothing_is_left(self) -> bool:
        left = {file.name for file in self.options.run_dir.parent.rglob("*") if not file.is_dir()} - {"subnet.env"}
        return self.backend.all_closed() and self.links.opened == 0 and not left and self.manager.deeds[-1] == "close"

    def env(self) -> str:
        return str(read_subnet_env(self.options.subnet_file).subnet)
