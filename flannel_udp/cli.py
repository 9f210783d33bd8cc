"""The command line: one function per command, imports where they are used, no logic.

Exit status: 0 done; 1 an error that somebody can mend, told in one line; 2 words that make no command; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from flannel_udp.errors import ConfigError, FlannelUdpError, UsageError
from flannel_udp.lab import commands as lab

if TYPE_CHECKING:
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions
    from flannel_udp.registry import Registry

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

PROGRAM = "flannel-udp"
COMPILED = {"flannel_udp._dataplane", "flannel_udp._probe"}  # missing before `make`, and after `make clean`
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the entry point."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except UsageError as error:
        return _tell(error, f"usage: {_command_of(words)} --help tells more", status=2)
    except FlannelUdpError as error:
        return _tell(error)
    except ModuleNotFoundError as error:
        if error.name not in COMPILED:
            raise
        return _tell(FlannelUdpError(f"{error.name} is not built: run make in the project's folder"))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left (head, less); Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    return status


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["run"]:
        return run(words[1:])  # Go's flag syntax, which argparse does not know
    head, command = words, []
    if "--" in words:
        head, command = words[:words.index("--")], words[words.index("--") + 1:]
    parser = _parser()
    arguments, surplus = parser.parse_known_args(head)
    if surplus and arguments.command is lab.execute:
        place = f"{arguments.node} --pod" if arguments.pod else arguments.node
        raise UsageError(f"put -- before the command: lab exec {place} -- {shlex.join(surplus + command)}")
    if surplus:
        arguments.parser.error(f"unrecognized arguments: {' '.join(surplus)}")
    if command and arguments.command is not lab.execute:
        raise UsageError(f"unexpected words after --: {' '.join(command)}")
    arguments.words = command
    return int(arguments.command(arguments))


def _command_of(words: list[str]) -> str:
    """The words that name the command, for the hint at its help."""
    deep = words[0] in {"cni", "config", "lab"} or words[1:2] in (["reserve"], ["release"])
    return " ".join([PROGRAM, *words[:2 if deep else 1]])


def _tell(error: FlannelUdpError, hint: str = "", status: int = 1) -> int:
    print(f"{PROGRAM}: {error}", file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    return status


# -- run --------------------------------------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> int:
    """The node's daemon."""
    from flannel_udp import options

    asked = options.parse(argv)
    if asked == "help":
        print(options.usage())
        return 0
    if asked == "version":
        print(f"{PROGRAM} {_version()}")
        return 0
    # Until the daemon takes signals there is nothing to take down; a traceback out of an import tells nobody anything.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flannel_udp import daemon

    return daemon.run(asked)


# -- config -----------------------------------------------------------------------------------------------------------


def config_get(arguments: argparse.Namespace) -> int:
    """Print the network configuration as it stands in the registry."""
    with _registry(arguments) as registry:
        print(registry.read_config().text)
    return 0


def config_set(arguments: argparse.Namespace) -> int:
    """Check a network configuration and write it to the registry."""
    config = _configuration(arguments.configuration)
    with _registry(arguments) as registry:
        revision = registry.write_config(config.text)
    print(f"network configuration written, revision {revision}")
    return 0


def config_check(arguments: argparse.Namespace) -> int:
    """Check a network configuration and print what it means."""
    from flannel_udp import render
    from flannel_udp.config import backend_keys

    config = _configuration(arguments.configuration)
    backend = backend_keys(config) or config.backend
    said = {name: value for name, value in vars(config).items() if name != "text" and value is not None}
    print(render.document({**said, "backend": dict(backend)}))
    return 0


def _configuration(word: str) -> NetworkConfig:
    """The checked configuration: the JSON itself, or the file that holds it; - is standard input."""
    from flannel_udp.backend import BACKENDS
    from flannel_udp.config import parse_network_config

    itself = word.lstrip().startswith("{")
    try:
        config = parse_network_config(word if itself else _read(word))
    except ConfigError as error:
        if itself:
            raise
        raise ConfigError(f"{'standard input' if word == '-' else word}: {error}") from None
    if config.backend_type not in BACKENDS:  # other nodes may run it: flannel's own agent reads the same configuration
        print(f"{PROGRAM}: warning: {config.backend_type} is known to flannel, but not built here yet: "
              f"{PROGRAM} run will refuse it", file=sys.stderr)
    return config


