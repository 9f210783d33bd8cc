"""What was delegated for which attachment, kept in `dataDir` until it is undone.

A record is the delegated plugin's configuration, under flannel's name for it, the container's: so flannel's plugin can
undo what this one did, and the reverse. It holds one key more, OWNER, which tells the interface; flannel's files hold
none, and stand for whatever interface is asked for. A second interface of a container has a file of its own,
CONTAINER@INTERFACE, a name that no container can have.

Calls for one container wait for each other, those for different ones do not, and GC waits for all: each locks a byte of
one file, GC the whole. The lock ends with the last process of its call, however that ends. GC removes the file where
no record is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
import zlib

from flannel_udp.cni import failure
from flannel_udp.cni.call import is_interface, is_name
from flannel_udp.cni.failure import Failure
from flannel_udp.foreign_json import read_json
from flannel_udp.named import NamedTuple
from flannel_udp.subnet_env import half_written, write_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from flannel_udp.cni.call import Attachment

OWNER = "flannel-udp/ifname"
LOCK = ".lock"
# Our choice: longer than a delegated plugin takes, shorter than a runtime waits (kubelet: two minutes).
PATIENCE = 60.0
_POLL = 0.01
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2) on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_BYTES = 2**32  # of the lock file, one for each checksum of a name


class Record(NamedTuple):
    """A record file and what it holds."""

    path: Path
    configuration: dict[str, Any] | None
    """The delegated plugin's; None where the file is damaged."""
    interface: str | None
    """None where flannel's plugin wrote it."""
    torn: bool = False
    """Torn off in the writing: a power cut leaves nothing, a beginning, or zeros."""

    @property
    def container(self) -> str:
        """Whose record it is."""
        return self.path.name.partition("@")[0]


@contextlib.contextmanager
def locked(data_dir: Path, container: str | None) -> Iterator[None]:
    """Keep other calls for this container away, or all other calls; Failure when they take too long.

    The folder is made where it is missing.
    """
    start, length = (0, 0) if container is None else (zlib.crc32(container.encode()) % _BYTES, 1)
    wanted, done = (struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
    path = data_dir / LOCK
    deadline = time.monotonic() + PATIENCE
    with _told(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        with _told(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _wait(fd, wanted, deadline)
            if _stands(fd, path):
                # What this process starts goes on when it is killed, and must be waited for then.
                os.set_inheritable(fd, True)
                try:
                    yield
                finally:
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, done)  # also for what a delegate has left running
                return
        finally:
            os.close(fd)


def _wait(fd: int, wanted: bytes, deadline: float) -> None:
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise Failure(failure.TRY_LATER, f"another call has been busy for {PATIENCE:.0f} s") from None
            time.sleep(_POLL)
        else:
            return


def _stands(fd: int, path: Path) -> bool:
    """Whether this is the file at `path`, and not one that GC has just removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def there(data_dir: Path) -> bool:
    """Whether there may be records; Failure when that cannot be told."""
    with _told(data_dir):
        return data_dir.is_dir()


def find(data_dir: Path, attachment: Attachment, network: str) -> Record | None:
    """The record of this attachment, or an unnamed one of its container and network; Failure when one is unreadable."""
    for path in _paths(data_dir, attachment):
        record = read(path)
        if record and (record.interface == attachment.interface
                       or (record.interface is None and (record.configuration or {}).get("name", network) == network)):
            return record
    return None


def read(path: Path) -> Record | None:
    """What this file holds, if it is there; Failure when it cannot be read."""
    with _told(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    named = path.name.partition("@")[2] or None
    try:
        said = read_json(data)
    except ValueError:
        return Record(path, None, named, torn=data[:1] in (b"", b"{", b"\0"))
    return Record(path, said, said.pop(OWNER, named)) if _is_record(said) else Record(path, None, named)


def _is_record(said: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(said, dict) or not isinstance(said.get("ipam"), dict):
        return False
    return all(isinstance(text, str) for text in (said.get("type"), said["ipam"].get("type"), said.get(OWNER, "")))


def write(data_dir: Path, attachment: Attachment, configuration: dict[str, Any]) -> Path:
    """Keep what is about to be delegated; Failure when that cannot be done, or the attachment has a record already."""
    record = find(data_dir, attachment, configuration["name"])
    if record and record.interface:
        raise Failure(failure.ADDED_BEFORE, f"{attachment} is there",
                      f"DEL comes first: {record.path} tells how it was added")  # fmt: skip
    own, shared = _paths(data_dir, attachment)
    with _told(data_dir):
        path = own if shared.exists() else shared
        write_whole(path, json.dumps({**configuration, OWNER: attachment.interface}), mode=0o600)
    return path


def remove(path: Path) -> None:
    """Forget what was delegated; Failure when the file stays."""
    with _told(path):
        path.unlink(missing_ok=True)


def sweep(data_dir: Path, attachment: Attachment) -> None:
    """Remove what calls for this container that were killed left half-written; the caller has locked it."""
    for path in _paths(data_dir, attachment):
        remove(half_written(path))


def files(data_dir: Path) -> list[Path]:
    """All files that are named as records are."""
    with _told(data_dir):
        return sorted(path for path in data_dir.iterdir() if _is_named_so(path.name) and path.is_file())


def _is_named_so(name: str) -> bool:
    container, at, interface = name.partition("@")
    return is_name(container) and (not at or is_interface(interface))


def belongs(record: Record, network: str) -> bool:
    """Whether a record is this network's. One that was torn off in the writing may be any's; other files are none."""
    return record.torn if record.configuration is None else record.configuration.get("name") == network


def tidy(data_dir: Path) -> None:
    """Remove what calls that were killed left half-written, and the lock file where there is nothing to lock; the
    caller has locked the whole."""
    with _told(data_dir):
        for path in data_dir.glob(half_written(data_dir / "*").name):
            path.unlink()
        if [path.name for path in data_dir.iterdir()] == [LOCK]:
            (data_dir / LOCK).unlink()


def _paths(data_dir: Path, attachment: Attachment) -> list[Path]:
    """Where an attachment's record may lie, the name that is its own alone first."""
    return [data_dir / f"{attachment.container}@{attachment.interface}", data_dir / attachment.container]


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell the runtime of trouble with a file."""
    try:
        yield
    except OSError as error:
        raise Failure(failure.INPUT_OUTPUT, f"{error.filename or path}: {error.strerror}") from None
