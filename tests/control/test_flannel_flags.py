"""Every flag and variable of flanneld's is taken with flanneld's meaning, or refused in one line that says why.

The table is that of flannel v0.28. Flags of a part that is being built are marked with its name, and left out here
until the part has its flags: take the mark away then, and say which field and value they become.
"""

from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from flannel_udp import options
from flannel_udp.errors import UsageError
from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.options import NodeOptions, parse


@dataclass(frozen=True)
class Case:
    """A flag, flanneld's default in words ("" is empty), and another value with what comes of it."""

    name: str
    default: str
    example: str
    field: str = ""
    value: object = None
    refusal: str = ""

    def __str__(self) -> str:
        return self.name


KUBE_ONLY = "counts with --kube-subnet-mgr only"
CASES = [
    Case("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "https://e:2379", "etcd",
         EtcdOptions(endpoints=(Endpoint("e", 2379, True),))),
    Case("etcd-prefix", "/coreos.com/network", "/other", "etcd", EtcdOptions(prefix="/other")),
    # Of two that belong together one alone is refused; together: test_options.py.
    Case("etcd-keyfile", "", "/k", refusal=" without --etcd-certfile"),
    Case("etcd-certfile", "", "/c", refusal=" without --etcd-keyfile"),
    Case("etcd-cafile", "", "/ca", "etcd", EtcdOptions(cafile=Path("/ca"))),
    Case("etcd-username", "", "u", refusal=" without --etcd-password"),
    Case("etcd-password", "", "p", refusal=" without --etcd-username"),
    Case("ip-masq", "false", "true", "ip_masq", True),
    Case("ip-masq-fully-random-disable", "false", "true", "ip_masq_fully_random_disable", True),
    Case("iptables-forward-rules", "true", "false", "iptables_forward_rules", False),
    Case("iptables-resync", "5", "7", "iptables_resync", 7.0),
    Case("ip-blackhole-route", "false", "true", "ip_blackhole_route", True),
    Case("subnet-lease-renew-margin", "60", "1439", "renew_margin", 1439 * 60.0),
    Case("subnet-file", "/run/flannel/subnet.env", "/tmp/subnet.env", "subnet_file", Path("/tmp/subnet.env")),
    Case("iface", "", "eth0", "iface", ("eth0",)),
    Case("iface-regex", "", "^eth", "iface_regex", ("^eth",)),
    Case("iface-can-reach", "", "192.0.2.9", "iface_can_reach", "192.0.2.9"),
    Case("public-ip", "", "192.0.2.2", "public_ip", IPv4Address("192.0.2.2")),
    Case("public-ipv6", "", "2001:db8::2", "public_ipv6", IPv6Address("2001:db8::2")),
    Case("healthz-ip", "0.0.0.0", "::1", "healthz_ip", IPv6Address("::1")),
    Case("healthz-port", "0", "10270", "healthz_port", 10270),
    Case("kube-subnet-mgr", "false", "true", refusal="the Kubernetes subnet manager is not built yet"),
    Case("kube-api-url", "", "https://k:6443", KUBE_ONLY),
    Case("kubeconfig-file", "", "/etc/kubeconfig", KUBE_ONLY),
    Case("kube-annotation-prefix", "flannel.alpha.coreos.com", "other.example", KUBE_ONLY),
    Case("net-config-path", "/etc/kube-flannel/net-conf.json", "/etc/net-conf.json", KUBE_ONLY),
    Case("set-node-network-unavailable", "true", "false", KUBE_ONLY),
    Case("v", "0", "4", "verbosity", 4),
    Case("vmodule", "", "main=9", refusal="source files of flanneld's, which are not here"),
    Case("log_backtrace_at", ":0", "main.go:9", refusal="source files of flanneld's, which are not here"),
]
REPEATABLE = {"iface", "iface-regex"}
BOOLEAN = {"ip-masq", "ip-masq-fully-random-disable", "iptables-forward-rules", "ip-blackhole-route",
           "kube-subnet-mgr", "set-node-network-unavailable", "version"}
REGISTRY = "sqlite:///x.db"
DEFAULTS = NodeOptions(registry=REGISTRY)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    return case


def parsed(*argv: str, **environ: str) -> NodeOptions:
    result = parse(["--registry", REGISTRY, *argv], environ)
    assert isinstance(result, NodeOptions)
    return result


def variable(name: str) -> str:
    return "FLANNELD_" + name.upper().replace("-", "_")


def changed(result: NodeOptions) -> dict[str, Any]:
    """What is not as it is without a word."""
    return {field.name: getattr(result, field.name) for field in fields(NodeOptions)
            if getattr(result, field.name) != getattr(DEFAULTS, field.name)}


def test_the_table_is_whole() -> None:
    names = {case.name for case in CASES}
    assert len(CASES) == 30
    assert names | {"version"} <= {flag.name for flag in (*options.FLAGS, *options.UNBUILT)}
    assert {flag.name for flag in options.UNBUILT} <= names


def test_flanneld_s_default_said_aloud_changes_nothing(case: Case) -> None:
    if case.default:  # an empty one is flanneld's way to say: not given
        assert changed(parsed(f"--{case.name}={case.default}")) == {}
    assert changed(parsed(**{variable(case.name): case.default})) == {}


@pytest.mark.parametrize("form", ["--{}={}", "-{}={}", "--{} {}", "-{} {}", "variable"])
def test_a_value_has_flanneld_s_meaning_or_is_refused_in_one_line(case: Case, form: str) -> None:
    if case.name in BOOLEAN and " " in form:
        return  # a boolean takes no following word, in Go either
    argv = [] if form == "variable" else form.format(case.name, case.example).split()
    environ = {variable(case.name): case.example} if form == "variable" else {}
    if case.refusal:
        with pytest.raises(UsageError) as caught:
            parsed(*argv, **environ)
        origin = variable(case.name) if environ else f"--{case.name}"
        assert str(caught.value).startswith(origin)
        assert case.refusal in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    expected = {} if case.field == KUBE_ONLY else {case.field: case.value}
    assert changed(parsed(*argv, **environ)) == expected


def test_what_repeats_is_in_order_and_what_does_not_is_the_last(case: Case) -> None:
    if case.refusal or case.name in BOOLEAN or case.field == KUBE_ONLY:
        return
    result = changed(parsed(f"--{case.name}={case.example}", f"--{case.name}={case.example}"))
    assert result[case.field] == (case.value * 2 if case.name in REPEATABLE else case.value)  # type: ignore[operator]


def test_the_command_line_wins_over_the_variable(case: Case) -> None:
    if case.refusal or case.field == KUBE_ONLY or not case.default:
        return
    assert changed(parsed(f"--{case.name}={case.default}", **{variable(case.name): case.example})) == {}
