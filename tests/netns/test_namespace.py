"""Namespaces by descriptors: made, entered, left, let go."""

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.lab import namespace
from flannel_udp.lab.namespace import Kind

from ..conftest import require_namespaces, wait_until
from .topology import Topology

KINDS: tuple[Kind, ...] = ("mnt", "uts", "net")


def in_thread(function: Callable[[], None]) -> None:
    """Run in a thread of its own: entering a mount namespace ends a thread's sharing of the working directory."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def own(kind: Kind) -> Path:
    return Path(f"/proc/thread-self/ns/{kind}").readlink()


def test_making_and_entering_come_back_to_all_that_was(tmp_path: Path) -> None:
    require_namespaces()

    def go() -> None:
        os.chdir(tmp_path)
        before = [own(kind) for kind in KINDS]
        with namespace.created(*KINDS) as place:
            made = [own(kind) for kind in KINDS]
            namespace.sethostname("elsewhere")
        assert Path.cwd() == tmp_path
        assert not set(made) & set(before)
        with namespace.inside(place):
            assert [own(kind) for kind in KINDS] == made
            assert os.uname().nodename == "elsewhere"
        assert [own(kind) for kind in KINDS] == before
        assert Path.cwd() == tmp_path
        place.close()

    in_thread(go)
    assert os.uname().nodename != "elsewhere"


def test_failure_inside_comes_back_too_and_leaves_no_descriptor() -> None:
    require_namespaces()
    gc.collect()
    before, descriptors = own("net"), open_descriptors()
    with pytest.raises(KeyError), namespace.created("net"):
        raise KeyError
    assert own("net") == before
    assert open_descriptors() == descriptors


def test_namespace_ends_with_its_last_descriptor(topology: Callable[..., Topology]) -> None:
    """One end of a cable lies in it; the kernel takes the cable away when the namespace goes."""
    outside = topology(1).underlay
    with namespace.created("net") as place:
        pass
    into = f"/proc/{os.getpid()}/fd/{place.descriptors['net']}"
    outside.ip(f"link add near type veth peer name far netns {into}")
    place.close()
    wait_until(lambda: "near" not in outside.run("ip", "link").stdout, "the namespace is gone, and its cable")


def test_mounts_stay_inside(tmp_path: Path) -> None:
    require_namespaces()

    def go() -> None:
        with namespace.created("mnt") as place:
            namespace.mount("none", "/", flags=namespace.MS_REC | namespace.MS_PRIVATE)
            namespace.mount("tmpfs", str(tmp_path), "tmpfs")
            (tmp_path / "secret").touch()
        assert not (tmp_path / "secret").exists()
        with namespace.inside(place):
            assert (tmp_path / "secret").exists()
        place.close()

    in_thread(go)


def test_refusals_name_the_call(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="setns net"):
        namespace.setns(0, "net")
    with pytest.raises(OSError, match=f"mount nosuchfs on {tmp_path}"):
        namespace.mount("none", str(tmp_path), "nosuchfs")
