"""Measure what the CNI plugin takes beside the plugin it calls: python -m benchmarks.cni (root).

Each call is a process of its own, as a runtime makes it, on a network namespace that is new. In every round each
contender adds a container and deletes it; every second round goes backwards. The files of the interpreter and of the
plugins are in the page cache; `uncompiled` is ours without its .pyc files, as the first call after an installation.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import spread
from benchmarks.rivals import machine
from benchmarks.rivals.contenders.base import peer_program
from benchmarks.rivals.sample import Failed
from flannel_udp.cni import call, delegate
from flannel_udp.cni.install import PLUGIN, install_plugin, launcher
from flannel_udp.errors import LabError
from flannel_udp.lab import plug
from flannel_udp.subnet_env import plugin_env
from tests.netns.topology import Place

PACKAGE = Path(delegate.__file__).parents[1]
TARGET = 40.0  # ms of its own in an ADD
VERBS = ("ADD", "DEL")
DIRECT, OURS, UNCOMPILED, FLANNEL = "bridge", "flannel_udp", "flannel_udp, uncompiled", "flannel v0.9.1"
# What flannel's plugin of that time knows.
SAID = {"cniVersion": "0.4.0", "name": "bench", "type": "flannel",
        "delegate": {"isDefaultGateway": True, "hairpinMode": True}}  # fmt: skip
ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

Times = dict[str, dict[str, list[float]]]


@dataclass
class Contender:
    """A plugin, what it is told, and how long each of its calls took, in ms."""

    program: Path
    said: dict[str, Any]
    compiled: Path | None = None
    """The folder that its .pyc files are to be missing in."""
    times: dict[str, list[float]] = field(default_factory=lambda: {verb: [] for verb in VERBS})


class World:
    """A node, the contenders, and a folder for all that they keep."""

    def __init__(self, folder: Path, plugins: str) -> None:
        self.plugins = plugins
        self._numbers = itertools.count()
        (folder / "subnet.env").write_text(ENV)
        said = {**SAID, "subnetFile": f"{folder}/subnet.env", "dataDir": f"{folder}/records",
                "ipam": {"dataDir": f"{folder}/networks"}}  # fmt: skip
        install_plugin(folder / "bin")
        told = delegate.configure(call.read_network(said), plugin_env(folder / "subnet.env"))
        bridge = next(Path(one, DIRECT) for one in plugins.split(":") if Path(one, DIRECT).is_file())
        self.contenders = {
            DIRECT: Contender(bridge, told),
            OURS: Contender(folder / "bin" / PLUGIN, said),
            UNCOMPILED: Contender(*_uncompiled(folder, said)),
        }
        with contextlib.suppress(Failed):  # the reason was shown; the others are compared all the same
            self.contenders[FLANNEL] = Contender(Path(peer_program("flannel")), said)
        self.node = Place("node")

    def round(self, *, backwards: bool) -> None:
        """Have each contender add a container and delete it."""
        for contender in reversed(self.contenders.values()) if backwards else self.contenders.values():
            pod = Place(f"c{next(self._numbers)}")
            try:
                for verb in VERBS:
                    if contender.compiled:
                        for file in contender.compiled.rglob("*.pyc"):
                            file.unlink()
                    contender.times[verb].append(self._time(contender, verb, pod))
            finally:
                pod.close()

    def _time(self, contender: Contender, verb: str, pod: Place) -> float:
        environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": pod.name,
                       "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "CNI_PATH": self.plugins}  # fmt: skip
        said = json.dumps(contender.said).encode()
        with self.node.entered():
            begin = time.perf_counter()
            done = subprocess.run([contender.program], input=said, env=environment, capture_output=True, check=False)
            taken = time.perf_counter() - begin
        if done.returncode:
            raise Failed(f"{contender.program}: {verb}: {(done.stdout + done.stderr).decode()}".rstrip())
        return taken * 1e3


def _uncompiled(folder: Path, said: dict[str, Any]) -> tuple[Path, dict[str, Any], Path]:
    """A copy of ours, of which .pyc files may be removed."""
    copy = folder / "copy"
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    program = copy / PLUGIN
    program.write_text(launcher().replace(repr(str(PACKAGE.parent)), repr(str(copy))))
    program.chmod(0o755)
    return program, said, copy


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Everything set up, and taken down at the end."""
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder), plug.folders())
        try:
            yield made
        finally:
            made.node.close()


def measure(rounds: int) -> dict[str, Any]:
    """Measure all; the first round, which makes the bridge and reads the files, is not counted."""
    with world() as here:
        here.round(backwards=False)
        for contender in here.contenders.values():
            for times in contender.times.values():
                times.clear()
        for number in range(rounds):
            here.round(backwards=number % 2 == 1)
        return {"machine": machine.facts(), "plugins": here.plugins,
                "times": {name: contender.times for name, contender in here.contenders.items()}}  # fmt: skip


def markdown(record: dict[str, Any]) -> str:
    """Return the table: what each call took and, of those that call the bridge plugin, what they took beside it."""
    times: Times = record["times"]
    facts = record["machine"]
    head = (f"{len(times[OURS]['ADD'])} rounds; {facts['cpu']}, {facts['date']}, busy before the start: "
            f"{facts['busy before the start']:.0%}; ms, median (lowest - highest)")  # fmt: skip
    lines = [head, "", "## Whole calls, and what is the plugin's own of them", "",
             f"| plugin | {' | '.join(f'{verb} | its own' for verb in VERBS)} |",
             f"|---|{'---|---|' * len(VERBS)}"]  # fmt: skip
    for name, taken in times.items():
        cells = [cell for verb in VERBS for cell in
                 (spread(taken[verb]), "-" if name == DIRECT else spread(own(times, name, verb)))]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    figure = statistics.median(own(times, OURS, "ADD"))
    quickest = min(times[OURS]["ADD"]) - min(times[DIRECT]["ADD"])
    verdict = (f"Of ADD {figure:.1f} ms are our plugin's own, by the quickest calls of each {quickest:.1f} ms; "
               f"to be below {TARGET:g} ms: {'reached' if figure < TARGET else '**missed**'}.")  # fmt: skip
    return "\n".join([*lines, "", verdict]) + "\n"


def own(times: Times, name: str, verb: str) -> list[float]:
    """Return what a contender took longer than the bridge plugin in the same round."""
    return [whole - part for whole, part in zip(times[name][verb], times[DIRECT][verb], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cni", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=40, help="default 40")
    parser.add_argument("--save", type=Path, help="folder for samples.json and report.md")
    chosen = parser.parse_args()
    if not 1 <= chosen.rounds <= 1000:
        sys.exit(f"python -m benchmarks.cni: --rounds {chosen.rounds}: from 1 to 1000")
    if os.geteuid() != 0:
        sys.exit("python -m benchmarks.cni: needs root: it makes namespaces and devices")
    try:
        record = measure(chosen.rounds)
        text = markdown(record)
        if chosen.save:
            chosen.save.mkdir(parents=True, exist_ok=True)
            (chosen.save / "samples.json").write_text(json.dumps(record, indent=1))
            (chosen.save / "report.md").write_text(text)
    except (OSError, LabError, Failed) as error:
        sys.exit(f"python -m benchmarks.cni: {error}")
    print(text)


if __name__ == "__main__":
    main()
