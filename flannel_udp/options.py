"""The node's options: flanneld's flags in Go's syntax, FLANNELD_* variables, and the value that both become.

Only values here: nothing is opened, looked up or created. `parse` gives a NodeOptions, or says that the version or the
help was asked for, or raises UsageError with the one line that the user reads.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal, get_args

from flannel_udp import etcd_options
from flannel_udp.errors import UsageError
from flannel_udp.etcd_options import EtcdOptions
from flannel_udp.paths import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, DEFAULT_SUBNET_FILE

SourceCheck = Literal["known", "strict", "off"]
Device = Literal["tun", "tap"]
Asked = Literal["version", "help"]

DEFAULT_LEASE_TTL = 86400.0
DEFAULT_REGISTRY = "etcd://"
DEFAULT_RENEW_MARGIN = 3600.0
EVERYWHERE = IPv4Address(0)
DEFAULT_RESYNC = 5.0


# Our choice: a queue takes two loops with up to 4 MiB each, and two of the 64 places for readers (src/rcu.pxd).
QUEUES_MOST = 16

# Our choice, measured (docs/performance.md): so many more sockets for each queue cost nothing to be seen, while 16 slow
# TCP of many flows down.
DEFAULT_SOURCE_PORTS = 4


def default_threads(queues: int = 1) -> int:
    """For each queue: one thread for both directions while that gives two cores or less to a queue; else one each.

    With two cores for one queue, one thread was measured to cost less and to answer sooner.
    """
    return 1 if len(os.sched_getaffinity(0)) <= 2 * queues else 2


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What the daemon was told to do; times are seconds."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    subnet_file: Path = DEFAULT_SUBNET_FILE
    renew_margin: float = DEFAULT_RENEW_MARGIN
    lease_ttl: float = DEFAULT_LEASE_TTL
    release_on_exit: bool = False
    registry: str = DEFAULT_REGISTRY
    etcd: EtcdOptions = field(default_factory=EtcdOptions)
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    iptables_forward_rules: bool = True
    iptables_resync: float = DEFAULT_RESYNC
    ip_blackhole_route: bool = False
    no_takeover: bool = False
    source_check: SourceCheck = "known"
    state_dir: Path = DEFAULT_STATE_DIR
    run_dir: Path = DEFAULT_RUN_DIR
    verbosity: int = 0
    threads: int = field(default_factory=default_threads)
    """For each queue."""
    queues: int = 1
    cpus: tuple[int, ...] = ()
    busy_poll: int = 0
    """Microseconds."""
    no_tun_offload: bool = False
    no_udp_segment: bool = False
    no_udp_gro: bool = False
    device: Device = "tun"
    """Of the vxlan backend: others have a TUN whatever this says, or no device."""
    source_ports: int = DEFAULT_SOURCE_PORTS
    """Of the vxlan backend, beside the port that peers send to; 0: that one alone."""
    healthz_ip: IPv4Address | IPv6Address = EVERYWHERE
    healthz_port: int = 0
    """0: no health server."""


def _something(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _boolean(text: str) -> bool:
    # The spellings of Go's strconv.ParseBool, no more and no less.
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise ValueError(f"{text!r} is not a boolean: say true or false")


def _number(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise ValueError(f"{text!r} is not {what} from {least} to {most}")
    return int(text)


def _margin(text: str) -> float:
    return _number(text, 1, 1439, "a number of minutes") * 60.0


def _ttl(text: str) -> float:
    return float(_number(text, 2, 10 * 365 * 86400, "a number of seconds"))


def _resync(text: str) -> float:
    return float(_number(text, 1, 86400, "a number of seconds"))


def _verbosity(text: str) -> int:
    return _number(text, 0, 2**31 - 1, "a number")


def _threads(text: str) -> int:
    return _number(text, 1, 2, "a number")


def _queues(text: str) -> int:
    return _number(text, 1, QUEUES_MOST, "a number")


def _device(text: str) -> str:
    if text not in get_args(Device):
        raise ValueError(f"{text!r} is none of {', '.join(get_args(Device))}")
    return text


def _source_ports(text: str) -> int:
    from flannel_udp._dataplane import SOURCES_MAX  # only now: commands that start nothing should start fast

    return _number(text, 0, SOURCES_MAX, "a number")


def _microseconds(text: str) -> int:
    return _number(text, 0, 1_000_000, "a number of microseconds")


def _cpus(text: str) -> tuple[int, ...]:
    """Read a list as the kernel writes them, 0,2-3, and see that each may be used."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not re.fullmatch(r"[0-9]{1,5}", first) or (dash and not re.fullmatch(r"[0-9]{1,5}", last)):
            raise ValueError(f"{text!r} is not a list of CPUs such as 0,2-3")
        cpus += range(int(first), int(last or first) + 1)
    usable = os.sched_getaffinity(0)
    if not cpus or len(set(cpus)) < len(cpus):
        raise ValueError(f"{text!r} names {'a CPU twice' if cpus else 'no CPU'}")
    if missing := sorted(set(cpus) - usable):
        raise ValueError(f"CPU {missing[0]} is none that this process may use, which are "
                         f"{', '.join(map(str, sorted(usable)))}")
    return tuple(cpus)


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is not the address of one host")
    return address


