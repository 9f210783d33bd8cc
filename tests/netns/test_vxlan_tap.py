"""A TAP instead of a TUN: a device that to tools looks as flannel's, beside kernels, TUNs and other TAPs."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from ..conftest import require_tun
from .agent import Agent, KernelVxlan, mac_of
from .test_transfers import checksum_errors, segments_per_message
from .test_vxlan import exchange
from .topology import Topology
from .transfer import transfer

PART = 32 << 20
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def pair(topology: Callable[..., Topology]) -> Iterator[Callable[..., tuple[Agent, Agent | KernelVxlan]]]:
    """Make our node with a TAP, and another of some kind."""
    require_tun()
    made: list[Agent | KernelVxlan] = []

    def make(family: int, kind: str, off: tuple[str, ...] = ()) -> tuple[Agent, Agent | KernelVxlan]:
        near, far = topology(2).nodes
        one = Agent(near, family, vxlan=True, tap=True, off=off)
        two = KernelVxlan(far, family) if kind == "kernel" else Agent(far, family, vxlan=True, tap=kind == "tap")
        made.extend((one, two))
        one.knows(two)
        two.knows(one)
        # While a neighbour is asked for, packets wait, or are dropped where many do.
        assert near.ping(two.address).returncode == 0
        return one, two

    yield make
    for end in made:
        assert checksum_errors(end) == 0
        if isinstance(end, Agent):
            assert end.exits == []
            end.close()


@FAMILIES
@pytest.mark.parametrize("kind", ["kernel", "tun", "tap"])
@pytest.mark.parametrize("off", [(), ("tun",)], ids=["all", "bare"])
def test_every_byte_both_ways(pair: Callable[..., tuple[Agent, Agent | KernelVxlan]], family: int, kind: str,
                              off: tuple[str, ...]) -> None:
    one, two = pair(family, kind, off=off)
    assert "ttl=64" in one.node.ping(two.tunnel).stdout
    assert "ttl=64" in two.node.ping(one.tunnel).stdout
    transfer(one.node, two.node, two.tunnel, PART)
    transfer(two.node, one.node, one.tunnel, PART)
    for total, size in ((300, 300), (1001, 500), (60_000, 1300)):
        exchange(one, two, total, size)
        exchange(two, one, total, size)
    assert one.outcomes("in").keys() == {"delivered"}
    assert one.outcomes("out")["neighbour_told"] > 0
    if not off:
        assert segments_per_message(one) > 2
    assert one.forwarder.given_up() == {}


@FAMILIES
def test_pods_and_what_nobody_leases(pair: Callable[..., tuple[Agent, Agent | KernelVxlan]], family: int) -> None:
    one, two = pair(family, "kernel")
    pods = [end.node.add_pod(end.subnet, 1400) for end in (one, two)]
    assert pods[0].ping(pods[1].address).returncode == 0
    transfer(pods[1], pods[0], pods[0].address, PART)
    nobody = "10.5.77.1" if family == 4 else "fd05:0:0:77::1"
    assert one.node.ping(nobody, "-W", "0.2").returncode
    one.wait_for("out", "neighbour_unknown")


def test_pods_on_a_host_whose_new_devices_get_no_link_local_address(topology: Callable[..., Topology]) -> None:
    """Such is the default of some network managers: forwarded packets need one, for the kernel to ask by."""
    require_tun()
    near, far = topology(2).nodes
    near.run("sysctl", "-qw", "net.ipv6.conf.default.addr_gen_mode=1")
    one, two = Agent(near, 6, vxlan=True, tap=True), KernelVxlan(far, 6)
    with contextlib.closing(one):
        one.knows(two)
        two.knows(one)
        pods = [end.node.add_pod(end.subnet, 1400) for end in (one, two)]
        assert pods[0].ping(pods[1].address).returncode == 0


@FAMILIES
def test_a_path_that_is_too_narrow(pair: Callable[..., tuple[Agent, Agent | KernelVxlan]], family: int) -> None:
    """The error goes in as a frame: TCP learns of the path and goes whole again."""
    one, two = pair(family, "kernel")
    one.node.ip(f"route add {two.address} dev {one.node.interface} mtu 1400")
    transfer(one.node, two.node, two.tunnel, PART)
    transfer(two.node, one.node, one.tunnel, PART)
    assert one.events("out")["icmp_sent"] > 0
    assert segments_per_message(one) > 2


@FAMILIES
def test_it_looks_as_flannels(pair: Callable[..., tuple[Agent, Agent | KernelVxlan]], family: int) -> None:
    """Ethernet, the VtepMAC, the MTU; neighbours are the peers' MACs."""
    one, two = pair(family, "kernel")
    assert one.node.ping(two.tunnel).returncode == 0

    def read(what: str) -> str:
        return one.node.run("ip", *what.split()).stdout

    shown = read(f"link show {one.tun.name}")
    assert f"link/ether {mac_of(1).hex(':')}" in shown
    assert f"mtu {1450 if family == 4 else 1430}" in shown
    assert mac_of(2).hex(":") in read(f"neigh show {two.tunnel} dev {one.tun.name}")