def _read(word: str) -> str:
    try:
        return sys.stdin.read() if word == "-" else Path(word).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise UsageError(f"{word}: {reason}: expected a file with JSON, - or the JSON itself") from None


# -- leases -----------------------------------------------------------------------------------------------------------


def leases(arguments: argparse.Namespace) -> int:
    """List the leases of a registry."""
    from flannel_udp import render
    from flannel_udp.lease import decode_snapshot
    from flannel_udp.registry import UNTOLD

    with _registry(arguments) as registry:
        listing = registry.snapshot()
        if not listing.entries:
            registry.read_config()  # NoConfig tells an empty overlay from a path where no registry is
        untold = [entry.key for entry in listing.entries if entry.expiry == UNTOLD]
        expiries = registry.expiries(untold) if untold else {}
    gone = dict.fromkeys(untold, time.time()) | expiries  # since the listing
    entries = [(e.key, e.value, e.revision, gone.get(e.key, e.expiry)) for e in listing.entries]
    snapshot = decode_snapshot(entries, listing.revision)
    heard = _last_heard(arguments)
    rows = [_lease_row(lease, heard) for lease in snapshot.leases]
    if arguments.json:
        print(json.dumps({"revision": snapshot.revision, "leases": rows, "skipped": dict(snapshot.skipped)}, indent=2))
        return 0
    print(render.document({"leases": rows}).removeprefix("LEASES\n"))
    for key, reason in snapshot.skipped:
        print(f"{PROGRAM}: {key} skipped: {reason}", file=sys.stderr)
    return 0


def leases_reserve(arguments: argparse.Namespace) -> int:
    """Reserve a subnet."""
    from flannel_udp.lease import LeaseAttrs
    from flannel_udp.options import read_public_ip, read_public_ipv6
    from flannel_udp.subnet import admin

    subnets = admin.read_subnets(arguments.subnet)
    attrs = LeaseAttrs(read_public_ip(arguments.public_ip), read_public_ipv6(arguments.public_ipv6))
    with _registry(arguments) as registry:
        owner = admin.reserve(registry, subnets, attrs)
    told = ", ".join(str(address) for address in (owner.public_ip, owner.public_ipv6) if address)
    print(f"{' '.join(str(subnet) for subnet in subnets if subnet)} is reserved for {told or 'nobody'}")
    return 0


def leases_release(arguments: argparse.Namespace) -> int:
    """Delete a lease or a reservation."""
    from flannel_udp.subnet import admin

    with _registry(arguments) as registry:
        key, owner = admin.release(registry, arguments.subnet)
    told = owner and (owner.public_ip or owner.public_ipv6)
    print(f"{key} is released" + (f"; it was {told}'s" if told else ""))
    return 0


def _last_heard(arguments: argparse.Namespace) -> dict[tuple[str, str], float | None]:
    """When this host's daemon heard of each peer last, by subnet and address; nothing where no daemon answers."""
    from flannel_udp import control
    from flannel_udp.errors import ControlError

    try:
        peers = control.ask(_control_socket(arguments), {"command": "status"}).get("peers", [])
    except ControlError:
        return {}
    return {(peer["subnet"], peer["underlay"]): peer["last_heard"] for peer in peers}


def _lease_row(lease: Lease, heard: dict[tuple[str, str], float | None]) -> dict[str, Any]:
    attrs = lease.attrs
    values = {"subnet": lease.subnet, "ipv6_subnet": lease.ipv6_subnet, "public_ip": attrs.public_ip,
              "public_ipv6": attrs.public_ipv6}
    texts = {name: None if value is None else str(value) for name, value in values.items()}
    ways = ((lease.subnet, attrs.public_ip), (lease.ipv6_subnet, attrs.public_ipv6))
    times = [time for subnet, underlay in ways if (time := heard.get((str(subnet), str(underlay))))]
    return {**texts, "backend": attrs.backend_type, "expiry": lease.expiry, "reserved": lease.expiry is None,
            "last_heard": max(times, default=None)}


# -- status -----------------------------------------------------------------------------------------------------------