def _ipv4(text: str) -> IPv4Address:
    address = _address(text)
    if not isinstance(address, IPv4Address):
        raise ValueError(f"{text!r} is not an IPv4 address: IPv6 goes into --public-ipv6")
    return address


def _ipv6(text: str) -> IPv6Address:
    address = _address(text)
    if not isinstance(address, IPv6Address):
        raise ValueError(f"{text!r} is not an IPv6 address: IPv4 goes into --public-ip")
    return address


def _address_text(text: str) -> str:
    return str(_address(text))


def _listening_address(text: str) -> IPv4Address | IPv6Address:
    """The address to listen at; empty is all of them, as in Go."""
    try:
        return ip_address(text or 0)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _port(text: str) -> int:
    return _number(text, 0, 65535, "a port")


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def _path(text: str) -> Path:
    return Path(_something(text))


def _source_check(text: str) -> str:
    if text not in get_args(SourceCheck):
        raise ValueError(f"{text!r} is none of {', '.join(get_args(SourceCheck))}")
    return text


@dataclass(frozen=True)
class Flag:
    """One flag of the command line: its name, the NodeOptions field it fills, how its text is read, its help."""

    name: str
    field: str
    read: Callable[[str], object]
    meaning: str
    value: str = ""  # what the usage calls the value; booleans have none
    repeatable: bool = False

    @property
    def boolean(self) -> bool:
        """Go's booleans take a value only after an equals sign."""
        return not self.value

    @property
    def variable(self) -> str:
        """The environment variable that stands for this flag."""
        return "FLANNELD_" + self.name.upper().replace("-", "_")


Given = dict[str, list[tuple[str, str]]]  # flag -> (text, how the user wrote the flag), in order

ACCESS = (
    Flag("registry", "registry", _something, "where leases live: etcd://, which the next flags are for (default), or "
         "sqlite:///PATH", "URL"),
    Flag("etcd-endpoints", "etcd_endpoints", etcd_options.read_endpoints,
         "the members of the etcd cluster, separated by commas (default http://127.0.0.1:4001,http://127.0.0.1:2379)",
         "URL,..."),
    Flag("etcd-prefix", "etcd_prefix", etcd_options.read_prefix,
         f"what flannel's keys begin with (default {etcd_options.DEFAULT_PREFIX})", "PREFIX"),
    Flag("etcd-keyfile", "etcd_keyfile", _path, "this node's private key towards https endpoints", "PATH"),
    Flag("etcd-certfile", "etcd_certfile", _path, "the certificate of that key", "PATH"),
    Flag("etcd-cafile", "etcd_cafile", _path,
         "the authorities that https endpoints' certificates must come from (default: the system's)", "PATH"),
    Flag("etcd-username", "etcd_username", _something, "log in as this user", "NAME"),
    Flag("etcd-password", "etcd_password", _something,
         "with this password; in FLANNELD_ETCD_PASSWORD it is in no list of processes", "TEXT"),
)
"""How to reach the registry: what every command that opens it takes."""

