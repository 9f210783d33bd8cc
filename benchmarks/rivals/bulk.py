"""Bulk TCP, by iperf3."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from benchmarks.rivals.contenders import Contender
from benchmarks.rivals.places import Cable
from benchmarks.rivals.sample import Failed, Sample, wait_until

PORT = 5201
TRIES = 10
# iperf3's time to agree with its server on the end, beyond the time that is measured.
PATIENCE = 30


def start_server(cable: Cable) -> None:
    """Start the iperf3 server that all TCP loads talk to, on node 2."""
    cable.two.start("iperf3", "--server", "--port", f"{PORT}", output=subprocess.DEVNULL)
    wait_until(lambda: f":{PORT} " in cable.two.run("ss", "-Hltn").stdout, "iperf3 listens")


def tcp(contender: Contender, seconds: float, flows: int = 1, direction: str = "out") -> Sample:
    """Bulk TCP from node 1 to node 2 ("out"), back ("in") or both ways at once ("both")."""
    how = {"out": [], "in": ["--reverse"], "both": ["--bidir"]}[direction]
    command = ["iperf3", "--client", f"{contender.target}", "--port", f"{PORT}", "--json", *how]
    command += ["--time", f"{max(1, round(seconds))}", "--parallel", f"{flows}"]
    for _ in range(TRIES):
        try:
            done = contender.cable.one.run(*command, check=False, deadline=seconds + PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"iperf3 did not end within {error.timeout:.0f} s") from error
        if "server is busy" not in done.stdout:  # with the end of the measurement before
            break
        time.sleep(0.2)
    try:
        end = json.loads(done.stdout)["end"]
        received = [end["sum_received"], *([end["sum_received_bidir_reverse"]] if direction == "both" else [])]
        sent = end["sum_sent"]
    except (KeyError, ValueError) as error:
        raise Failed(f"iperf3: {done.stdout[-200:]} {done.stderr}") from error
    bits = sum(one["bytes"] * 8 for one in received)
    return {"gbps": bits / received[0]["seconds"] / 1e9, "gigabits": bits / 1e9, "retransmits": sent["retransmits"]}


@contextlib.contextmanager
def meanwhile(contender: Contender, seconds: float) -> Iterator["Future[Sample]"]:
    """Have one flow at full rate during the block, which should last about `seconds`; its sample comes at the end."""
    with ThreadPoolExecutor(1) as pool:
        flow = pool.submit(tcp, contender, seconds + 1)
        wait_until(lambda: flow.done() or _connections(contender) > 1, "the bulk flow is connected")
        yield flow


def _connections(contender: Contender) -> int:
    """Count iperf3's connections, of which the first is for control only."""
    told = contender.cable.one.run("ss", "-Htn", "state", "established", "dport", "=", f":{PORT}", check=False)
    return len(told.stdout.splitlines())
