"""Linux namespaces held by descriptors alone: made, entered and left again by one thread.

A namespace lives as long as a process is in it or a descriptor of it is open. Here it is always descriptors: when their
last holder ends, however it ends, the kernel takes the namespace down with all that is in it (links, routes, mounts,
sockets). No name below /run/netns, no holder process, nothing to clean up after a crash.

unshare and setns act on the calling thread. A network namespace may so be entered by one thread of many; for a mount
namespace the thread stops sharing its root and working directory with the others; a user namespace takes a
single-threaded process and no way leads back. Nothing here starts a thread or a process, or speaks netlink.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["user", "mnt", "pid", "uts", "net"]
"""Names as in /proc/PID/ns, in the order of entry: the user namespace gives the right to the others."""

KINDS: tuple[Kind, ...] = get_args(Kind)

# Specification: linux/sched.h.
_CLONE: Mapping[Kind, int] = {
    "user": 0x1000_0000, "mnt": 0x0002_0000, "pid": 0x2000_0000, "uts": 0x0400_0000, "net": 0x4000_0000,
}  # fmt: skip
_CLONE_FS = 0x0000_0200

# Specification: linux/mount.h.
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x4_0000

_libc = ctypes.CDLL(None, use_errno=True)  # Python has os.unshare and os.setns since 3.12 only


def _check(result: int, doing: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def unshare(*kinds: Kind) -> None:
    """Move this thread into new namespaces (pid: its next children only)."""
    flags = sum(_CLONE[kind] for kind in kinds)
    _check(_libc.unshare(flags), f"unshare {' '.join(kinds)}")


def setns(descriptor: int, kind: Kind) -> None:
    """Move this thread into an open namespace (pid: its next children only)."""
    if kind == "mnt":
        _check(_libc.unshare(_CLONE_FS), "unshare fs")  # the kernel asks for a root directory of the thread's own
    _check(_libc.setns(descriptor, _CLONE[kind]), f"setns {kind}")


def mount(source: str, target: str, filesystem: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), filesystem.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {filesystem or source} on {target}")


def sethostname(name: str) -> None:
    """Name this UTS namespace."""
    _check(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name.encode()))), f"sethostname {name}")


def map_user(uid: int, gid: int) -> None:
    """Be root in the user namespace just made; `uid` and `gid` are the ids outside, the only ones it can express."""
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")  # the kernel's condition for a gid_map written without privilege
    (own / "uid_map").write_text(f"0 {uid} 1")
    (own / "gid_map").write_text(f"0 {gid} 1")


def write_sysctl(name: str, value: int | str) -> None:
    """Set a sysctl of the namespace that this thread is in, e.g. write_sysctl("net/ipv4/ip_forward", 1)."""
    Path("/proc/sys", name).write_text(f"{value}\n")


@dataclass(frozen=True)
class Namespaces:
    """Some namespaces that make up one place, by the descriptors that keep them alive."""

    descriptors: Mapping[Kind, int]

    def enter(self) -> None:
        """Move this thread in, for good."""
        for kind in KINDS:
            if kind in self.descriptors:
                setns(self.descriptors[kind], kind)

    def only(self, *kinds: Kind) -> "Namespaces":
        """Return the named ones; the descriptors stay shared with this object."""
        return Namespaces({kind: fd for kind, fd in self.descriptors.items() if kind in kinds})

    def close(self) -> None:
        """Let go: what nobody else holds is taken down by the kernel."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)


def here(kinds: Iterable[Kind]) -> Namespaces:
    """Open the namespaces that this thread is in."""
    return Namespaces({kind: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds})


@contextlib.contextmanager
def _coming_back(kinds: Iterable[Kind]) -> Iterator[None]:
    """Bring this thread back where it was: its namespaces, and its working directory, which setns moves to the root."""
    before = here(kinds)
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        before.enter()
        if "mnt" in before.descriptors:
            os.fchdir(directory)
        os.close(directory)
        before.close()


@contextlib.contextmanager
def inside(place: Namespaces) -> Iterator[None]:
    """Have this thread, and the processes and sockets that it makes, inside `place` for the length of the block."""
    with _coming_back(place.descriptors):
        place.enter()
        yield


@contextlib.contextmanager
def created(*kinds: Kind) -> Iterator[Namespaces]:
    """Make new namespaces and be inside for the length of the block (to furnish them); they outlive it."""
    with _coming_back(kinds):
        unshare(*kinds)
        place = here(kinds)
        try:
            yield place
        except BaseException:  # raised again: the caller got no place to close
            place.close()
            raise
