"""Builds the three extension modules from src/; everything else about the package stands in pyproject.toml.

Environment:
  FLANNEL_UDP_STRICT=1    Cython warnings, Cython performance hints and gcc warnings end the build
  FLANNEL_UDP_SANITIZE=address,undefined  or thread: gcc's sanitizers of these names (the Makefile's sanitized, races)
"""

import contextlib
import io
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

STRICT = os.environ.get("FLANNEL_UDP_STRICT") == "1"
SANITIZE = os.environ.get("FLANNEL_UDP_SANITIZE", "")

# -g0 in the release build: debug records would be four fifths of the shared object.
# Packets are bytes seen through header structs, which C's aliasing rules would let the compiler reorder (it did).
COMPILE = ["-std=gnu11", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall", "-Wextra"]
COMPILE += ["-O1", "-g", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else ["-O3", "-g0"]
COMPILE += ["-Werror"] if STRICT else []
LINK = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
# A folder per kind of build: what one kind translated must not pass for up to date in another.
GENERATED = "build/cython" + (f"-{SANITIZE.partition(',')[0]}" if SANITIZE else "-strict" if STRICT else "")

MODULES = {"_dataplane": "worker.pyx", "_probe": "probe.pyx", "_timing": "timing.pyx"}


def extension(module: str, source: str) -> Extension:
    """Describe one extension module; every room of src/ counts as its dependency."""
    return Extension(
        f"flannel_udp.{module}",
        [f"src/{source}"],
        depends=sorted(str(room) for room in Path("src").rglob("*.pxd")),
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )


def translated() -> list[Extension]:
    """Translate src/*.pyx to C under build/; under STRICT whatever Cython remarks upon ends the build."""
    Options.warning_errors = STRICT
    remarks = io.StringIO()
    with contextlib.redirect_stderr(remarks if STRICT else sys.stderr):
        extensions = cythonize(
            [extension(name, source) for name, source in MODULES.items()],
            include_path=["src"],
            build_dir=GENERATED,
            force=STRICT,  # a second try must remark again upon what ended the first
            compiler_directives={"language_level": "3str", "boundscheck": False, "wraparound": False,
                                 "cdivision": True, "initializedcheck": False, "freethreading_compatible": True},
        )
    sys.stderr.write(remarks.getvalue())
    if "performance hint" in remarks.getvalue():
        sys.exit("setup.py: Cython performance hints are errors in a strict build (FLANNEL_UDP_STRICT=1)")
    return extensions


setup(ext_modules=translated())
