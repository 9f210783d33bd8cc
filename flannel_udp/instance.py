"""One daemon per directory and file: locks that end with the process, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from flannel_udp.errors import InstanceError
from flannel_udp.options import NodeOptions


@contextlib.contextmanager
def sole_instance(options: NodeOptions) -> Iterator[None]:
    """Hold the run directory, the state directory and the subnet file, their folders made, for this process alone."""
    file = options.subnet_file
    locks = (("--run-dir", options.run_dir, options.run_dir / "run.lock"),
             ("--state-dir", options.state_dir, options.state_dir / "state.lock"),
             ("--subnet-file", file, file.with_name(f".{file.name}.lock")))
    with contextlib.ExitStack() as stack:
        for flag, what, lock in locks:
            stack.enter_context(_locked(flag, f"{flag} {what}", lock))
        yield


@contextlib.contextmanager
def _locked(flag: str, what: str, path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = _open_locked(path)
    except BlockingIOError:
        raise InstanceError(f"{what} is in use by another flannel-udp{_owner(path)}: two on one host need a --run-dir, "
                            "--state-dir and --subnet-file each") from None
    except OSError as error:
        remedy = f": run as root, or name another with {flag}" if isinstance(error, PermissionError) else ""
        raise InstanceError(f"{what} cannot be used: {error.strerror}{remedy}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked, so nobody can be using it
        os.close(fd)


def _open_locked(path: Path) -> int:
    """The descriptor of the file that stands at `path`, locked; BlockingIOError when another process holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == path.stat().st_ino:  # not the one that its last holder has just removed
                    os.truncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    return fd
        except BaseException:  # raised again: an open descriptor would keep the lock
            os.close(fd)
            raise
        os.close(fd)


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        pid = path.read_text().strip()
        return f" (process {pid})" if pid else ""
    return ""
