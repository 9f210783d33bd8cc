"""The table of mutations fits the tree: each text stands there once, and each test is there to be named."""

import shlex
from pathlib import Path

import pytest

from .table import TABLE, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", TABLE, ids=lambda mutation: f"{Path(mutation.file).stem}: {mutation.guard}")
def test_there_is_what_is_to_be_mutated_and_who_is_to_notice(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    file, *chosen = shlex.split(mutation.test)
    tests = (ROOT / file).read_text()
    assert not chosen or chosen[1].split(" and ")[0] in tests
