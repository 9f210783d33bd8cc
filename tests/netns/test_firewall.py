"""The firewall of real daemons, told by real traffic: whom the destination sees, and who is let through."""

import signal
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from flannel_udp.registry import open_registry

from ..conftest import require_tun, wait_until
from .firewalled import (
    HOSTS,
    OUTSIDE,
    OUTSIDE6,
    add_outside,
    knows_way,
    ready,
    require_firewalls,
    rules_of,
    source_of,
    table,
    warned,
)
from .node_daemon import Daemon
from .topology import Place, Topology

MakeTopology = Callable[..., Topology]
RESYNC = ("--iptables-resync", "1")
SOURCELESS = "--source-check=off"


class World:
    """Two nodes with a pod each, and a host outside."""

    def __init__(self, topology: Topology, root: Path, registry: str, *options: str) -> None:
        self.daemons = [Daemon(node, root, registry, "", *RESYNC, *options) for node in topology.nodes]
        for daemon in self.daemons:
            ready(daemon)
            daemon.node.add_pod(daemon.subnet())
        for daemon in self.daemons:
            wait_until(lambda daemon=daemon: daemon.status()["peers"], "it has a peer")  # type: ignore[misc]
        self.one, self.two = self.daemons
        self.node, self.pod, self.remote = self.one.node, self.one.node.pods[0], self.two.node.pods[0]
        self.outside = add_outside(topology)
        knows_way(self.outside, self.one)

    def masqueraded(self) -> bool:
        return source_of(self.pod, self.outside, OUTSIDE, patience=1.0) == self.node.address


