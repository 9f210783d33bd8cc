"""What several files of this folder use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.leased_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "registry.db")
    yield world
    world.close()
