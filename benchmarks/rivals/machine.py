"""What a figure depends on and a reader cannot know: the machine, its versions, devices and what they were granted."""

import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.rivals import offloads
from benchmarks.rivals.contenders import Contender
from benchmarks.rivals.places import cpu_seconds

ROOT = Path(__file__).parent.parent.parent
# What `ip -d` tells of a device, and a reader may want to know.
SIZES = ("mtu", "txqlen", "num_tx_queues", "gso_max_size", "gso_max_segs", "gro_max_size", "tso_max_size", "qdisc")
# Of the kernel's settings those that move figures of an overlay.
SYSCTLS = ("net/core/rmem_max", "net/core/wmem_max", "net/core/netdev_max_backlog", "net/core/busy_poll",
           "net/ipv4/tcp_congestion_control")  # fmt: skip


def facts() -> dict[str, Any]:
    """Return what is the same for the whole run."""
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")]  # fmt: skip
    told = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": f"{platform.release()} {platform.version()}",
        "cpu": f"{len(cpus)} x {cpus[0] if cpus else platform.machine()}",
        "processors usable": len(os.sched_getaffinity(0)),
        "memory": Path("/proc/meminfo").read_text().splitlines()[0].split(":")[1].strip(),
        "commit": _first_line("git", "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "iperf3": _first_line("iperf3", "--version"),
        "iproute2": _first_line("ip", "-V"),
        "load at start": os.getloadavg()[0],
        "busy before the start": round(_others_cpu(), 2),
    }
    return told | {name.replace("/", "."): _sysctl(name) for name in SYSCTLS}


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "-"
    return done.stdout.partition("\n")[0].strip()


def _sysctl(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return "-"


def _others_cpu() -> float:
    """Return the part of the machine that others use while nothing is measured here: a second's look."""
    before, _ = cpu_seconds()
    time.sleep(1)
    return (cpu_seconds()[0] - before) / (os.cpu_count() or 1)


def contender(one: Contender) -> dict[str, Any]:
    """Return a contender's settings, and the device on node 1 by which it reaches its target."""
    told = one.told()
    node = one.cable.one
    route = json.loads(node.run("ip", "-json", "route", "get", f"{one.target}").stdout)[0]
    link = json.loads(node.run("ip", "-json", "-details", "link", "show", "dev", route["dev"]).stdout)[0]
    told |= {name: link[name] for name in SIZES if name in link}
    return told | {"device": route["dev"], "offloads on": _of_packets(node.call(offloads.active, route["dev"]))}


def _of_packets(active: list[str]) -> list[str]:
    """Leave out what is on but has nothing to do with the size of packets or their checksums."""
    words = ("segmentation", "checksum", "gro", "scatter", "lro")
    return [name for name in active if any(word in name for word in words)]
