"""One node with a daemon, and the rest of the world: etcd and the underlay addresses of all peers.

    node 1: eth0 192.0.2.1/24 ════ veth ════ eth0 192.0.2.2/24 :node 2, to which all of 198.18.0.0/15 is local

What the daemon sends to any peer arrives in node 2, where a socket bound to that peer's address shows it.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed, wait_until
from benchmarks.scale.leases import PEERS, PORT
from flannel_udp import control
from flannel_udp.errors import ControlError
from tests.netns.topology import Node

PERIOD = 0.0005  # seconds between the packets that look for a way
PATIENCE = 30.0
# The line that the daemon logs last before it asks the registry for leases for the first time.
BEFORE_SNAPSHOT = re.compile(r'^time=(\S+) .*event="external interface"', re.MULTILINE)


@contextlib.contextmanager
def world() -> Iterator[Cable]:
    """The two nodes."""
    cable = Cable()
    try:
        one, two = cable.nodes
        # Without a default route a packet that comes before the tunnel is refused at once. With one it would wait for a
        # neighbour that nobody is, and those behind it for room in the socket.
        one.ip("route del default", f"route add {PEERS} via {two.address}")
        two.ip(f"route add local {PEERS} dev lo")
        yield cable
    finally:
        cable.close()


class Daemon:
    """`flannel-udp run` on a node, on etcd."""

    def __init__(self, node: Node, folder: Path, endpoint: str, prefix: str) -> None:
        self._run_dir = folder / "run"
        self._log = folder / "log"
        command = str(Path(sys.executable).with_name("flannel-udp"))
        self.began = time.time()
        with self._log.open("w") as log:
            self._process = node.start(
                command, "run", "--etcd-endpoints", endpoint, "--etcd-prefix", prefix, "--iface", f"{node.address}",
                "--state-dir", f"{folder}/state", "--run-dir", f"{self._run_dir}",
                "--subnet-file", f"{folder}/subnet.env", output=log)  # fmt: skip

    def asked_for_leases(self) -> float:
        """When it was about to ask for leases the first time (unix time)."""
        found = BEFORE_SNAPSHOT.search(self._log.read_text())
        if not found:
            raise Failed(f"the daemon's log lacks a line: {self._log.read_text()[-2000:]}")
        return datetime.fromisoformat(found[1]).timestamp()

    def routes(self) -> dict[str, str]:
        """Address by subnet of all peers, as its status tells."""
        try:
            status = control.ask(control.socket_path(self._run_dir), {"command": "status"}, PATIENCE)
        except ControlError:
            return {}  # not ready yet
        return {peer["subnet"]: peer["underlay"] for peer in status["peers"]}

    def memory(self) -> dict[str, float]:
        """Resident memory now, and the most that it ever was, in MiB."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return cpu_of(self._process.pid)

    def stop(self) -> None:
        """End it; it must end well."""
        self._process.terminate()
        if self._process.wait(PATIENCE):
            raise Failed(f"the daemon ended with status {self._process.returncode}: {self._log.read_text()[-2000:]}")


class Street:
    """Packets into the tunnel of node 1, a few thousand a second, and sockets in node 2 where they come out."""

    def __init__(self, cable: Cable) -> None:
        self._cable = cable
        self._end = threading.Event()
        self._sender = cable.one.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._target = "0.0.0.0"
        self._thread = threading.Thread(target=self._send, daemon=True)
        # What went to an address of before is taken in too, or the kernel would call it unreachable.
        self._sink = self._listen("0.0.0.0")
        self._thread.start()

    def look_for(self, target: IPv4Address) -> None:
        """Send to this address in the overlay from now on."""
        self._target = f"{target}"

    @contextlib.contextmanager
    def door(self, address: IPv4Address) -> Iterator[socket.socket]:
        """A socket at this address in the underlay, which no packet has ever been sent to."""
        with self._listen(f"{address}") as door:
            yield door

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._sender.close()
        self._sink.close()

    def _listen(self, address: str) -> socket.socket:
        door = self._cable.two.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.settimeout(PATIENCE)
        door.bind((address, PORT))
        return door

    def _send(self) -> None:
        while not self._end.wait(PERIOD):
            with contextlib.suppress(OSError):  # no way yet, or no longer
                self._sender.sendto(b"which way?", (self._target, 9))


def arrival(door: socket.socket) -> float:
    """When the first packet comes (monotonic clock)."""
    try:
        door.recv(100)
    except TimeoutError:
        raise Failed(f"no packet came to {door.getsockname()[0]} within {PATIENCE:g} s") from None
    return time.monotonic()


def cpu_of(pid: int) -> float:
    """Processor time of a process, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def await_routes(daemon: Daemon, expected: dict[str, str]) -> None:
    """Wait until the daemon routes as it should; Failed says how far it is from that."""
    found: dict[str, Any] = {}

    def as_expected() -> bool:
        found.update(now=daemon.routes())
        return bool(found["now"] == expected)

    try:
        wait_until(as_expected, "", 0.2)
    except Failed:
        wrong = set(expected.items() ^ found["now"].items())
        raise Failed(f"the daemon's routes differ from the leases in {len(wrong)} pairs: {sorted(wrong)[:4]}") from None
