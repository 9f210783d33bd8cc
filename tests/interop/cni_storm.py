"""A node whose containers are plugged in and out by many threads at once, and what is there of each, by others' word.

         calls: a process of its own each, in a process group of its own
     ┌──────────┐ starts ┌────────┐ starts ┌────────────┐
     │  plugin  ├───────>│ bridge ├───────>│ host-local │      a Blow ends the first, or all three
     └────┬─────┘        └───┬────┘        └──────┬─────┘
       records            cni0 ── eth0 of      addresses
                                  each pod

The node and each pod are a network namespace, held by this process; all files lie in one folder. So nothing outlives a
killed test run but what pytest keeps of that folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flannel_udp.cni.install import install_plugin

from ..conftest import require
from ..netns.real_flannel import peer
from ..netns.topology import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OVERLAY = IPv4Network("10.5.0.0/16")
SUBNET = IPv4Network("10.5.1.0/26")
"""Few addresses more than containers, so that what is lost is soon missed."""
NETWORK = "storm"
INTERFACE = "eth0"
TRACES = ("record", "link", "address")
"""What ADD leaves of a container, in the order in which it comes; DEL takes link, address and record."""
THREADS = 12
_CALL_DEADLINE = 60.0
_DEBIAN = Path("/usr/lib/cni")
_NEEDED = ("bridge", "host-local", "portmap")


class Blow(NamedTuple):
    """When a call is killed: as soon as this is so, and then a moment later."""

    due: Callable[[], bool]
    moment: float
    group: bool
    """Whether all that it started is killed with it."""


class Done(NamedTuple):
    """How a call ended."""

    status: int
    answer: dict[str, Any]

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def debian() -> Path:
    """Where Debian has its plugins: in Debian 12 1.1.1, which know no GC."""
    require(all((_DEBIAN / name).exists() for name in _NEEDED), "needs Debian's containernetworking-plugins")
    return _DEBIAN


def reference() -> Path:
    """Where the plugins of go.mod's version are built."""
    first, *_ = [Path(peer(name)).parent for name in _NEEDED]  # one folder
    return first


def tardy(plugins: Path, folder: Path, verb: str) -> Path:
    """The same plugins with an IPAM that takes its time for this verb, as on a busy disk.

    So calls could overtake what goes on after a kill. Files VERB and VERB.done tell that it has begun, and is done.
    """
    folder.mkdir()
    (folder / "bridge").symlink_to(plugins / "bridge")
    ipam = folder / "host-local"
    ipam.write_text(f"""#!/bin/sh
: >{folder}/$CNI_COMMAND
test $CNI_COMMAND != {verb} || sleep 0.4
{plugins}/host-local
status=$?
: >{folder}/$CNI_COMMAND.done
exit $status
""")
    ipam.chmod(0o755)
    return folder


