"""Who may import whom: the rules that keep the two planes, and the floors within them, apart.

Checked on the text of the files, so that an import inside a function or for type checkers counts as any other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / "flannel_udp"
CYTHON = ROOT / "src"

# A module of the package, or a folder of modules, and what of ours it may import. A folder may always import itself.
VALUES = {"errors", "foreign_json", "lease", "config", "options", "etcd_options", "logs", "link", "offload", "named",
          "paths"}
# They touch the outside world.
DOORS = {"registry", "netlink", "tun", "steering", "underlay", "firewall", "subnet_env", "control", "instance",
         "health", "notify"}
DECISIONS = {"subnet", "backend", "forwarder", "takeover", "cleanup", "docker_opts"}
# The owner thread, its queue, what it tells.
OWNER = {"daemon", "inbox", "status", "condition", "probes", "metrics", "host"}
WORDS = {"headers", "dissect", "render"}  # they explain and show; bytes and values in, text out
FLOORS = {
    **dict.fromkeys(VALUES, VALUES),
    **dict.fromkeys(WORDS, WORDS | {"errors"}),
    **dict.fromkeys(DOORS, VALUES),
    **dict.fromkeys(DECISIONS, VALUES | DOORS | DECISIONS),
    **dict.fromkeys(OWNER, VALUES | DOORS | DECISIONS | OWNER),
    "cni": {"errors", "foreign_json", "named", "paths", "subnet_env", "control"},
    "lab": VALUES | DOORS | DECISIONS | WORDS | {"cni", "daemon"},
    "cli": VALUES | DOORS | DECISIONS | WORDS | {"cni", "daemon", "lab"},
    "__init__": set[str](),
}
PROBED_BY = {"lab"}  # the explaining commands

# The same for the rooms of src/.
# Bytes in, bytes out: no fd, no errno, no clock.
PURE = {"checksum", "fib", "hop", "icmp", "inner", "encap", "coat", "ecn", "flow", "neighbour"}
MANY = {"segment", "coalesce", "run", "unfinished"}  # many packets as one: as pure as these
DATA = {"batch", "counters", "peer", "rcu", "block"}  # what rooms hand to each other
STREET = {"tun", "udp"}
LOOPS = {"tun_to_udp", "udp_to_tun"}
ROOMS: dict[str, frozenset[str] | set[str]] = {
    **dict.fromkeys(PURE, frozenset({"checksum"})),
    "inner": {"counters", "peer"},
    "segment": {"checksum", "counters"},
    "coalesce": {"checksum"},
    "run": {"segment", "coalesce", "peer"},
    "unfinished": {"checksum", "coalesce", "segment"},
    "encap": {"batch", "coat", "counters", "peer"},
    "coat": {"counters"},
    "ecn": {"checksum", "counters", "peer"},
    "flow": {"peer"},
    "names": {"counters"},
    "layout": set(),
    **dict.fromkeys(DATA, frozenset({"counters", "fib", "peer", "rcu"})),
    **dict.fromkeys(STREET, frozenset({"batch", "coalesce", "counters", "ecn", "peer", "run"})),
    "forward": PURE | DATA,
    "way": PURE | MANY | DATA | STREET,
    "send": PURE | MANY | DATA | STREET | {"way"},
    "deliver": PURE | MANY | DATA | STREET | {"way"},
    "tun_to_udp": PURE | MANY | DATA | STREET | {"forward", "way", "send"},
    "udp_to_tun": PURE | MANY | DATA | STREET | {"forward", "way", "deliver"},
    "both_ways": LOOPS | {"way"},
    **dict.fromkeys(("worker", "probe"), PURE | MANY | DATA | STREET | LOOPS | {
        "forward", "way", "both_ways", "names", "layout"}),
    "timing": PURE | MANY | DATA,
}
# Calls of the system that move bytes, not methods or definitions of that name.
CALLS = re.compile(r"(?<!def )(?<![.\w])(readv?|writev?|sendmm?sg|recvmm?sg|sendto|recvfrom|ioctl|[gs]etsockopt)\(")


def imports(file: Path) -> Iterator[str]:
    """What a Python file imports, as dotted names down to what is imported."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(file: Path) -> str:
    """The module or folder of the package that a file belongs to."""
    return file.relative_to(PYTHON).parts[0].removesuffix(".py")


def cimports(file: Path) -> set[str]:
    """The rooms that a Cython file cimports."""
    words = re.findall(r"^\s*(?:from\s+([\w.]+)\s+cimport|cimport\s+([\w.]+))", file.read_text(), re.MULTILINE)
    return {named or whole for named, whole in words}


PYTHON_FILES = sorted(PYTHON.rglob("*.py"))
CYTHON_FILES = sorted((*CYTHON.rglob("*.pxd"), *CYTHON.rglob("*.pyx")))


