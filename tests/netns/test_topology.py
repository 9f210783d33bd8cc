"""The fixture itself: what it promises, and that it leaves nothing."""

import socket
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

from ..conftest import wait_until
from .topology import Topology

MakeTopology = Callable[..., Topology]


def own_namespace() -> Path:
    return Path("/proc/thread-self/ns/net").readlink()


def test_nodes_reach_each_other_over_the_underlay(topology: MakeTopology) -> None:
    one, two = topology(2).nodes
    assert one.ping(two.address).returncode == 0
    assert one.ping(two.address6).returncode == 0


def test_pod_reaches_another_node_through_its_own(topology: MakeTopology) -> None:
    one, two = topology(2).nodes
    pod = one.add_pod(IPv4Network("10.5.1.0/24"))
    two.ip(f"route add 10.5.1.0/24 via {one.address}")
    assert "ttl=63" in two.ping(pod.address).stdout


def test_mtu_is_that_of_the_underlay(topology: MakeTopology) -> None:
    node = topology(1, mtu=1400).nodes[0]
    assert "mtu 1400" in node.run("ip", "link", "show", "eth0").stdout


def test_entering_comes_back_and_sockets_stay(topology: MakeTopology) -> None:
    before, directory = own_namespace(), Path.cwd()
    node = topology(1).nodes[0]
    with node.entered():
        assert own_namespace() != before
        listener = socket.create_server((str(node.address), 0))
    with listener:
        assert node.call(lambda: socket.create_connection(listener.getsockname(), timeout=5).close()) is None
    assert own_namespace() == before
    assert Path.cwd() == directory


def test_started_programs_end_with_the_topology(topology: MakeTopology) -> None:
    topology(0)  # for its conditions
    made = Topology(1)
    process = made.nodes[0].start("sleep", "100")
    made.close()
    assert process.returncode is not None


KILLED_RUN = """
import sys, time
from tests.netns.topology import Topology
topology = Topology(1)
process = topology.nodes[0].start("sleep", "100")
print(process.pid, flush=True)
time.sleep(100)
"""


def test_killed_test_run_leaves_no_process(topology: MakeTopology) -> None:
    topology(0)  # for its conditions
    root = Path(__file__).parents[2]
    run = subprocess.Popen([sys.executable, "-c", KILLED_RUN], stdout=subprocess.PIPE, text=True, cwd=root)
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the program runs, bound to its parent")
        run.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the started program dies with the test run")