@pytest.fixture(params=HOSTS)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the host of the test needs."""
    return str(request.param)


@pytest.fixture
def make(topology: MakeTopology, tmp_path: Path) -> Callable[..., World]:
    """A world whose hosts need this engine, with daemons of these options."""
    require_tun()
    require_firewalls()

    def made(engine: str, *options: str, config: str = '{"Network": "10.5.0.0/16"}') -> World:
        url = f"sqlite://{tmp_path}/registry.db"
        registry = open_registry(url)
        registry.write_config(config)
        registry.close()
        nodes = topology(2)
        for node in nodes.nodes:
            for command in HOSTS[engine]:
                node.run(*command)
        return World(nodes, tmp_path, url, *options)

    return made


def test_sources_are_kept_and_hidden_as_with_flannel(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq")
    node, pod, remote, outside = world.node, world.pod, world.remote, world.outside
    assert world.one.status()["firewall"]["engine"] == engine
    assert source_of(pod, remote, remote.address) == pod.address
    assert source_of(remote, pod, pod.address) == remote.address
    assert source_of(pod, outside, OUTSIDE) == node.address
    tunnel = world.one.subnet().network_address
    assert source_of(node, remote, remote.address) == tunnel
    assert source_of(node, remote, remote.address, bind=node.address) == tunnel
    assert source_of(outside, pod, pod.address) == OUTSIDE
    assert source_of(node, pod, pod.address, bind=node.address) == node.address
    # What a client outside sends to a remote pod by way of this node comes back by it.
    outside.ip(f"route replace {world.two.subnet()} via {node.address}")
    assert source_of(outside, remote, remote.address) == tunnel


def test_without_masquerading_every_source_is_kept(make: Callable[..., World], engine: str) -> None:
    world = make(engine)
    assert source_of(world.pod, world.outside, OUTSIDE) == world.pod.address
    assert source_of(world.outside, world.pod, world.pod.address) == OUTSIDE
    assert source_of(world.pod, world.remote, world.remote.address) == world.pod.address
    assert world.one.home.joinpath("subnet.env").read_text().endswith("FLANNEL_IPMASQ=false\n")
    assert world.one.status()["firewall"]["engine"] == ("none" if engine == "nft" else engine)
    assert "masquerade" not in _all_rules(world.node, engine).lower()


@pytest.mark.parametrize("mark", [0x4000, 0x4001, 0x8000])
def test_what_kube_proxy_marked_is_left_to_it(make: Callable[..., World], engine: str, mark: int) -> None:
    world = make(engine, "--ip-masq", SOURCELESS)
    world.node.run("nft", "-f", "-", text="table ip marker {\nchain in {\ntype filter hook prerouting priority 0;\n"
                   f"ip daddr {OUTSIDE} meta mark set {mark}\n}}\n}}\n")
    bit = bool(mark & 0x4000)
    assert source_of(world.pod, world.outside, OUTSIDE) == (world.pod.address if bit else world.node.address)


def test_fully_random_ports_unless_they_are_not_wanted(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq", "--ip-masq-fully-random-disable")
    assert "random" not in rules_of(world.one)
    assert world.masqueraded()
    world.one.end(signal.SIGTERM)
    world.one.argv.remove("--ip-masq-fully-random-disable")
    world.one.start()
    ready(world.one)
    assert rules_of(world.one).count("fully") == 2
    assert world.masqueraded()


DUAL = ('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48", '
        '"Backend": {"Type": "udp"}}')


def test_ipv6_has_the_same_rules(make: Callable[..., World], engine: str) -> None:
    """By way of the host alone, as rules are about; test_dual_stack.py has those of the tunnel."""
    world = make(engine, "--ip-masq", "--iface=eth0", config=DUAL)
    subnet = next(line for line in world.one.home.joinpath("subnet.env").read_text().splitlines()
                  if line.startswith("FLANNEL_IPV6_SUBNET=")).partition("=")[2]
    gateway = IPv6Address(subnet.partition("/")[0])
    inner = gateway + 1
    world.node.ip(f"addr add {subnet} dev cni0 nodad")
    world.pod.ip(f"addr add {inner}/64 dev eth0 nodad", f"route add default via {gateway}")
    world.outside.ip(f"route add {inner}/128 via {world.node.address6}")
    assert source_of(world.pod, world.outside, OUTSIDE6) == world.node.address6
    assert source_of(world.outside, world.pod, inner) == OUTSIDE6
    assert source_of(world.pod, world.outside, OUTSIDE) == world.node.address


def test_rules_that_somebody_deletes_come_back(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq")
    deeds = {"nft": ["nft delete table inet {0}", "nft flush chain inet {0} postrouting"],
             "iptables": ["iptables -t nat -F", "iptables -F FORWARD"],
             "iptables-legacy": ["iptables-legacy -t nat -F", "iptables-legacy -F FORWARD"]}
    name = world.one.status()["firewall"]["place"].split()[-1]
    before = rules_of(world.one)
    for deed in deeds[engine]:
        world.node.run("sh", "-c", deed.format(name))
        wait_until(world.masqueraded, f"it masquerades again after {deed}")
        wait_until(lambda: rules_of(world.one) == before, "all rules stand")
        assert source_of(world.pod, world.remote, world.remote.address) == world.pod.address
    assert "firewall rules put back" in world.one.log()


@pytest.mark.parametrize("engine", ["nft", "iptables"])
def test_a_reload_of_the_hosts_own_rules_is_survived(make: Callable[..., World], engine: str) -> None:
    """`flush ruleset` is the first line of /etc/nftables.conf; with it goes the policy that asked for iptables."""
    world = make(engine, "--ip-masq")
    world.node.run("nft", "flush", "ruleset")
    wait_until(world.masqueraded, "it masquerades again")
    wait_until(lambda: world.one.status()["firewall"]["engine"] == "nft", "nft is used")
    assert world.one.log().count("Traceback") == 0


def test_a_forward_chain_that_begins_to_drop_gets_rules(make: Callable[..., World]) -> None:
    """As when Docker is started after the daemon."""
    world = make("nft", "--ip-masq")
    before = table(world.node, world.one.status()["firewall"]["place"].removeprefix("table "))
    assert "masquerade" in before
    for command in HOSTS["iptables"]:
        world.node.run(*command)
    wait_until(lambda: world.one.status()["firewall"]["engine"] == "iptables", "iptables is used")
    wait_until(world.masqueraded, "packets pass, and are masqueraded")
    assert not table(world.node, "inet flannel_udp")
    assert world.one.log().count("room=firewall event=\"firewall rules\"") == 2


def test_forward_rules_may_be_declined(make: Callable[..., World]) -> None:
    world = make("iptables", "--iptables-forward-rules=false", "--ip-masq")
    assert world.one.status()["firewall"]["engine"] == "nft"
    assert source_of(world.pod, world.remote, world.remote.address, patience=1.0) is None


def test_drop_of_a_foreign_table_is_told_with_a_remedy_that_works(make: Callable[..., World]) -> None:
    world = make("nft", "--ip-masq")
    assert world.one.status()["warnings"] == []
    world.node.run("nft", "-f", "-", text="table inet filter {\nchain forward {\n"
                   "type filter hook forward priority 0; policy drop;\n}\n}\n")
    wait_until(lambda: warned(world.one, "the chain forward of nft's table inet filter drops"), "it is told")
    assert source_of(world.pod, world.remote, world.remote.address, patience=1.0) is None
    line, = world.one.status()["warnings"]
    for command in line.partition("too: ")[2].split(" and "):
        world.node.run(*command.split())
    assert source_of(world.pod, world.remote, world.remote.address) == world.pod.address
    assert world.masqueraded()
    wait_until(lambda: not world.one.status()["warnings"], "it is well again")


def test_rejecting_rule_before_ours_is_told_with_a_remedy_that_works(make: Callable[..., World]) -> None:
    world = make("nft")
    world.node.run("iptables", "-A", "FORWARD", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
    wait_until(lambda: warned(world.one, "the FORWARD chain of iptables drops forwarded packets by the rule"), "told")
    assert source_of(world.pod, world.remote, world.remote.address, patience=1.0) is None
    line, = world.one.status()["warnings"]
    for command in line.partition("too: ")[2].split(" and "):
        world.node.run(*command.split())
    assert source_of(world.pod, world.remote, world.remote.address) == world.pod.address
    wait_until(lambda: not world.one.status()["warnings"], "it is well again")


def test_drops_that_stand_before_ours_still_decide(make: Callable[..., World]) -> None:
    """Network policies: our jump is the last rule, also after it was put back."""
    world = make("iptables")
    world.node.run("iptables", "-F", "FORWARD")
    world.node.run("iptables", "-I", "FORWARD", "-d", str(world.remote.address), "-j", "DROP")
    wait_until(lambda: "-j FLANNEL-UDP-FWD" in rules_of(world.one), "the jump is back")
    assert source_of(world.pod, world.remote, world.remote.address, patience=1.0) is None
    assert source_of(world.remote, world.pod, world.pod.address, patience=1.0) is None  # nor is there an answer
    assert source_of(world.pod, world.outside, OUTSIDE) == world.pod.address


def test_rules_of_a_run_with_another_network_go(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq")
    world.one.end(signal.SIGTERM)
    assert "10.5.0.0/16" in _all_rules(world.node, engine)  # pods go on while no daemon runs
    registry = open_registry(world.one.argv[world.one.argv.index("--registry") + 1])
    registry.write_config('{"Network": "10.77.0.0/16"}')
    registry.close()
    world.one.start()
    ready(world.one)
    rules = _all_rules(world.node, engine)
    assert "10.77.0.0/16" in rules
    assert "10.5." not in rules


def test_rules_that_are_no_longer_wanted_go(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq")
    world.one.end(signal.SIGTERM)
    world.one.argv += ["--ip-masq=false", "--iptables-forward-rules=false"]
    world.one.start()
    ready(world.one)
    assert "10.5." not in _all_rules(world.node, engine)
    assert world.one.status()["firewall"]["engine"] == "none"


def _all_rules(place: Place, engine: str) -> str:
    return place.run("nft" if engine == "nft" else f"{engine}-save", *(["list", "ruleset"] * (engine == "nft"))).stdout


def test_two_daemons_on_one_host_have_rules_each(make: Callable[..., World], tmp_path: Path, engine: str) -> None:
    world = make(engine, "--ip-masq")
    url = f"sqlite://{tmp_path}/other.db"
    registry = open_registry(url)
    registry.write_config('{"Network": "10.6.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}')
    registry.close()
    other = Daemon(world.node, tmp_path, url, "other", "--ip-masq", *RESYNC)
    ready(other)
    assert "10.6.0.0/16" in rules_of(other)
    wait_until(lambda: world.masqueraded() and "10.5.0.0/16" in rules_of(world.one), "both stand")
    assert source_of(world.pod, world.remote, world.remote.address) == world.pod.address
    other.end(signal.SIGTERM)
    other.argv += ["--ip-masq=false", "--iptables-forward-rules=false"]
    other.start()
    ready(other)
    assert "10.6." not in _all_rules(world.node, engine)
    assert world.masqueraded()


def test_lease_that_changes_takes_the_rules_along(make: Callable[..., World], engine: str) -> None:
    world = make(engine, "--ip-masq", "--ip-blackhole-route", SOURCELESS)
    before = world.one.subnet()
    registry = open_registry(world.one.argv[world.one.argv.index("--registry") + 1])
    entry, = (entry for entry in registry.snapshot().entries if entry.key == str(before).replace("/", "-"))
    registry.update(entry.key, b'{"PublicIP":"192.0.2.99","PublicIPv6":null}', None, entry.revision)
    wait_until(lambda: world.one.subnet() != before, "subnet.env tells another")
    now = world.one.subnet()
    registry.close()
    wait_until(lambda: str(now) in rules_of(world.one) and str(before) not in rules_of(world.one), "rules follow")
    blackholes = world.node.run("ip", "route", "show", "type", "blackhole").stdout
    assert str(now) in blackholes
    assert str(before) not in blackholes