class Storm:
    """A node, its plugins, and containers by name, each a namespace."""

    def __init__(self, root: Path, plugins: Path, version: str, containers: int) -> None:
        self._log = (root / "log").open("ab")
        self._folder = root
        self._version = version
        self.records = root / "records"
        self._given = root / "networks" / NETWORK
        self._environment = {"PATH": os.environ["PATH"], "CNI_IFNAME": INTERFACE, "CNI_PATH": str(plugins)}
        install_plugin(root / "bin")
        (root / "subnet.env").write_text(
            f"FLANNEL_NETWORK={OVERLAY}\nFLANNEL_SUBNET={SUBNET[1]}/{SUBNET.prefixlen}\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
        self.node = Place("node")
        self.pods = {f"c{number}": Place(f"c{number}") for number in range(containers)}

    def lose(self, containers: Iterable[str]) -> None:
        """Let namespaces go without a call, as when the machine has failed."""
        for container in containers:
            self.pods.pop(container).close()

    def close(self) -> None:
        for place in (*self.pods.values(), self.node):
            place.close()
        self._log.close()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, verb: str, container: str = "", blow: Blow | None = None, valid: Iterable[str] = ()) -> Done:
        """Call the plugin as a runtime does, and strike it; `valid` containers are those that GC is to leave."""
        network: dict[str, Any] = {
            "cniVersion": self._version, "name": NETWORK, "type": "flannel", "dataDir": str(self.records),
            "subnetFile": f"{self._folder}/subnet.env", "ipam": {"dataDir": f"{self._given.parent}"}}  # fmt: skip
        if verb == "GC":
            network["cni.dev/valid-attachments"] = [{"containerID": name, "ifname": INTERFACE} for name in valid]
        named = {"CNI_CONTAINERID": container, "CNI_NETNS": self.pods[container].path} if container else {}
        with self.node.entered():
            # stderr is no pipe: who goes on after the plugin's end would keep it open.
            process = subprocess.Popen(
                [self._folder / "bin" / "flannel"], env={**self._environment, **named, "CNI_COMMAND": verb},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, process_group=0)
        with process:
            assert process.stdin
            process.stdin.write(json.dumps(network).encode())
            process.stdin.close()
            process.stdin = None
            if blow:
                _strike(process, blow)
            output, _ = process.communicate(timeout=_CALL_DEADLINE)
        return Done(process.returncode, json.loads(output) if output else {})

    # -- what is there -------------------------------------------------------------------------------------------------

    def has(self, container: str, trace: str) -> bool:
        """Whether there is this of a container."""
        if trace == "record":
            return (self.records / container).exists()
        if trace == "address":
            return container in self.reserved().values()
        with self.pods[container].entered():
            return f"{INTERFACE}:" in Path("/proc/thread-self/net/dev").read_text()

    def traces(self, container: str) -> set[str]:
        """All that there is of a container."""
        return {trace for trace in TRACES if self.has(container, trace)}

    def reserved(self) -> dict[IPv4Address, str]:
        """Whom host-local has given each address; nobody where it did not come to write that."""
        found = {}
        for path in self._given.glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                found[IPv4Address(path.name)] = path.read_text().partition("\n")[0].strip()
        return found

    def leave_unfinished(self, address: IPv4Address) -> None:
        """Leave what host-local does when it is killed between making an address's file and writing into it."""
        (self._given / f"{address}").touch()

    def addresses(self) -> dict[IPv4Address, str]:
        """Which container has each address, by its kernel's word; one that two have fails."""
        found: dict[IPv4Address, str] = {}
        for name, pod in self.pods.items():
            for link in json.loads(pod.run("ip", "-j", "-4", "address").stdout):
                for held in link["addr_info"] if link["ifname"] == INTERFACE else ():
                    address = IPv4Address(held["local"])
                    assert address not in found, f"{address} is {name}'s and {found[address]}'s"
                    found[address] = name
        return found

    def ports(self) -> list[str]:
        """The bridge's."""
        links = json.loads(self.node.run("ip", "-j", "link", "show", "type", "veth").stdout)
        return [link["ifname"] for link in links]

    def kept(self) -> set[str]:
        """The plugin's files."""
        return {path.name for path in self.records.iterdir()}


def _strike(process: subprocess.Popen[bytes], blow: Blow) -> None:
    while not blow.due() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(blow.moment)
    if process.poll() is None:  # else it was too quick
        (os.killpg if blow.group else os.kill)(process.pid, signal.SIGKILL)


class Runtime:
    """Plugs containers in and out, kills a part of its own calls, and then does its duty: DEL."""

    def __init__(self, storm: Storm, seed: int, group: bool) -> None:
        self.storm = storm
        self._random = random.Random(seed)
        self._group = group
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()
        self.struck: list[tuple[str, str]] = []
        """Verb and trace of each blow that met its call."""

    def all_of(self, job: Callable[[str], None], containers: list[str]) -> None:
        """Do this for these containers, many at once, in no order."""
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(job, container) for container in self._random.sample(containers, len(containers))]:
                done.result()

    def plug(self, container: str) -> None:
        """ADD, and once more if that was killed."""
        done = self._call("ADD", container)
        if done.killed:
            self._delete(container)
            done = self.storm.call("ADD", container)
        assert done.status == 0, (container, done)
        (ip,) = done.answer["ips"]
        with self._lock:
            holder = self._holders.setdefault(ip["address"], container)
        assert holder == container, f"{ip['address']} was given to {container}, and is {holder}'s"

    def unplug(self, container: str) -> None:
        """DEL, and once more if that was killed; nothing of the container is there then."""
        with self._lock:
            self._holders = {address: holder for address, holder in self._holders.items() if holder != container}
        self._delete(container)

    def replug(self, container: str) -> None:
        """What a restart is."""
        self.unplug(container)
        self.plug(container)

    def _delete(self, container: str) -> None:
        done = self._call("DEL", container)
        if done.killed:
            done = self.storm.call("DEL", container)
        assert done == Done(0, {}), container
        assert not self.storm.traces(container), container

    def _call(self, verb: str, container: str) -> Done:
        """Call, and of five calls kill two: at some time, or when a trace has come (ADD) or gone (DEL)."""
        with self._lock:
            trace = self._random.choice(("start", *TRACES))
            moment = self._random.random() * 0.05 if trace == "start" else self._random.random() ** 2 * 0.02
            spared = self._random.random() < 0.6

        def due() -> bool:
            return trace == "start" or self.storm.has(container, trace) == (verb == "ADD")

        done = self.storm.call(verb, container, None if spared else Blow(due, moment, self._group))
        if done.killed:
            self.struck.append((verb, trace))
        return done
