"""cli: words reach the functions they name; every fault is one line and a status; a cold start loads little."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flannel_udp import cli, control
from flannel_udp.errors import LabError
from flannel_udp.lab.layout import Overlay
from flannel_udp.options import NodeOptions
from flannel_udp.registry import Listing, open_registry
from flannel_udp.registry.sqlite import SqliteRegistry

CONFIG = '{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}'


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("FLANNELD_REGISTRY", raising=False)
    return f"sqlite://{tmp_path}/leases.db"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command; its status, its output, its complaints."""
    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main(words)
        return (status, *capsys.readouterr())

    return run


Told = Callable[..., tuple[int, str, str]]


def program(code: str, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *words], input=stdin, capture_output=True, text=True,
                          check=False, timeout=60)


def test_the_version_is_told_without_loading_what_is_heavy() -> None:
    code = ("import sys; from flannel_udp.cli import main\n"
            "try: main(['--version'])\n"
            "except SystemExit as end: assert end.code == 0, end.code\n"
            "heavy = {'pyroute2', 'numpy', 'pytun', 'sqlite3', 'asyncio', 'flannel_udp._dataplane'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)")
    done = program(code)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "flannel-udp", "")


@pytest.mark.parametrize("word", ["--version", "-version"])
def test_run_tells_its_version_as_flanneld_does(told: Told, word: str) -> None:
    status, out, err = told("run", word)
    assert (status, err) == (0, "")
    assert out.startswith("flannel-udp ")


def test_run_hands_its_flags_to_the_daemon(monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    given: list[NodeOptions] = []

    def run(options: NodeOptions) -> int:
        given.append(options)
        return 7

    monkeypatch.setattr("flannel_udp.daemon.run", run)
    monkeypatch.setattr("flannel_udp.cli.signal.signal", lambda *_: None)  # this process is the tests'
    assert cli.main(["run", "--registry", registry, "-v=1"]) == 7
    assert given == [NodeOptions(registry=registry, verbosity=1)]


INTERRUPTED = """
import os, signal, sys
from flannel_udp import cli
class Dropped:  # an exception in here is printed and forgotten, as in the many that imports of others call
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, *_):
        if name == "flannel_udp.daemon":
            Dropped()
sys.meta_path.insert(0, Finder())
sys.exit(cli.main(["run", "--registry", sys.argv[1]]))
"""


def test_interrupt_before_the_daemon_is_loaded_ends_it_silently(registry: str) -> None:
    done = program(INTERRUPTED, registry)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_run_tells_wrong_flags_in_one_line_and_points_at_the_help(told: Told) -> None:
    status, out, err = told("run", "--iface", "eth0", "--nonsense")
    assert (status, out) == (2, "")
    assert err.splitlines() == ["flannel-udp: unknown flag --nonsense", "usage: flannel-udp run --help tells more"]
    assert told("run", "--help")[1].startswith("usage: flannel-udp run")


COMMANDS = [[], ["status"], ["leases"], ["leases", "reserve"],
            ["leases", "release"], ["config"], ["config", "get"], ["config", "set"], ["config", "check"], ["lab"],
            ["lab", "up"], ["lab", "exec"], ["lab", "status"], ["lab", "packet"], ["lab", "down"], ["lab", "demo"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_tells_the_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--version"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert out.startswith("flannel-udp ")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_ends_with_two_and_its_own_usage_on_a_bad_flag(
        words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, *{"config set": ["{}"], "config check": ["{}"], "lab packet": ["1", "2"]}.get(
            " ".join(words), []), "--nonsense"])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith(f"usage: {' '.join(['flannel-udp', *words])} ")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["config"], ["config", "nonsense"], ["lab", "up", "--nodes", "x"],
                                   ["--vers"], ["lab", "down", "lab"]])
