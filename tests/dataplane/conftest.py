"""Makes certain that the tests of a sanitized run meet the sanitized modules, and not the release build beside them."""

import importlib
import os
from pathlib import Path

import pytest

SANITIZERS = {"sanitized": ("libasan", b"__asan_report"), "races": ("libtsan", b"__tsan_")}
"""By the name of the build's folder: what must be loaded, and what a module built for it calls."""


def pytest_configure() -> None:
    folder = os.environ.get("FLANNEL_UDP_SANITIZED")
    if folder is None:
        return
    library, called = SANITIZERS[Path(folder).name]
    if library not in Path("/proc/self/maps").read_text():
        raise pytest.UsageError(f"{library} is not loaded: see LD_PRELOAD in the Makefile")
    for name in ("_dataplane", "_probe", "_timing"):
        found = Path(str(importlib.import_module(f"flannel_udp.{name}").__file__))
        if not found.is_relative_to(folder):
            raise pytest.UsageError(f"{found} is imported instead of the build in {folder}")
        if called not in found.read_bytes():
            raise pytest.UsageError(f"{found} is built without {library}")