def status(arguments: argparse.Namespace) -> int:
    """Ask the running daemon how it is."""
    from flannel_udp import control, render

    answer = control.ask(_control_socket(arguments), {"command": "status"})
    print(json.dumps(answer, indent=2) if arguments.json else render.document(answer))
    return 0


# -- what surrounds the daemon ----------------------------------------------------------------------------------------


def cleanup(arguments: argparse.Namespace) -> int:
    """Remove what a daemon that has ended left on this host."""
    from flannel_udp.cleanup import cleanup as undo

    place = _place(arguments)
    done = False
    for what in undo(place):
        print(f"removed {what}", flush=True)
        done = True
    if not done:
        print("nothing to remove")
    if place.subnet_file.exists():
        print(f"kept {place.subnet_file}: the CNI plugin reads it, and flannel, to get the same subnet again")
    return 0


def _place(arguments: argparse.Namespace) -> NodeOptions:
    """Where the daemon keeps its files: the flags, the environment, what is usual."""
    from flannel_udp.options import NodeOptions

    usual = NodeOptions()
    run_dir, state_dir, subnet_file = (
        Path(getattr(arguments, name) or os.environ.get(f"FLANNELD_{name.upper()}") or getattr(usual, name))
        for name in ("run_dir", "state_dir", "subnet_file"))
    return NodeOptions(run_dir=run_dir, state_dir=state_dir, subnet_file=subnet_file)


def mk_docker_opts(arguments: argparse.Namespace) -> int:
    """Write Docker's options for this node's subnet."""
    from flannel_udp import docker_opts

    options = docker_opts.docker_options(docker_opts.read_entries(arguments.f), ip_masq=not arguments.m)
    text = docker_opts.docker_env(options, os.environ, individual=arguments.i, combined=arguments.c, key=arguments.k)
    docker_opts.write_file(arguments.d, text)
    docker_opts.check_routes(arguments.f)
    return 0


def cni_install(arguments: argparse.Namespace) -> int:
    """Put the CNI plugin where container runtimes look for it."""
    from flannel_udp.cni import install

    version = arguments.cni_version or install.DEFAULT_VERSION
    for line in install.install(arguments.bin_dir, arguments.conf_dir, version):
        print(line)
    return 0


# -- words ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _registry(arguments: argparse.Namespace) -> Iterator[Registry]:
    """The registry that the flags and FLANNELD_* variables name, open for the length of a with block."""
    from flannel_udp import options
    from flannel_udp.registry import open_registry

    words = {flag.name: getattr(arguments, flag.name.replace("-", "_")) for flag in options.ACCESS}
    url, etcd = options.access(words)
    with contextlib.closing(open_registry(url, etcd=etcd)) as registry:
        yield registry


def _control_socket(arguments: argparse.Namespace) -> Path:
    from flannel_udp import control, paths

    run_dir = arguments.run_dir or os.environ.get("FLANNELD_RUN_DIR") or paths.DEFAULT_RUN_DIR
    return control.socket_path(Path(run_dir))


