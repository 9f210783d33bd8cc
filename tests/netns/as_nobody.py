"""Run a command as uid 65534 where an ordinary user finds what distributions give.

    python as_nobody.py [--net-admin] COMMAND ...        --net-admin: with CAP_NET_ADMIN, and no way to any other

/dev/net/tun may be for root alone on this machine, and the interpreter below a home directory that others may not pass.
In a mount namespace of its own this puts an accessible TUN device and ways to the interpreter, then drops to uid 65534.
The host does not change.
"""

import os
import stat
import sys
from pathlib import Path

import flannel_udp
from flannel_udp.lab import namespace

NOBODY = 65534
ONE_CAPABILITY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
                  *(f"--{kind}=-all,+net_admin" for kind in ("bounding-set", "inh-caps", "ambient-caps")), "--"]
TUN_DEVICE = os.makedev(10, 200)  # Documentation/admin-guide/devices.txt


def main(command: list[str]) -> None:
    namespace.unshare("mnt")
    namespace.mount("none", "/", flags=namespace.MS_REC | namespace.MS_PRIVATE)
    namespace.mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755")
    os.umask(0)
    os.mknod("/dev/net/tun", stat.S_IFCHR | 0o666, TUN_DEVICE)
    package = Path(flannel_udp.__file__).parents[1]
    open_ways({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), package.resolve()})
    os.umask(0o022)
    if command[0] == "--net-admin":
        command = [*ONE_CAPABILITY, *command[1:]]
        os.execvp(command[0], command)  # noqa: S606
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execvp(command[0], command)  # noqa: S606


def open_ways(paths: set[Path]) -> None:
    """Make each path reachable: cover the directory that others may not pass, and put the path back in its place."""
    hidden: dict[Path, dict[Path, int]] = {}
    for path in paths:
        ways = [way for way in reversed((path, *path.parents)) if not way.stat().st_mode & stat.S_IXOTH]
        if ways:
            hidden.setdefault(ways[0], {})[path] = os.open(path, os.O_PATH | os.O_DIRECTORY)
    for cover, below in hidden.items():
        namespace.mount("tmpfs", str(cover), "tmpfs", 0, "mode=0755")
        for path, descriptor in below.items():
            path.mkdir(parents=True, exist_ok=True)
            os.fchdir(descriptor)
            namespace.mount(".", str(path), flags=namespace.MS_BIND | namespace.MS_REC)
            os.close(descriptor)
    os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1:])
