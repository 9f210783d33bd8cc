"""A registry, managers on it, what they post, and a registry that can be cut off."""

import queue
import random
import sqlite3
import threading
import time
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from flannel_udp.errors import RegistryRefused, RegistryUnavailable
from flannel_udp.lease import LeaseAttrs, encode_attrs
from flannel_udp.registry import Change, Entry, Listing, StoredConfig
from flannel_udp.registry.bell import ring
from flannel_udp.registry.sqlite import SqliteRegistry, SqliteWatch
from flannel_udp.subnet import (
    SubnetEvent,
    SubnetManager,
)
from flannel_udp.subnet.leased import LeasedSubnetManager
from tests.conftest import DEADLINE

CONFIG = '{"Network":"10.5.0.0/16"}'
DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}'
E = TypeVar("E")


class World:
    """A registry file, any number of managers on it, and their events."""

    def __init__(self, path: Path, config: str = CONFIG) -> None:
        self.path = str(path)
        self.admin = SqliteRegistry(self.path)
        self.admin.write_config(config)
        self.managers: list[LeasedSubnetManager] = []

    def manager(self, **options: object) -> LeasedSubnetManager:
        registry = options.pop("registry", None) or SqliteRegistry(self.path)
        # Others' subnets are named in the tests: one in 255 choices at random would meet them.
        options.setdefault("rng", random.Random(len(self.managers)))
        manager = LeasedSubnetManager(registry, **options)  # type: ignore[arg-type]
        self.managers.append(manager)
        return manager

    def entry(self, key: str) -> Entry:
        return next(entry for entry in self.admin.snapshot().entries if entry.key == key)

    def put(self, key: str, value: bytes, ttl: float | None = 100.0) -> Entry:
        return self.admin.create(key, value, ttl, self.admin.snapshot().revision)

    def lease(self, key: str, ip: str, ttl: float | None = 100.0) -> Entry:
        return self.put(key, encode_attrs(attrs(ip)), ttl)

    def overwrite(self, key: str, value: bytes, ttl: float | None = 100.0) -> Entry:
        return self.admin.update(key, value, ttl, self.entry(key).revision)

    def copy(self, path: Path) -> Path:
        """A backup of the registry."""
        with closing(sqlite3.connect(self.path)) as here, closing(sqlite3.connect(path)) as there:
            here.backup(there)
        return path

    def become(self, other: Path) -> None:
        """Put another registry's file in the place of this one's."""
        self.admin.close()
        for ending in ("-wal", "-shm"):
            Path(self.path + ending).unlink(missing_ok=True)
        other.replace(self.path)
        self.admin = SqliteRegistry(self.path)

    def keys(self) -> list[str]:
        return [entry.key for entry in self.admin.snapshot().entries]

    def close(self) -> None:
        for manager in self.managers:
            manager.close()
        self.admin.close()


class Events:
    """What a manager posted, to be waited for."""

    def __init__(self, manager: SubnetManager) -> None:
        self.queue: queue.Queue[SubnetEvent] = queue.Queue()
        self.seen: list[SubnetEvent] = []
        manager.events(self.queue.put)

    def next(self, kind: type[E]) -> E:
        """The next event of this kind; others before it stay in `seen`."""
        deadline = time.monotonic() + DEADLINE
        while (left := deadline - time.monotonic()) > 0:
            event = self.queue.get(timeout=left)
            self.seen.append(event)
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} among {self.seen}")

    def drain(self) -> list[SubnetEvent]:
        events = []
        while not self.queue.empty():
            events.append(self.queue.get())
        return events


def attrs(ip: str) -> LeaseAttrs:
    return LeaseAttrs(IPv4Address(ip))


class Gated(SqliteRegistry):
    """A registry that can be cut off, or full."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.down = threading.Event()
        self.full = threading.Event()
        self.refusals = 0

    def check(self) -> None:
        if self.down.is_set():
            self.refusals += 1
            raise RegistryUnavailable("cut off by the test")

    def snapshot(self) -> Listing:
        self.check()
        return super().snapshot()

    def read_config(self) -> StoredConfig:
        self.check()
        return super().read_config()

    def watch(self, after: int) -> SqliteWatch:
        self.check()
        return GatedWatch(self, after)

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        self.check()
        if self.full.is_set():
            self.refusals += 1
            raise RegistryRefused("no space left")
        return super().update(key, value, ttl, expected)

    def cut(self) -> None:
        """Fail from now on, watches that wait included."""
        self.down.set()
        ring(self.path)


class GatedWatch(SqliteWatch):
    def __init__(self, registry: Gated, after: int) -> None:
        super().__init__(registry, after)
        self.gate = registry

    def _look(self) -> tuple[Change, ...]:
        self.gate.check()
        return super()._look()
