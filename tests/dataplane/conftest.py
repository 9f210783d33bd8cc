"""Makes certain that the tests of a sanitized run meet the sanitized modules, and not the release build beside them."""

import importlib
import os
from pathlib import Path

import pytest


def pytest_configure() -> None:
    folder = os.environ.get("FLANNEL_UDP_SANITIZED")
    if folder is None:
        return
    if "libasan" not in Path("/proc/self/maps").read_text():
        raise pytest.UsageError("no address sanitizer is loaded: see LD_PRELOAD in the Makefile")
    for name in ("_dataplane", "_probe", "_timing"):
        found = Path(str(importlib.import_module(f"flannel_udp.{name}").__file__))
        if not found.is_relative_to(folder):
            raise pytest.UsageError(f"{found} is imported instead of the build in {folder}")
        if b"__asan_report" not in found.read_bytes():
            raise pytest.UsageError(f"{found} is built without the address sanitizer")