class _Version(argparse.Action):
    """--version, without asking for the version unless it is wanted: the look-up costs more than all else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{PROGRAM} {_version()}")
        parser.exit()


def _version() -> str:
    from importlib.metadata import version

    return version(PROGRAM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="flannel's node agent as a userspace forwarder.",
                                     allow_abbrev=False)
    _add_version(parser, "print the version and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("run", help="the node's daemon (flags: run --help)", add_help=False)
    _add_registry_commands(commands)
    shown = _add(commands, "status", status, "ask the running daemon how it is")
    _add_run_dir(shown)
    shown.add_argument("--json", action="store_true", help="the answer as JSON")
    _add_host_commands(commands)
    _add_cni_commands(_group(commands, "cni", "the plugin that container runtimes call"))
    lab.add(partial(_add, _group(commands, "lab", "nodes as network namespaces on this machine")))
    return parser


def _add_registry_commands(commands: Commands) -> None:
    config = _group(commands, "config", "the network configuration")
    for name, command, text in (("get", config_get, "print what the registry holds"),
                                ("set", config_set, "check, then write to the registry"),
                                ("check", config_check, "check, and print what it means")):
        added = _add(config, name, command, text)
        if name != "check":
            _add_registry(added)
        if name != "get":
            added.add_argument("configuration", metavar="FILE|-|JSON", help="a file, - for standard input, or the JSON")
    _add_leases_commands(_add(commands, "leases", leases, "list the leases of a registry"))


def _add_leases_commands(listed: argparse.ArgumentParser) -> None:
    _add_registry(listed)
    _add_run_dir(listed)
    listed.add_argument("--json", action="store_true", help="the leases as JSON")
    commands = listed.add_subparsers(title="commands", metavar="COMMAND")
    reserved = _add(commands, "reserve", leases_reserve,
                    "keep a subnet for the node of an address, or from all; a lease that stands stays its node's")
    reserved.add_argument("subnet", nargs="+", metavar="SUBNET", help="10.5.1.0/24; of both families in dual stack")
    for name in ("--public-ip", "--public-ipv6"):
        reserved.add_argument(name, metavar="IP", help="of the node that is to have it (default: nobody)")
    released = _add(commands, "release", leases_release,
                    "delete the lease of a node that is gone, or a reservation; a living node takes its lease again")
    released.add_argument("subnet", metavar="SUBNET", help="10.5.1.0/24, or a key as the log names it")
    for added in (reserved, released):
        _add_registry(added, default=argparse.SUPPRESS)  # or as it was said before the sub-command


def _add_host_commands(commands: Commands) -> None:
    undo = _add(commands, "cleanup", cleanup, "remove the rules, routes and files that an ended daemon left here")
    for flag, text in (("run-dir", "run directory"), ("state-dir", "state directory"), ("subnet-file", "subnet.env")):
        undo.add_argument(f"--{flag}", metavar="PATH",
                          help=f"the daemon's {text} (or FLANNELD_{flag.upper().replace('-', '_')})")
    docker = _add(commands, "mk-docker-opts", mk_docker_opts, "write Docker's options for this node's subnet")
    docker.add_argument("-f", metavar="FILE", type=Path, default=Path("/run/flannel/subnet.env"),
                        help="subnet.env (default %(default)s)")
    docker.add_argument("-d", metavar="FILE", type=Path, default=Path("/run/docker_opts.env"),
                        help="the file to write (default %(default)s)")
    docker.add_argument("-i", action="store_true", help="write each option as a variable of its own")
    docker.add_argument("-c", action="store_true", help="write all in one variable; both is the default")
    docker.add_argument("-m", action="store_true", help="leave --ip-masq out")
    docker.add_argument("-k", metavar="KEY", default="DOCKER_OPTS", help="that variable's name (default %(default)s)")


def _add_cni_commands(commands: Commands) -> None:
    made = _add(commands, "install", cni_install, "put the plugin where container runtimes look for it")
    made.add_argument("--bin-dir", metavar="DIR", type=_folder, required=True,
                      help="the plugins' folder, often /opt/cni/bin or /usr/lib/cni: there it is called flannel")
    made.add_argument("--conf-dir", metavar="DIR", type=_folder,
                      help="write 10-flannel.conflist into this folder, often /etc/cni/net.d (default: none)")
    made.add_argument("--cni-version", metavar="VERSION", help="of the network in 10-flannel.conflist (default 1.0.0)")


def _folder(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("expected a folder, found nothing")
    return Path(word)


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", metavar="DIR", help="the daemon's run directory (or FLANNELD_RUN_DIR)")


def _add_registry(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    from flannel_udp import options

    group = parser.add_argument_group("the registry", "each may be an environment variable: FLANNELD_REGISTRY, "
                                      "FLANNELD_ETCD_ENDPOINTS")
    for flag in options.ACCESS:
        group.add_argument(f"--{flag.name}", metavar=flag.value, help=flag.meaning, default=default)


def _group(commands: Commands, name: str, text: str) -> Commands:
    group = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    _add_version(group)
    return group.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(commands: Commands, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=command, parser=parser)
    _add_version(parser)
    return parser


def _add_version(parser: argparse.ArgumentParser, text: str = argparse.SUPPRESS) -> None:
    parser.add_argument("--version", action=_Version, nargs=0, help=text)


if __name__ == "__main__":
    sys.exit(main())
