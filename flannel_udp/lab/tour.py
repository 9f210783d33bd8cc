"""A process inside a lab, going about its nodes: runs programs, asks daemons, pings, sends, listens to links.

A Tour is made outside, where the supervisor can be asked, and used inside (client.run_inside), where one process may
be at one node now and at the next one then.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from flannel_udp import control
from flannel_udp.errors import LabError
from flannel_udp.lab import namespace
from flannel_udp.lab.client import Lab
from flannel_udp.lab.layout import Overlay
from flannel_udp.paths import DEFAULT_RUN_DIR

ETH_P_ALL = 0x0003  # specification: linux/if_ether.h
LONGEST_FRAME = 1 << 16
SOCKETS = {4: socket.AF_INET, 6: socket.AF_INET6}
# Our choices: seconds until what ought to happen here at once is held not to happen; the size of one write.
DEADLINE = 10.0
CHUNK = 1 << 20


class Tour:
    """The nodes of a ready lab, and their places."""

    def __init__(self, lab: Lab) -> None:
        status = lab.status()
        if not status["ready"]:
            raise LabError(f"lab {lab.name!r} is still coming up: flannel-udp lab status tells how far it is")
        self.overlay = Overlay.read(*status["overlay"])
        self.nodes: dict[str, dict[str, Any]] = {state["node"]: state for state in status["nodes"]}
        self.base = lab.place()
        self._places = {(node, pod): lab.place(node, pod=pod) for node in self.nodes for pod in (False, True)}

    def close(self) -> None:
        """Let go of the places."""
        for place in (self.base, *self._places.values()):
            place.close()

    def node(self, name: str) -> dict[str, Any]:
        """What the lab's status tells of a node; LabError if there is none."""
        if name not in self.nodes:
            raise LabError(f"there is no node {name!r} (there: {', '.join(self.nodes)})")
        return self.nodes[name]

    def of_family(self, node: str, name: str, family: int) -> str:
        """Return a node's "address", "subnet" or "pod" of a family."""
        key = list(self.overlay.by_family(name, ()))[self.overlay.families.index(family)]
        return str(self.node(node)[key])

    def device(self, node: str, family: int) -> str:
        """Return the name of the device by which a node's daemon carries a family."""
        devices = self.daemon_status(node)["devices"]
        return next(str(one["name"]) for one in devices if ip_interface(one["address"]).version == family)

    @contextlib.contextmanager
    def at(self, node: str, *, pod: bool = False) -> Iterator[None]:
        """Be at a node, or in its pod, for the length of the block."""
        self.node(node)
        with namespace.inside(self._places[node, pod].only("mnt", "uts", "net")):
            yield

    def run(self, *command: str, node: str, pod: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program at a node to its end."""
        if shutil.which(command[0]) is None:
            raise LabError(f"the command {command[0]!r} is missing (Debian: apt-get install iputils-ping iproute2)")
        with self.at(node, pod=pod):
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def ping(self, source: str, destination: str, family: int, count: int = 1) -> subprocess.CompletedProcess[str]:
        """Ping from the pod of one node to that of another."""
        address = self.of_family(destination, "pod", family)
        return self.run("ping", "-n", "-c", f"{count}", "-i", "0.2", "-W", "2", address, node=source, pod=True)

    def daemon_status(self, node: str) -> dict[str, Any]:
        """Ask a node's daemon how it is; ControlError if it does not answer."""
        with self.at(node):
            return control.ask(control.socket_path(DEFAULT_RUN_DIR), {"command": "status"})

    def stop_daemon(self, node: str) -> None:
        """Ask a node's daemon to end, and wait until it has."""
        pid = self.node(node)["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _alive(pid), f"the daemon of {node} to end")

    def transfer(self, source: str, destination: str, family: int, size: int) -> "Transfer":
        """Send random bytes from pod to pod over one TCP connection."""
        octets = os.urandom(size)
        address, kind = self.of_family(destination, "pod", family), SOCKETS[family]
        with self.at(destination, pod=True):
            listener = socket.create_server((address, 0), family=kind)
        with listener, ThreadPoolExecutor(1) as pool:
            with self.at(source, pod=True):
                sender = socket.create_connection(listener.getsockname()[:2], timeout=DEADLINE)
            receiver, _ = listener.accept()
            receiver.settimeout(DEADLINE)
            with sender, receiver:
                begin = time.monotonic()
                sending = pool.submit(_send, sender, octets)
                received = hashlib.sha256()
                while chunk := receiver.recv(CHUNK):
                    received.update(chunk)
                sending.result()
        seconds = time.monotonic() - begin
        return Transfer(size, seconds, hashlib.sha256(octets).hexdigest(), received.hexdigest())


@dataclass(frozen=True)
class Transfer:
    """What came of a transfer: both ends' SHA-256 of what they sent and received."""

    size: int
    seconds: float
    sent: str
    received: str


class Wiretap:
    """All packets that pass a link of the namespace in which this is made, both ways, from now on."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing until bound to one link
        self._socket.bind((interface, ETH_P_ALL))

    def __enter__(self) -> "Wiretap":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_for(self, matches: Callable[[bytes], bool], what: str) -> bytes:
        """The first packet that matches, also among those that have passed already."""
        deadline = time.monotonic() + DEADLINE
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                if matches(packet := self._socket.recv(LONGEST_FRAME)):
                    return packet
        raise LabError(f"{what} did not pass within {DEADLINE:.0f} seconds")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; LabError when the deadline passes."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited in vain for {what}")
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _send(sender: socket.socket, octets: bytes) -> None:
    sender.sendall(octets)
    sender.shutdown(socket.SHUT_WR)
