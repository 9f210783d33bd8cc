"""options: Go's flag syntax, FLANNELD_* variables, and every refusal in one line that names what was refused."""

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from flannel_udp import options, paths
from flannel_udp.errors import UsageError
from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.options import NodeOptions, access, parse

CPU = min(os.sched_getaffinity(0))
REGISTRY = ["--registry", "sqlite:///x.db"]


def parsed(*argv: str, **environ: str) -> NodeOptions:
    result = parse([*REGISTRY, *argv], environ)
    assert isinstance(result, NodeOptions)
    return result


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse([*REGISTRY, *argv], environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_said_gives_flannels_defaults() -> None:
    assert parsed() == NodeOptions(registry="sqlite:///x.db")
    assert parsed().subnet_file == Path("/run/flannel/subnet.env")
    assert (parsed().renew_margin, parsed().lease_ttl) == (3600.0, 86400.0)


@pytest.mark.parametrize("words", [["-iface", "eth0"], ["--iface", "eth0"], ["-iface=eth0"], ["--iface=eth0"]])
def test_one_and_two_dashes_equals_sign_and_next_word_are_the_same(words: list[str]) -> None:
    assert parsed(*words).iface == ("eth0",)


def test_every_flag_reaches_its_field() -> None:
    got = parsed(
        "-iface=eth0", "-iface=192.0.2.1", "--iface-regex", "eth.*", "--iface-regex=^10\\.",
        "-iface-can-reach", "192.0.2.9", "-public-ip=192.0.2.2",
        "-public-ipv6=2001:db8::2", "-subnet-file=/tmp/subnet.env", "--lease-ttl=900",
        "-subnet-lease-renew-margin=5", "-ip-masq", "-v=3", "--source-check", "strict", "--state-dir=/tmp/s",
        "--run-dir=/tmp/r", "--threads=2", "--queues=4", f"--cpus={CPU}", "--busy-poll=50",
        "--source-ports=8", "--device=tap",
        "--no-tun-offload", "--no-udp-segment=t", "--no-udp-gro=true", "--healthz-ip=::1", "-healthz-port", "10270",
        "-ip-masq-fully-random-disable", "-iptables-forward-rules=false", "-iptables-resync", "9",
        "-ip-blackhole-route", "--no-takeover",
    )
    assert got == NodeOptions(
        registry="sqlite:///x.db", iface=("eth0", "192.0.2.1"), iface_regex=("eth.*", "^10\\."),
        iface_can_reach="192.0.2.9", public_ip=IPv4Address("192.0.2.2"), public_ipv6=IPv6Address("2001:db8::2"),
        subnet_file=Path("/tmp/subnet.env"), renew_margin=300.0, lease_ttl=900.0, source_check="strict",
        state_dir=Path("/tmp/s"), run_dir=Path("/tmp/r"), verbosity=3,
        threads=2, queues=4, cpus=(CPU,), busy_poll=50, source_ports=8, device="tap", no_tun_offload=True,
        no_udp_segment=True, no_udp_gro=True,
        healthz_ip=IPv6Address("::1"), healthz_port=10270, ip_masq=True, ip_masq_fully_random_disable=True,
        iptables_forward_rules=False, iptables_resync=9.0, ip_blackhole_route=True, no_takeover=True,
    )


def test_the_last_of_a_flag_that_does_not_repeat_wins() -> None:
    assert parsed("-v=1", "-v", "2").verbosity == 2


def test_a_value_may_look_like_a_flag_and_may_hold_an_equals_sign() -> None:
    assert parsed("--iface-regex", "-eth=0").iface_regex == ("-eth=0",)
    assert parsed("--iface-regex=a=b").iface_regex == ("a=b",)


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_booleans_are_gos(text: str) -> None:
    assert parsed(f"--ip-masq={text}").ip_masq is False


def test_a_boolean_takes_no_following_word() -> None:
    assert "'false'" in refusal("--version=false", "--ip-masq=false", "false")


def test_environment_stands_for_every_flag_and_the_command_line_wins() -> None:
    environ = {"FLANNELD_PUBLIC_IP": "192.0.2.7", "FLANNELD_IFACE": "a,b", "FLANNELD_V": "1", "FLANNELD_RUN_DIR": ""}
    got = parsed("--iface=c", **environ)
    assert (got.public_ip, got.iface, got.verbosity) == (IPv4Address("192.0.2.7"), ("c",), 1)
    assert got.run_dir == paths.DEFAULT_RUN_DIR
    assert parsed(FLANNELD_IFACE="a,b").iface == ("a,b",)  # one value, never split
    assert parse([], {"FLANNELD_REGISTRY": "sqlite:///y"}) == NodeOptions(registry="sqlite:///y")


def test_a_bad_variable_is_named_unless_the_command_line_replaces_it() -> None:
    assert refusal(FLANNELD_PUBLIC_IP="nowhere").startswith("FLANNELD_PUBLIC_IP: 'nowhere'")
    assert parsed("--public-ip=192.0.2.1", FLANNELD_PUBLIC_IP="nowhere").public_ip == IPv4Address("192.0.2.1")


def test_variables_that_name_no_flag_are_left_alone() -> None:
    assert parsed(FLANNELD_SERVICE_HOST="10.0.0.1") == parsed()


@pytest.mark.parametrize(("word", "told"), [
    ("--subnet-lease-renew-margin=0", "'0' is not a number of minutes from 1 to 1439"),
    ("--subnet-lease-renew-margin=1440", "1439"),
    ("--subnet-lease-renew-margin=1h", "'1h'"),
    ("--public-ip=2001:db8::1", "--public-ipv6"),
    ("--public-ip=0.0.0.0", "one host"),
    ("--public-ipv6=192.0.2.1", "--public-ip"),
    ("--iface-can-reach=example", "not an IP address"),
    ("--iface-regex=(", "regular expression"),
    ("--iface=", "must not be empty"),
    ("--source-check=maybe", "known, strict, off"),
    ("--lease-ttl=1", "seconds from 2"),
    ("--v=x", "'x'"),
    ("--v=1\u0663", "is not a number"),
    ("--run-dir=", "must not be empty"),
    ("--ip-masq=yes", "true or false"),
    ("--iptables-resync=0", "--iptables-resync: '0' is not a number of seconds from 1 to 86400"),
    ("--iptables-resync=5s", "'5s' is not a number of seconds"),
    ("--kube-subnet-mgr", "the Kubernetes subnet manager is not built yet"),
    ("--threads=0", "'0' is not a number from 1 to 2"),
    ("--threads=3", "from 1 to 2"),
    ("--device=tunnel", "'tunnel' is none of tun, tap"),
    ("--source-ports=65", "'65' is not a number from 0 to 64"),
    ("--queues=0", "'0' is not a number from 1 to 16"),
    ("--queues=17", "from 1 to 16"),
    ("--queues=all", "'all' is not a number"),
    ("--busy-poll=1000001", "a number of microseconds from 0 to 1000000"),
    ("--busy-poll=-1", "'-1'"),
    ("--cpus=", "'' is not a list of CPUs such as 0,2-3"),
    ("--cpus=0,x", "not a list of CPUs"),
    ("--cpus=1-", "not a list of CPUs"),
    ("--cpus=1-0", "names no CPU"),
    ("--cpus=99998", "CPU 99998 is none that this process may use, which are "),
    ("--no-udp-gro=2", "true or false"),
    ("--healthz-port=65536", "'65536' is not a port from 0 to 65535"),
    ("--healthz-port=http", "is not a port"),
    ("--healthz-ip=localhost", "not an IP address"),
])
def test_a_bad_value_is_refused_by_the_flags_name(word: str, told: str) -> None:
    text = refusal(word)
    assert text.startswith(word.partition("=")[0] + ": ")
    assert told in text


def test_flags_of_unbuilt_parts_are_obeyed_where_they_ask_for_nothing() -> None:
    words = ("--kube-subnet-mgr=false", "--set-node-network-unavailable=false", "--healthz-port=0")
    assert parsed(*words) == parsed()
    assert "FLANNELD_KUBE_SUBNET_MGR" in refusal(FLANNELD_KUBE_SUBNET_MGR="true")


def test_unknown_words_are_refused_with_a_guess() -> None:
    assert refusal("--pubic-ip=192.0.2.1") == "unknown flag --pubic-ip: did you mean --public-ip?"
    assert "'stray'" in refusal("stray")
    assert "takes flags only" in refusal("--")
    assert refusal("--iface") == "--iface needs a value"


def test_without_a_word_the_registry_is_flannels_etcd() -> None:
    options = parse([], {})
    assert isinstance(options, NodeOptions)
    assert options.registry == "etcd://"
    assert options.etcd.endpoints == (Endpoint("127.0.0.1", 4001, False), Endpoint("127.0.0.1", 2379, False))
    assert options.etcd.prefix == "/coreos.com/network"


@pytest.mark.parametrize(("text", "endpoints"), [
    ("http://10.0.0.1:2379", [("10.0.0.1", 2379, False)]),
    ("https://a.example:1, http://b", [("a.example", 1, True), ("b", 2379, False)]),
    ("10.0.0.1:23,[fd00::1]:24/", [("10.0.0.1", 23, None), ("[fd00::1]", 24, None)]),
    ("https://[::1]", [("[::1]", 2379, True)]),
])
def test_endpoints_are_a_list_of_urls(text: str, endpoints: list[tuple[str, int, bool | None]]) -> None:
    assert parsed(f"--etcd-endpoints={text}").etcd.endpoints == tuple(Endpoint(*each) for each in endpoints)


@pytest.mark.parametrize("text", ["ftp://a", "http://", "http://a:0", "http://a:65536", "http://a/path", "http://u@a",
                                  "http://a:x", "unix:///etcd", ",", "http://a b", "http://::1:2379"])
def test_what_is_no_endpoint_is_named(text: str) -> None:
    assert refusal(f"--etcd-endpoints={text}").startswith("--etcd-endpoints: ")


@pytest.mark.parametrize(("text", "prefix"), [("/a/b/", "/a/b"), ("//a//b", "/a/b"), ("a", "a"), ("/a/./b", "/a/b")])
def test_a_prefix_is_cleaned_as_flannel_does(text: str, prefix: str) -> None:
    assert parsed(f"--etcd-prefix={text}").etcd.prefix == prefix


@pytest.mark.parametrize("text", ["/", ".", ".."])
def test_what_is_no_prefix_is_named(text: str) -> None:
    assert "is not a prefix" in refusal(f"--etcd-prefix={text}")


@pytest.mark.parametrize(("given", "missing"), [("keyfile", "certfile"), ("certfile", "keyfile"),
                                                ("username", "password"), ("password", "username")])
def test_trap_17_half_of_a_pair_is_refused_and_not_ignored(given: str, missing: str) -> None:
    assert refusal(f"--etcd-{given}=x").startswith(f"--etcd-{given} without --etcd-{missing}")
    with pytest.raises(UsageError, match=f"FLANNELD_ETCD_{given.upper()} without"):
        parse([], {f"FLANNELD_ETCD_{given.upper()}": "x"})


def test_how_to_reach_etcd_may_stand_in_the_environment() -> None:
    environ = {"FLANNELD_ETCD_ENDPOINTS": "https://e", "FLANNELD_ETCD_PREFIX": "/p", "FLANNELD_ETCD_KEYFILE": "/k",
               "FLANNELD_ETCD_CERTFILE": "/c", "FLANNELD_ETCD_CAFILE": "/ca", "FLANNELD_ETCD_USERNAME": "u",
               "FLANNELD_ETCD_PASSWORD": "secret"}
    etcd = EtcdOptions(endpoints=(Endpoint("e", 2379, True),), prefix="/p", keyfile=Path("/k"), certfile=Path("/c"),
                       cafile=Path("/ca"), username="u", password="secret")  # noqa: S106
    options = parse([], environ)
    assert isinstance(options, NodeOptions)
    assert options.etcd == etcd
    assert "secret" not in repr(options)
    assert access({"etcd-prefix": "/q"}, environ) == ("etcd://", replace(etcd, prefix="/q"))


def test_the_margin_is_less_than_the_lease() -> None:
    assert parsed("--lease-ttl=10").renew_margin == 5.0
    assert "--lease-ttl" in refusal("--lease-ttl=60", "--subnet-lease-renew-margin=1")


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (64, 2)])
def test_threads_are_by_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert parsed().threads == threads
    assert parsed("--threads=2").threads == 2


