"""Makes certain that the tests of a sanitized run meet the sanitized modules, and not the release build beside them."""

import importlib
import os
from pathlib import Path


def pytest_configure() -> None:
    folder = os.environ.get("FLANNEL_UDP_SANITIZED")
    if folder is None:
        return
    assert "libasan" in Path("/proc/self/maps").read_text(), "no address sanitizer is loaded: see Makefile"
    for name in ("_dataplane", "_probe"):
        found = importlib.import_module(f"flannel_udp.{name}").__file__
        assert found is not None
        assert Path(found).is_relative_to(folder), f"{found} is imported instead of the build in {folder}"
        assert b"__asan_report" in Path(found).read_bytes(), f"{found} is built without the address sanitizer"
