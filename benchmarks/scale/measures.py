"""What is measured: starts of the daemon, single changes, many changes, memory, and nodes that start at once."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed
from benchmarks.scale.leases import Leases, subnet_of
from benchmarks.scale.world import Daemon, Street, arrival, await_routes, cpu_of
from tests.interop.etcd_cluster import Cluster

Sample = dict[str, Any]
Child: TypeAlias = "subprocess.Popen[str]"
CHANGES = ("address changed", "lease came", "lease went")
PROBE_PAUSE = 0.05
PROCESSES = 4  # that the nodes which start at once are divided among
PATIENCE = 120.0


@dataclass
class Place:
    """All that the measurements share; node number 0 is the one that packets are sent to."""

    cable: Cable
    etcd: Cluster
    leases: Leases
    street: Street
    folder: Path
    prefix: str
    daemons: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://{self.cable.two.address}:2379"

    def daemon(self) -> Daemon:
        """Start a daemon; it has no past, so that it chooses its subnet anew."""
        self.daemons += 1
        folder = self.folder / f"{self.daemons}"
        folder.mkdir()
        return Daemon(self.cable.one, folder, self.endpoint, self.prefix)


def start(place: Place) -> tuple[Daemon, Sample]:
    """Start a daemon, and wait for the first packet to the peer that is the last in order."""
    last = max(place.leases.current)
    place.leases.commit(place.leases.put(last))
    place.street.look_for(subnet_of(last)[1])
    with place.street.door(place.leases.current[last]) as door:
        daemon = place.daemon()
        first = arrival(door) - time.monotonic() + time.time()
        cpu = daemon.cpu()
    await_routes(daemon, place.leases.expected())
    return daemon, {"from_process": first - daemon.began, "from_snapshot": first - daemon.asked_for_leases(),
                    "cpu": cpu, **daemon.memory()}


def change(place: Place, kind: str) -> float:
    """Seconds from the sending of one change to etcd to the first packet on the way that it opens."""
    leases = place.leases
    if kind == "lease came":
        leases.commit(leases.delete(0))
        time.sleep(PROBE_PAUSE)
    # A lease that goes opens no way: another's new address comes behind it, in the same transaction.
    before = [leases.delete(max(leases.current))] if kind == "lease went" else []
    moved = leases.put(0)
    place.street.look_for(subnet_of(0)[1])
    with place.street.door(leases.current[0]) as door:
        begin = time.monotonic()
        written = leases.send(*before, moved)
        took = arrival(door) - begin
    written.result()
    time.sleep(PROBE_PAUSE)
    return took


def load(place: Place, daemon: Daemon, rate: int, seconds: float) -> Sample:
    """Make changes at a rate, and see how late the daemon is, all along and after the last."""
    lags: list[float] = []
    failures: list[BaseException] = []
    end = threading.Event()

    def look() -> None:
        try:
            while not end.is_set():
                lags.append(change(place, "address changed"))
        except BaseException as error:  # raised by whoever waits for this thread
            failures.append(error)

    prober = threading.Thread(target=look)
    cpu, etcd_cpu = daemon.cpu(), cpu_of(place.etcd.members[0].pid)
    begin = time.monotonic()
    prober.start()
    try:
        written = _change_all(place.leases, rate, seconds)
    finally:
        end.set()
        prober.join()
    if failures:
        raise failures[0]
    took = time.monotonic() - begin
    await_routes(daemon, place.leases.expected())
    return {"written": written, "lags": lags, "daemon_cpu": (daemon.cpu() - cpu) / took,
            "etcd_cpu": (cpu_of(place.etcd.members[0].pid) - etcd_cpu) / took, **daemon.memory()}


def _change_all(leases: Leases, rate: int, seconds: float) -> float:
    """One change after the other, each tenth a lease that goes, each tenth one that comes; return the rate reached."""
    calls = []
    others = sorted(leases.current)[1:]
    begin = time.monotonic()
    gone = others[0]
    for count in range(round(rate * seconds)):
        number = others[count % len(others)]
        if count % 10 == 0:
            gone = number
            operation = leases.delete(number)
        else:
            operation = leases.put(gone if count % 10 == 5 else number)
        calls.append(leases.send(operation))
        time.sleep(max(0.0, begin + (count + 1) / rate - time.monotonic()))
    for call in calls:
        call.result()
    return len(calls) / (time.monotonic() - begin)


def crowd(place: Place, count: int, prefix: str) -> Sample:
    """Have so many nodes start at once below a prefix; what became of them, and what it cost etcd."""
    bounds = sorted({count * part // PROCESSES for part in range(PROCESSES + 1)})
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_starters(place, prefix, first, after - first))
                    for first, after in itertools.pairwise(bounds)]
        for child in children:
            _answer(child)
        before, cpu = etcd_counts(place.etcd), cpu_of(place.etcd.members[0].pid)
        told = [one for child in _all_told(children, "go") for one in json.loads(_answer(child))]
        calls = {name: number - before.get(name, 0) for name, number in etcd_counts(place.etcd).items()}
        cpu = cpu_of(place.etcd.members[0].pid) - cpu
        held = sum("subnet" in one for one in told)
        known = [json.loads(_answer(child)) for child in _all_told(children, f"{held - 1}")]
    return {"nodes": told, "etcd_cpu": cpu, "etcd_calls": {name: number for name, number in calls.items() if number},
            "know_all": sum(one["know_all"] for one in known), "known_after": max(one["seconds"] for one in known)}


@contextlib.contextmanager
def _starters(place: Place, prefix: str, first: int, count: int) -> Iterator[Child]:
    words = ["benchmarks.scale.starters", place.endpoint, prefix, f"{first}", f"{count}"]
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def _all_told(children: list[Child], word: str) -> list[Child]:
    for child in children:
        assert child.stdin
        child.stdin.write(word + "\n")
        child.stdin.flush()
    return children


def _answer(child: Child) -> str:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise Failed("a process of nodes that start ended before its time")
    return line


def etcd_counts(etcd: Cluster) -> dict[str, int]:
    """Calls that etcd has answered with OK, by method, by its own count."""
    with urllib.request.urlopen(f"http://{etcd.members[0].address}:2379/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^grpc_server_handled_total\{grpc_code="OK",grpc_method="(\w+)".*\} (\S+)$', text, re.MULTILINE)
    return {method: int(float(number)) for method, number in found}
