"""podman on a node of a topology, with a machine of its own: its files, processes and mounts are all in one place.

It runs in a mount and a PID namespace that end with the process that holds them, so nothing is left of it after a crash
either: no conmon, no container, no file below /run or /var/lib. Containers have a root of a few links, and this
machine's /usr in it, read-only: no image is pulled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conftest import wait_until

if TYPE_CHECKING:
    import subprocess

    from .cni_nodes import CniNode

# A machine with cgroups of both versions is one that crun refuses; it is told of the second alone.
_FURNISH = """set -e
for place in /run /var/lib /dev/shm; do mount -t tmpfs none $place; done
mount -t cgroup2 none /sys/fs/cgroup
touch "$0"
exec sleep infinity"""
_CONFIGURATION = """[network]
network_backend = "cni"
network_config_dir = "{folder}"
cni_plugin_dirs = {plugins}
default_network = "{network}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
"""
_FLAGS = ["--root", "/var/lib/podman", "--runroot", "/run/podman", "--tmpdir", "/run/libpod", "--storage-driver", "vfs"]


class Podman:
    """podman on a node, its network that of the node's conflist."""

    def __init__(self, node: CniNode, network: str) -> None:
        self.node = node
        self._network = network
        home = node.folder / "podman"
        self._root = home / "root"
        for folder in ("usr", "etc", "proc", "sys", "dev", "tmp", "run"):
            (self._root / folder).mkdir(parents=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            (self._root / link).symlink_to(f"usr/{link}")
        self._configuration = home / "containers.conf"
        plugins = json.dumps(node.path.split(":"))
        self._configuration.write_text(_CONFIGURATION.format(folder=node.folder, plugins=plugins, network=network))
        ready = home / "ready"
        with (home / "log").open("w") as log:
            machine = node.node.start("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                                      "sh", "-c", _FURNISH, f"{ready}", output=log)  # fmt: skip
        wait_until(lambda: ready.exists() or machine.poll() is not None, "the machine is furnished")
        assert machine.poll() is None, (home / "log").read_text()
        self._pid = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().strip()

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of podman to its end."""
        environment = [f"CONTAINERS_CONF={self._configuration}", f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"]
        # A file, since conmon would hold a pipe of ours open as long as the container lives.
        output = self._configuration.with_name("output")
        script = 'exec "$@" >"$0" 2>&1 </dev/null'
        done = self.node.node.run("nsenter", "--target", self._pid, "--mount", "--pid", "--", "env", "-i", *environment,
                                  "sh", "-c", script, str(output), "podman", *_FLAGS, *words, check=False)  # fmt: skip
        done.stdout = output.read_text()
        assert not check or done.returncode == 0, f"podman {' '.join(words)}: {done.stdout}"
        return done

    def run(self, name: str, *options: str, command: list[str]) -> None:
        """Start a container in the background."""
        libraries = {"/usr", sys.base_prefix}
        volumes = [word for path in sorted(libraries) for word in ("--volume", f"{path}:{path}:ro")]
        self("run", "--detach", "--name", name, "--network", self._network, "--cgroups=disabled", *volumes, *options,
             "--rootfs", str(self._root), *command)  # fmt: skip

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container."""
        (found,) = json.loads(self("inspect", name).stdout)
        assert isinstance(found, dict)
        return found

    def addresses(self, name: str) -> list[str]:
        """The addresses of a container, IPv4 first."""
        (network,) = self.inspect(name)["NetworkSettings"]["Networks"].values()
        return [network[key] for key in ("IPAddress", "GlobalIPv6Address") if network[key]]