@pytest.mark.parametrize("file", PYTHON_FILES, ids=lambda file: str(file.relative_to(PYTHON)))
def test_a_module_imports_only_what_lies_below_it(file: Path) -> None:
    assert part(file) in FLOORS, f"{file.name} has no place yet: give it one above, as the architecture says"
    allowed = FLOORS[part(file)] | {part(file)}
    for name in imports(file):
        package, _, rest = name.partition(".")
        if package == "flannel_udp" and not rest.startswith("_"):
            assert rest.split(".")[0] in allowed, f"{file.name} may not import {name}"


@pytest.mark.parametrize("file", PYTHON_FILES, ids=lambda file: str(file.relative_to(PYTHON)))
def test_the_compiled_modules_have_one_face_each(file: Path) -> None:
    for name in imports(file):
        assert not name.startswith("flannel_udp._probe") or part(file) in PROBED_BY, f"{file.name} imports {name}"
        assert not name.startswith("flannel_udp._timing"), f"{file.name}: loops for benchmarks have no use here"
        assert name != "flannel_udp._dataplane", f"{file.name}: import names from _dataplane, so that it shows which"
        if name.startswith("flannel_udp._dataplane.") and part(file) != "forwarder":
            assert name.rpartition(".")[2].isupper(), f"{file.name} may take constants only, not {name}"


@pytest.mark.parametrize("file", PYTHON_FILES, ids=lambda file: str(file.relative_to(PYTHON)))
def test_who_speaks_to_whose_library(file: Path) -> None:
    libraries = {name.partition(".")[0] for name in imports(file)}
    assert "pyroute2" not in libraries or part(file) == "netlink"
    assert "pytun" not in libraries or part(file) == "tun"
    assert "prometheus_client" not in libraries or part(file) == "metrics"
    assert not libraries & {"etcd3", "grpc", "google"} or file.name == "etcd_shim.py"
    assert not libraries & {"scapy", "numpy", "pytest"}


def test_the_control_socket_needs_the_standard_library_only() -> None:
    for module in ("control", "logs", "errors"):
        others = {name.partition(".")[0] for name in imports(PYTHON / f"{module}.py")} - {"flannel_udp"}
        assert others <= sys.stdlib_module_names


@pytest.mark.parametrize("file", CYTHON_FILES, ids=lambda file: str(file.relative_to(CYTHON)))
def test_a_room_cimports_only_what_lies_below_it(file: Path) -> None:
    found = cimports(file)
    outside = {"libc", "posix", "cpython", "cython"}
    ours = {name.split(".")[0] for name in found} - outside
    if file.parent.name == "wire":
        assert not ours
        return
    assert file.stem in ROOMS, f"{file.name} has no place yet: give it one above, as the architecture says"
    assert ours - {"wire"} <= ROOMS[file.stem], f"{file.name} may not cimport {ours - {'wire'} - ROOMS[file.stem]}"


@pytest.mark.parametrize("file", CYTHON_FILES, ids=lambda file: str(file.relative_to(CYTHON)))
def test_only_the_doors_read_and_write(file: Path) -> None:
    calls = CALLS.findall(without_comments(file))
    assert not calls or file.stem in STREET or file.parent.name == "wire"
    system = {name for name in cimports(file) if name.startswith("posix") or name == "libc.errno"}
    if file.stem in PURE | MANY | DATA or file.parent.name == "wire":
        assert not system, f"{file.name} is pure and cimports {system}"


def without_comments(file: Path) -> str:
    return re.sub(r"#.*|//.*|/\*.*?\*/", "", file.read_text())


@pytest.mark.parametrize("name", ["tun_to_udp", "udp_to_tun", "both_ways", "send", "forward", "way"])
def test_no_loop_asks_for_a_backends_name(name: str) -> None:
    assert "vxlan" not in without_comments(CYTHON / f"{name}.pxd").lower()


def test_the_cni_plugin_needs_the_standard_library_only() -> None:
    plugin = [*(PYTHON / "cni").glob("*.py"), *(PYTHON / f"{name}.py" for name in FLOORS["cni"])]
    others = {name.partition(".")[0] for file in plugin for name in imports(file)} - {"flannel_udp"}
    assert others <= sys.stdlib_module_names


def test_what_every_container_waits_for_is_not_imported() -> None:
    """Slow modules, of which each would cost a call of the CNI plugin 5 to 10 of its milliseconds."""
    script = f"import sys; sys.path.append({str(ROOT)!r}); import flannel_udp.cni.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    assert not {"typing", "dataclasses", "subprocess", "logging", "socket", "threading"} & set(loaded.stdout.split())