FLAGS = (
    *ACCESS,
    Flag("iface", "iface", _something, "external interface, by name or address; the first that matches",
         "NAME|IP", repeatable=True),
    Flag("iface-regex", "iface_regex", _regex, "the same by pattern, on addresses, then on names; after every --iface",
         "REGEX", repeatable=True),
    Flag("iface-can-reach", "iface_can_reach", _address_text, "the interface towards this address, tried last", "IP"),
    Flag("public-ip", "public_ip", _ipv4, "the IPv4 address told to other nodes (default: the interface's)", "IP"),
    Flag("public-ipv6", "public_ipv6", _ipv6, "the IPv6 address told to other nodes (default: the interface's)", "IP"),
    Flag("subnet-file", "subnet_file", _path, f"subnet.env to write (default {DEFAULT_SUBNET_FILE})", "PATH"),
    Flag("subnet-lease-renew-margin", "renew_margin", _margin,
         "renew the lease so long before it ends (default 60, or half of a shorter lease)", "MINUTES"),
    Flag("lease-ttl", "lease_ttl", _ttl, f"life of an unrenewed lease (default {DEFAULT_LEASE_TTL:.0f})", "SECONDS"),
    Flag("release-on-exit", "release_on_exit", _boolean,
         "at a stop give the lease back: the subnet is free at once, and the next start may get another"),
    Flag("ip-masq", "ip_masq", _boolean, "masquerade what leaves the overlay, and what this host sends into it"),
    Flag("ip-masq-fully-random-disable", "ip_masq_fully_random_disable", _boolean,
         "let the kernel keep source ports where it can, in place of random ones"),
    Flag("iptables-forward-rules", "iptables_forward_rules", _boolean,
         "accept the overlay's packets in iptables' FORWARD chain where that drops (default true)"),
    Flag("iptables-resync", "iptables_resync", _resync,
         f"see that these rules still stand, in nft too, so often (default {DEFAULT_RESYNC:.0f})", "SECONDS"),
    Flag("ip-blackhole-route", "ip_blackhole_route", _boolean,
         "have packets for addresses of the own subnet that nobody has end here"),
    Flag("no-takeover", "no_takeover", _boolean, "leave what flannel left here, and say what is in the way"),
    Flag("source-check", "source_check", _source_check,
         "whose datagrams to take: of any node that has a lease, only of the one that leases the inner source, of all "
         "(default known)", "known|strict|off"),
    Flag("state-dir", "state_dir", _path, f"what must survive a reboot (default {DEFAULT_STATE_DIR})", "DIR"),
    Flag("run-dir", "run_dir", _path, f"the control socket (default {DEFAULT_RUN_DIR})", "DIR"),
    Flag("threads", "threads", _threads,
         "for a queue's packets: 1 for both directions, or 2, one each (default 1 on up to two cores a queue, else 2)",
         "1|2"),
    Flag("queues", "queues", _queues,
         f"of the TUN, up to {QUEUES_MOST}, each with threads and a socket of its own; one where the kernel cannot be "
         "told to keep each flow on its queue (default 1)", "N"),
    Flag("cpus", "cpus", _cpus, "pin these threads to these CPUs, in turn: 0,2-3 (default: the kernel chooses)",
         "LIST"),
    Flag("busy-poll", "busy_poll", _microseconds,
         "look for work so long before sleeping: answers sooner, costs CPU time even when idle (default 0)", "US"),
    Flag("device", "device", _device,
         "of the vxlan backend: tun, or tap, which to tools looks as flannel's own device does (default tun)",
         "tun|tap"),
    Flag("no-tun-offload", "no_tun_offload", _boolean, "one bare packet per read and write of the TUN"),
    Flag("no-udp-segment", "no_udp_segment", _boolean, "one datagram per message that is sent"),
    Flag("no-udp-gro", "no_udp_gro", _boolean, "one datagram per message that is received"),
    Flag("source-ports", "source_ports", _source_ports,
         "for the vxlan backend: spread flows over so many UDP source ports (0: the backend's alone), so that networks "
         f"with several ways, and peers with several cores, can tell them apart (default {DEFAULT_SOURCE_PORTS})",
         "N"),
    Flag("healthz-ip", "healthz_ip", _listening_address,
         "where /healthz, /readyz and /metrics are served (default 0.0.0.0: everywhere, by IPv6 too)", "IP"),
    Flag("healthz-port", "healthz_port", _port, "the port for it; 0, the default, is none", "PORT"),
    Flag("v", "verbosity", _verbosity, "how much to log: 1 adds details, 2 lifts the rate limit too (default 0)", "N"),
    Flag("version", "", _boolean, "print the version and end"),
    Flag("help", "", _boolean, "print this and end"),
)


