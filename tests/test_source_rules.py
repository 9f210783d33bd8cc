"""Rules of the house that a file can break without failing: sizes, first lines, stubs, promises of later work."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sorted(file for folder in ("flannel_udp", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
CYTHON = sorted(file for ending in ("pxd", "pyx") for file in (ROOT / "src").rglob(f"*.{ending}"))
EVERY = pytest.mark.parametrize("file", [*PYTHON, *CYTHON], ids=lambda file: str(file.relative_to(ROOT)))
# Split up, so that this file does not find itself.
PROMISES = re.compile("TO" "DO|FIX" "ME|XX" "X|for " "now|not " "implemented", re.IGNORECASE)  # noqa: ISC001


@EVERY
def test_a_file_is_short_enough_to_be_read(file: Path) -> None:
    lines = file.read_text().count("\n")
    assert lines <= 500


@EVERY
def test_a_file_opens_with_its_purpose(file: Path) -> None:
    assert re.match(r'(#|""").{10,}', file.read_text()), "the first line says what the file is for"


@EVERY
def test_nothing_is_promised_for_later(file: Path) -> None:
    assert not PROMISES.search(file.read_text())


def test_no_room_for_odds_and_ends_and_no_generated_files() -> None:
    names = {file.name for file in (ROOT / "src").rglob("*") if file.is_file()}
    assert not {name for name in names if not name.endswith((".pxd", ".pyx", ".md"))}
    assert not [file for file in PYTHON if file.stem in {"utils", "util", "helpers", "common", "misc"}]
    assert not [file for file in CYTHON if re.search(r'^include\s+"', file.read_text(), re.MULTILINE)]


def test_every_folder_of_the_package_is_packed() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in PYTHON if file.is_relative_to(ROOT / "flannel_udp")}
    assert set(packed) == {".".join(folder.parts) for folder in folders}


@pytest.mark.parametrize("name", ["_dataplane", "_probe", "_timing"])
def test_a_stub_names_what_its_module_holds(name: str) -> None:
    module = importlib.import_module(f"flannel_udp.{name}")
    assert module.__file__
    assert module.__file__.endswith(".so")
    stub = ast.parse((ROOT / "flannel_udp" / f"{name}.pyi").read_text())
    told = names_of(stub)
    held = {key for key, value in vars(module).items() if not key.startswith("_") and not inspect.ismodule(value)}
    assert held == {key for key in told if not key.startswith("_")}
    for node in stub.body:
        if isinstance(node, ast.ClassDef) and node.name in held:
            members = {key for key in vars(getattr(module, node.name)) if not key.startswith("_")}
            assert members == {key for key in names_of(node) if not key.startswith("_")}, node.name


def names_of(body: ast.Module | ast.ClassDef) -> set[str]:
    """What a stub defines."""
    names = set()
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def test_the_makefile_describes_every_target_that_it_lists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("all", "demo", "test", "lint", "sanitized", "fuzz", "bench", "clean", "help"):
        assert re.search(rf"^{target}:.*  ## \w", makefile, re.MULTILINE), target
