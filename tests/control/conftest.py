"""What several files of this folder use."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from flannel_udp import logs
from tests.control.daemon_node import Node
from tests.control.leased_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "registry.db")
    yield world
    world.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    logs.configure(2)
    return Node(tmp_path, monkeypatch)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The log. Not capfd, which loses what another thread writes while it is read."""
    log = io.StringIO()
    monkeypatch.setattr("flannel_udp.logs.sys", SimpleNamespace(stderr=log))
    return log