def _refused(reason: str, *names: str, value: str = "TEXT", off: str = "") -> Iterator[Flag]:
    """Flags of flanneld that cannot be obeyed here; a value that asks for nothing is."""
    def refuse(text: str) -> str:
        if text != off if value else _boolean(text):
            raise ValueError(reason)
        return text

    return (Flag(name, "", refuse, "", value) for name in names)


def _unbuilt(part: str, *names: str, value: str = "TEXT", off: str = "") -> Iterator[Flag]:
    """Flags of flanneld whose part does not exist here yet; a value that leaves the part off is obeyed."""
    return _refused(f"{part} not built yet (see README, Not yet)", *names, value=value, off=off)


UNBUILT = (
    *_unbuilt("the Kubernetes subnet manager is", "kube-subnet-mgr", value=""),
    # As with flanneld, these count with --kube-subnet-mgr only.
    *(Flag(name, "", str, "", "TEXT") for name in (
        "kube-api-url", "kubeconfig-file", "kube-annotation-prefix", "net-config-path")),
    Flag("set-node-network-unavailable", "", _boolean, ""),
    *_refused("it names source files of flanneld's, which are not here: leave it out, --v says how much is logged",
              "vmodule"),
    *_refused("it names source files of flanneld's, which are not here: leave it out, --v says how much is logged",
              "log_backtrace_at", off=":0"),
)

_BY_NAME = {flag.name: flag for flag in (*FLAGS, *UNBUILT)} | {"h": FLAGS[-1]}


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> NodeOptions | Asked:
    """Read the words after `run` and the environment; the command line wins over the environment."""
    given = _from_argv(argv)
    for name, (text, origin) in _from_environ(environ).items():
        given.setdefault(name, [(text, origin)])
    if asked := _asked(given):
        return asked
    values: dict[str, Any] = {}
    for name, texts in given.items():
        flag = _BY_NAME[name]
        read = [_read(flag, text, origin) for text, origin in texts]
        if flag.field:
            values[flag.field] = tuple(read) if flag.repeatable else read[-1]
    return _checked(values, given)