def test_words_that_make_no_command_end_with_two(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "usage: flannel-udp" in capsys.readouterr().err


def test_config_is_checked_set_and_got(told: Told, registry: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(CONFIG)
    assert told("config", "get", "--registry", registry)[:2] == (1, "")
    for revision, word in ((2, CONFIG), (3, str(file))):
        said = f"network configuration written, revision {revision}\n"
        assert told("config", "set", "--registry", registry, word) == (0, said, "")
        assert told("config", "get", "--registry", registry) == (0, CONFIG + "\n", "")
    status, out, _ = told("config", "check", str(file))
    assert status == 0
    assert "10.5.0.0/16" in out
    assert "BACKEND\nport  8285\n" in out


def test_a_wrong_config_is_not_written(told: Told, registry: str) -> None:
    told("config", "set", "--registry", registry, CONFIG)
    for part, named in (('"SubnetLen": 40', "SubnetLen"), ('"Backend": {"Type": "udp", "Port": 0}', "Backend.Port")):
        status, _, err = told("config", "set", "--registry", registry, '{"Network": "10.5.0.0/16", ' + part + "}")
        assert (status, err.count("\n")) == (1, 1)
        assert named in err
    assert told("config", "get", "--registry", registry)[1] == CONFIG + "\n"


def test_a_file_with_a_wrong_config_is_named(told: Told, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, complaint in (("{", "not JSON"), ('{"Netwrk": "10.5.0.0/16"}', "Network is missing")):
        file.write_text(text)
        status, out, err = told("config", "check", str(file))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"flannel-udp: {file}: ")
        assert complaint in err
        assert told("config", "check", text)[2] == err.replace(f"{file}: ", "")


@pytest.mark.parametrize("kind", ["wireguard", "IPIP"])
def test_a_backend_that_is_flannels_only_is_taken_with_a_warning(told: Told, registry: str, kind: str) -> None:
    text = CONFIG.replace('"udp"', f'"{kind}"')
    for words in (("check", text), ("set", "--registry", registry, text)):
        status, out, err = told("config", *words)
        assert status == 0
        assert out
        assert err == (f"flannel-udp: warning: {kind.lower()} is known to flannel, but not built here yet: "
                       "flannel-udp run will refuse it\n")
    assert told("config", "get", "--registry", registry) == (0, text + "\n", "")


def test_config_comes_from_standard_input_too(registry: str) -> None:
    done = program("import sys; from flannel_udp.cli import main; sys.exit(main())",
                   "config", "set", "--registry", registry, "-", stdin=CONFIG)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_file_and_a_missing_registry_are_one_line_each(told: Told, registry: str) -> None:
    assert "No such file" in told("config", "set", "--registry", registry, "/nowhere/config.json")[2]
    status, _, err = told("leases", "--registry", "/no/scheme.db")
    assert status == 2
    assert "known: etcd://, sqlite://" in err


def test_the_registry_may_stand_in_the_environment(told: Told, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_REGISTRY", registry)
    assert told("config", "set", CONFIG)[0] == 0


def test_leases_as_table_and_as_json_with_skipped_keys_named(told: Told, registry: str) -> None:
    told("config", "set", "--registry", registry, CONFIG)
    assert told("leases", "--registry", registry)[:2] == (0, "(none)\n")
    opened = open_registry(registry)
    since = opened.snapshot().revision
    for key, value, ttl in (("10.5.7.0-24", b'{"PublicIP":"192.0.2.7","BackendType":"udp"}', 3600.0),
                            ("10.5.8.0-24", b'{"PublicIP":"192.0.2.8"}', None), ("junk", b"", None)):
        since = opened.create(key, value, ttl, since).revision
    opened.close()
    status, out, err = told("leases", "--registry", registry)
    assert status == 0
    first, *rows = out.splitlines()
    assert first.split("  ")[0] == "SUBNET"
    assert rows[0].split()[:2] == ["10.5.7.0/24", "-"]
    assert "in 59m" in rows[0]
    assert rows[1].split()[0] == "10.5.8.0/24"
    assert err.startswith("flannel-udp: junk skipped: ")
    listed = json.loads(told("leases", "--registry", registry, "--json")[1])
    assert [(lease["subnet"], lease["public_ip"], lease["reserved"]) for lease in listed["leases"]] == [
        ("10.5.7.0/24", "192.0.2.7", False), ("10.5.8.0/24", "192.0.2.8", True)]
    assert list(listed["skipped"]) == ["junk"]


def test_a_subnet_is_reserved_and_released(told: Told, registry: str) -> None:
    place = ("--registry", registry)
    told("config", "set", *place, CONFIG)
    assert told("leases", "reserve", *place, "10.5.7.0/24", "--public-ip", "192.0.2.7") == (
        0, "10.5.7.0/24 is reserved for 192.0.2.7\n", "")
    assert told("leases", *place, "reserve", "10.5.8.0/24")[1] == "10.5.8.0/24 is reserved for nobody\n"
    with closing(open_registry(registry)) as opened:
        opened.create("10.5.9.0-24", b'{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"x"}', 60.0,
                      opened.snapshot().revision)
        assert told("leases", "reserve", *place, "10.5.9.0-24")[1] == "10.5.9.0/24 is reserved for 192.0.2.9\n"
        assert [(entry.key, entry.value, entry.expiry) for entry in opened.snapshot().entries] == [
            ("10.5.7.0-24", b'{"PublicIP":"192.0.2.7","PublicIPv6":null}', None),
            ("10.5.8.0-24", b'{"PublicIP":"0.0.0.0","PublicIPv6":null}', None),
            ("10.5.9.0-24", b'{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"x"}', None)]
        assert told("leases", "reserve", *place, "10.5.8.0/24", "--public-ip", "192.0.2.8")[0] == 0
        assert told("leases", "release", *place, "10.5.7.0/24")[1] == "10.5.7.0-24 is released; it was 192.0.2.7's\n"
        opened.create("junk", b"", None, opened.snapshot().revision)
        assert told("leases", "release", *place, "junk")[1] == "junk is released\n"
        assert [entry.key for entry in opened.snapshot().entries] == ["10.5.8.0-24", "10.5.9.0-24"]


REFUSED = [(("reserve", "10.5.7.0/25"), "10.5.7.0/25 is none of the network's subnets: expected a /24 from 10.5.1.0"),
           (("reserve", "10.6.7.0/24"), "expected a /24 from 10.5.1.0 to 10.5.255.0"),
           (("reserve", "10.5.7.1/24"), "expected a subnet such as 10.5.1.0/24 (10.5.7.1/24 has host bits set)"),
           (("reserve", "nonsense"), "nonsense: expected a subnet such as 10.5.1.0/24"),
           (("reserve", "10.5.7.0/24", "10.5.9.0/24"), "10.5.9.0/24: a second subnet of one family"),
           (("reserve", "10.5.9.0/24", "--public-ip", "192.0.2.1"), "10.5.9.0-24 is already 192.0.2.9's: release it"),
           (("reserve", "10.5.64.0/24"), "10.5.64.0/24 overlaps 10.5.64.0-20, 192.0.2.64's"),
           (("reserve", "10.5.7.0/24", "--public-ip", "x"), "--public-ip: 'x' is not an IP address"),
           (("release", "10.5.7.0/24"), "10.5.7.0/24: neither leased nor reserved")]


@pytest.mark.parametrize(("words", "complaint"), REFUSED, ids=lambda case: " ".join(case) if len(case) < 5 else "")
def test_what_cannot_be_reserved_or_released_is_one_line_and_changes_nothing(
        told: Told, registry: str, words: tuple[str, ...], complaint: str) -> None:
    told("config", "set", "--registry", registry, CONFIG)
    with closing(open_registry(registry)) as opened:
        for key, ip in (("10.5.9.0-24", "192.0.2.9"), ("10.5.64.0-20", "192.0.2.64")):
            opened.create(key, f'{{"PublicIP":"{ip}"}}'.encode(), 60.0, opened.snapshot().revision)
        before = opened.snapshot()
        status, out, err = told("leases", *words, "--registry", registry)
        assert (status, out) == (2 if "--public-ip:" in complaint else 1, "")
        assert complaint in err.splitlines()[0]
        assert opened.snapshot() == before


def test_a_write_in_between_is_taken_into_account(told: Told, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the write another node renews; and then somebody takes the very subnet."""
    told("config", "set", "--registry", registry, CONFIG)
    beside = open_registry(registry)
    snapshot = SqliteRegistry.snapshot
    foreign = ["10.5.9.0-24", "10.5.7.0-24"]

    def slow(registry: SqliteRegistry) -> Listing:
        listing = snapshot(registry)
        if foreign and registry is not beside:
            beside.create(foreign.pop(0), b'{"PublicIP":"192.0.2.9"}', 60.0, snapshot(beside).revision)  # type: ignore[arg-type]
        return listing

    monkeypatch.setattr(SqliteRegistry, "snapshot", slow)
    with closing(beside):
        status, _, err = told("leases", "reserve", "--registry", registry, "10.5.7.0/24", "--public-ip", "192.0.2.1")
    assert (status, foreign) == (1, [])
    assert "10.5.7.0-24 is already 192.0.2.9's" in err


def test_leases_tell_when_the_daemon_heard_of_them(told: Told, registry: str, tmp_path: Path) -> None:
    told("config", "set", "--registry", registry, CONFIG)
    told("leases", "reserve", "--registry", registry, "10.5.7.0/24", "--public-ip", "192.0.2.7")
    told("leases", "reserve", "--registry", registry, "10.5.8.0/24", "--public-ip", "192.0.2.8")
    words = ("leases", "--registry", registry, "--run-dir", str(tmp_path), "--json")
    assert [lease["last_heard"] for lease in json.loads(told(*words)[1])["leases"]] == [None, None]
    peers = [{"subnet": "10.5.7.0/24", "underlay": "192.0.2.7", "last_heard": 1700000000.5},
             {"subnet": "10.5.8.0/24", "underlay": "192.0.2.99", "last_heard": 1700000000.5}]  # another node's by now
    with closing(control.serve(control.socket_path(tmp_path), lambda _: {"peers": peers})):
        assert [lease["last_heard"] for lease in json.loads(told(*words)[1])["leases"]] == [1700000000.5, None]
        assert "ago" in told(*words[:-1])[1]


def test_leases_of_a_path_where_no_registry_is_are_no_empty_list(told: Told, registry: str, tmp_path: Path) -> None:
    missing = told("leases", "--registry", registry)
    assert missing == told("config", "get", "--registry", registry)
    assert missing[:2] == (1, "")
    assert missing[2].count("\n") == 1
    status, _, err = told("leases", "--registry", f"sqlite://{tmp_path}")
    assert status == 1
    assert err.startswith(f"flannel-udp: registry {tmp_path}: is a folder: name a file in it")


def test_status_asks_the_daemon_of_a_run_dir(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"lease": {"subnet": "10.5.7.0/24"}, "peers": []}
    asked: list[dict[str, Any]] = []

    def handler(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return answer

    server = control.serve(control.socket_path(tmp_path), handler)
    try:
        assert told("status", "--run-dir", str(tmp_path))[1] == "LEASE\nsubnet  10.5.7.0/24\n\nPEERS\n(none)\n"
        monkeypatch.setenv("FLANNELD_RUN_DIR", str(tmp_path))
        assert json.loads(told("status", "--json")[1]) == answer
    finally:
        server.close()
    assert asked == [{"command": "status"}] * 2
    status, _, err = told("status", "--run-dir", str(tmp_path))
    assert (status, err.count("\n")) == (1, 1)
    assert "no daemon listens" in err


@pytest.mark.parametrize(("words", "function", "expected"), [
    (["up", "--nodes", "5"], "up", (5, "lab", Overlay("udp", (4,)))),
    (["up", "--backend", "vxlan", "--dual-stack"], "up", (3, "lab", Overlay("vxlan", (4, 6)))),
    (["up", "--name", "x"], "up", (3, "x", Overlay("udp", (4,)))),
    (["exec", "2", "--pod", "--", "ping", "--", "-c1"], "execute", ("lab", "2", True, ["ping", "--", "-c1"])),
    (["exec", "--name", "x", "2", "--", "ip", "--json", "a"], "execute", ("x", "2", False, ["ip", "--json", "a"])),
    (["status"], "status", ("lab",)), (["down", "--name", "x"], "down", ("x",)),
    (["demo"], "demo", (Overlay("udp", (4,)),)),
    (["demo", "--ipv6"], "demo", (Overlay("udp", (6,)),)),
    (["packet", "1", "2"], "packet", ("lab", "1", "2")),
])
def test_lab_commands_reach_the_lab(monkeypatch: pytest.MonkeyPatch, words: list[str], function: str,
                                    expected: tuple[Any, ...]) -> None:
    given: list[tuple[Any, ...]] = []

    def called(*arguments: Any) -> int:  # noqa: ANN401  (whatever the command hands over)
        given.append(arguments)
        return 0

    monkeypatch.setattr(f"flannel_udp.lab.{function}", called)
    assert cli.main(["lab", *words]) == 0
    assert given == [expected]


def test_the_status_of_a_command_in_the_lab_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_udp.lab.execute", lambda *_: 42)
    assert cli.main(["lab", "exec", "1", "--", "false"]) == 42


def test_words_after_two_dashes_are_for_exec_only(told: Told) -> None:
    assert "say it after --" in told("lab", "exec", "1")[2]
    for words, remedy in ((["node1", "ls"], "lab exec node1 -- ls"), (["1", "--pod", "ls", "-l"], "1 --pod -- ls -l"),
                          (["1", "echo", "--", "a b"], "1 -- echo 'a b'")):
        status, out, err = told("lab", "exec", *words)
        assert (status, out) == (2, "")
        assert err.startswith("flannel-udp: put -- before the command: lab exec ")
        assert err.splitlines()[0].endswith(remedy)
    assert told("lab", "status", "--", "x")[0] == 2


def test_errors_of_the_tree_are_one_line(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LabError("no lab of that name")

    monkeypatch.setattr("flannel_udp.lab.down", fail)
    assert told("lab", "down") == (1, "", "flannel-udp: no lab of that name\n")


def test_ctrl_c_is_quiet(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("flannel_udp.lab.demo", interrupted)
    assert told("lab", "demo") == (130, "", "")


def test_what_is_not_built_is_told_in_one_line(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flannel_udp._dataplane", "flannel_udp.config", "flannel_udp.lab.client"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    class Clean:
        """As after `make clean`."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "flannel_udp._dataplane":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Clean(), *sys.meta_path])
    for words in (["config", "check", CONFIG], ["lab", "up"]):
        assert told(*words) == (
            1, "", "flannel-udp: flannel_udp._dataplane is not built: run make in the project's folder\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from flannel_udp.cli import main; sys.exit(main(['run', '--help']))"
    with subprocess.Popen([sys.executable, "-c", f"import sys; sys.stdin.read()\n{code}"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        assert child.stderr
        child.stdout.close()
        child.stdin.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 141