@pytest.mark.parametrize(("cores", "queues", "threads"), [(2, 2, 1), (4, 2, 1), (5, 2, 2), (8, 4, 1), (64, 16, 2)])
def test_threads_of_several_queues_share_the_cores(
        monkeypatch: pytest.MonkeyPatch, cores: int, queues: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert (parsed(f"--queues={queues}").threads, parsed(f"--queues={queues}").queues) == (threads, queues)
    assert parsed(FLANNELD_QUEUES=f"{queues}") == parsed(f"--queues={queues}")
    assert parsed(f"--queues={queues}", "--threads=2").threads == 2


def test_cpus_of_several_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert parsed("--queues=4", "--cpus=0-3").threads == 1
    assert parsed("--queues=4", "--cpus=0-4").threads == 2
    assert parsed("--queues=4", "--cpus=0-7").threads == 2
    assert parsed("--queues=4", "--cpus=0-1", "--threads=2").cpus == (0, 1)
    assert refusal("--queues=4", "--cpus=0-8") == (
        "--cpus: 9 CPUs are more than there are threads (--threads 2, --queues 4)")
    assert refusal("--queues=4", "--cpus=0-4", "--threads=1").endswith("(--threads 1, --queues 4)")


def test_cpus_are_kept_in_the_order_given_and_say_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert (parsed("--cpus=3").cpus, parsed("--cpus=3").threads) == ((3,), 1)
    assert (parsed("--cpus=5,3").cpus, parsed("--cpus=5,3").threads) == ((5, 3), 2)
    assert parsed("--cpus=6-7").cpus == (6, 7)
    assert (parsed("--cpus=3", "--threads=2").cpus, parsed("--cpus=3", "--threads=2").threads) == ((3,), 2)
    assert refusal("--cpus=2,2") == "--cpus: '2,2' names a CPU twice"
    assert refusal("--cpus=0-1", "--threads=1") == "--cpus: 2 CPUs are more than there are threads (--threads 1)"
    assert refusal(FLANNELD_CPUS="0-2") == "FLANNELD_CPUS: 3 CPUs are more than there are threads (--threads 2)"


@pytest.mark.parametrize("word", ["-h", "--help", "-help"])
def test_help_is_asked_for(word: str) -> None:
    assert parse([word], {}) == "help"


def test_version_is_asked_for_by_flag_or_variable() -> None:
    assert parse(["-version"], {}) == "version"
    assert parse([], {"FLANNELD_VERSION": "true"}) == "version"


def test_the_usage_tells_every_flag_and_no_field_is_without_one() -> None:
    assert all(f"  --{flag.name}" in options.usage() for flag in options.FLAGS)
    fields = {flag.field for flag in options.FLAGS} - {""}
    etcd = {f"etcd_{name}" for name in EtcdOptions.__dataclass_fields__}
    assert fields == (set(NodeOptions.__dataclass_fields__) - {"etcd"}) | etcd