def access(words: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> tuple[str, EtcdOptions]:
    """Read the flags of ACCESS for a command other than run: the registry's URL, and how to reach etcd."""
    given: Given = {name: [(text, f"--{name}")] for name, text in words.items() if text is not None}
    values: dict[str, Any] = {}
    for flag in ACCESS:
        if text := environ.get(flag.variable, ""):
            given.setdefault(flag.name, [(text, flag.variable)])
        if flag.name in given:
            values[flag.field] = _read(flag, *given[flag.name][-1])
    return values.get("registry", DEFAULT_REGISTRY), _etcd(values, given)


def read_public_ip(text: str | None) -> IPv4Address | None:
    """Read --public-ip for a command other than run."""
    return None if text is None else _read(_BY_NAME["public-ip"], text, "--public-ip")  # type: ignore[return-value]


def read_public_ipv6(text: str | None) -> IPv6Address | None:
    """Read --public-ipv6 for a command other than run."""
    return None if text is None else _read(_BY_NAME["public-ipv6"], text, "--public-ipv6")  # type: ignore[return-value]


def usage() -> str:
    """The help of `flannel-udp run`: every flag, its variable and its meaning."""
    lines = ["usage: flannel-udp run [flags]", "",
             "Flags as in Go: -x is --x; --flag=value or --flag value; a boolean is set false by --flag=false.",
             "Each may stand in the environment, --public-ip as FLANNELD_PUBLIC_IP; the command line wins.", ""]
    for flag in FLAGS:
        repeat = " (repeatable)" if flag.repeatable else ""
        lines += [f"  --{flag.name}{' ' + flag.value if flag.value else ''}{repeat}", f"        {flag.meaning}"]
    return "\n".join(lines)


def _from_argv(argv: Sequence[str]) -> Given:
    """Split the command line as Go's flag package does; every word must belong to a flag."""
    given: Given = {}
    words = iter(argv)
    for word in words:
        if word in {"-", "--"} or not word.startswith("-"):
            raise UsageError(f"unexpected argument {word!r}: run takes flags only")
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        origin = f"--{name}"
        boolean = _known(name).boolean
        if not equals:
            following = "true" if boolean else next(words, None)
            if following is None:
                raise UsageError(f"{origin} needs a value")
            text = following
        given.setdefault("help" if name == "h" else name, []).append((text, origin))
    return given


def _known(name: str) -> Flag:
    if flag := _BY_NAME.get(name):
        return flag
    import difflib  # only for the user who mistyped

    near = difflib.get_close_matches(name, _BY_NAME, 1)
    raise UsageError(f"unknown flag --{name}" + (f": did you mean --{near[0]}?" if near else ""))


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Take the FLANNELD_* variables that name a flag.

    An empty one counts as unset, as with flanneld. Others are left alone: Kubernetes itself puts FLANNELD_SERVICE_HOST
    into the environment of every pod beside a service of that name.
    """
    return {flag.name: (text, flag.variable) for flag in (*FLAGS, *UNBUILT) if (text := environ.get(flag.variable, ""))}


def _asked(given: Given) -> Asked | None:
    asked: tuple[Asked, ...] = ("help", "version")
    return next((name for name in asked if name in given and _read(_BY_NAME[name], *given[name][-1])), None)


def _read(flag: Flag, text: str, origin: str) -> object:
    try:
        return flag.read(text)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None


def _checked(values: dict[str, Any], given: Given) -> NodeOptions:
    """Check what no single flag can know of the others."""
    values["etcd"] = _etcd(values, given)
    ttl = values.get("lease_ttl", DEFAULT_LEASE_TTL)
    if "renew_margin" not in values:
        values["renew_margin"] = min(DEFAULT_RENEW_MARGIN, ttl / 2)
    elif values["renew_margin"] >= ttl:
        origin = given["subnet-lease-renew-margin"][-1][1]
        raise UsageError(f"{origin}: {values['renew_margin'] / 60:.0f} minutes are no less than the lease's {ttl:.0f} "
                         "seconds (--lease-ttl)")
    _check_threads(values, given)
    return NodeOptions(**values)


def _etcd(values: dict[str, Any], given: Given) -> EtcdOptions:
    """Take the --etcd-* values out of `values`."""
    fields = {name.removeprefix("etcd_"): values.pop(name) for name in list(values) if name.startswith("etcd_")}
    for pair in etcd_options.PAIRS:
        for name, other in (pair, pair[::-1]):
            if name in fields and other not in fields:
                raise UsageError(f"{given[f'etcd-{name}'][-1][1]} without --etcd-{other}: one is of no use without the "
                                 "other")
    return EtcdOptions(**fields)


def _check_threads(values: dict[str, Any], given: Given) -> None:
    """Choose the threads of each queue if nobody did; each CPU that is named must get one."""
    queues, cpus = values.get("queues", 1), values.get("cpus", ())
    if "threads" not in values:
        values["threads"] = (2 if len(cpus) > queues else 1) if cpus else default_threads(queues)
    if len(cpus) > values["threads"] * queues:
        of_each = f", --queues {queues}" if queues > 1 else ""
        raise UsageError(f"{given['cpus'][-1][1]}: {len(cpus)} CPUs are more than there are threads "
                         f"(--threads {values['threads']}{of_each})")
