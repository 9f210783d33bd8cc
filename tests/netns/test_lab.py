"""The lab as its user meets it: by commands, as root and as an ordinary user; and that nothing is left of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import LabError
from flannel_udp.lab import namespace
from flannel_udp.lab.client import Lab

from ..conftest import require_commands, wait_until
from .labs import COMMAND, DEADLINE, as_user, lab, named_lab, processes_of, run_at, up


@pytest.fixture
def name() -> Iterator[str]:
    with named_lab() as name:
        yield name


@pytest.fixture(scope="module")
def standing() -> Iterator[str]:
    """The name of a lab with two nodes that many tests look at and none changes."""
    with named_lab() as name:
        up(name)
        yield name


@pytest.fixture
def two_nodes(name: str) -> str:
    """The name of a lab with two nodes, up and ready."""
    up(name)
    return name


def test_pods_reach_each_other_as_soon_as_up_returns(standing: str) -> None:
    pod = Lab(standing).status()["nodes"][1]["pod"]
    pinged = run_at(standing, "node1 --pod", "ping", "-n", "-c", "1", "-W", "5", pod)
    assert pinged.returncode == 0, pinged.stdout
    assert "ttl=60" in pinged.stdout


def test_status_shows_nodes_and_leases(standing: str) -> None:
    shown = lab("status", "--name", standing)
    assert shown.returncode == 0
    for state in Lab(standing).status()["nodes"]:
        assert state["daemon"] == "running"
        assert all(str(value) in shown.stdout for value in state.values())


@pytest.mark.parametrize(
    ("command", "status"),
    [("true", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill -TERM $$", 128 + 15)],
)
def test_exec_returns_the_commands_status(standing: str, command: str, status: int) -> None:
    assert run_at(standing, "1", "sh", "-c", command).returncode == status


def test_exec_of_what_cannot_be_executed(standing: str, tmp_path: Path) -> None:
    missing = run_at(standing, "1", "no-such-command")
    assert (missing.returncode, missing.stderr) == (127, "flannel-udp: no-such-command: No such file or directory\n")
    assert run_at(standing, "1", str(tmp_path)).returncode == 126
    unknown = run_at(standing, "7", "true")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no node 'node7' (there: node1, node2)" in unknown.stderr


def test_exec_enters_all_namespaces_of_a_node(standing: str) -> None:
    seen = run_at(standing, "2", "sh", "-c", "hostname; ls /run; ls /run/lab; cat; pwd").stdout.split()
    assert seen[0] == "node2"
    assert {"flannel", "flannel-udp", "registry.db", "node1.log"} <= set(seen)
    assert seen[-1] == str(Path.cwd())
    assert "192.0.2.2/24" in run_at(standing, "2", "ip", "-o", "addr", "show", "eth0").stdout
    assert run_at(standing, "2 --pod", "hostname").stdout == "node2-pod\n"


def test_daemon_finds_its_defaults_at_the_node(standing: str) -> None:
    status = run_at(standing, "1", sys.executable, "-P", "-m", "flannel_udp.cli", "status", "--json")
    assert status.returncode == 0, status.stderr
    assert Lab(standing).status()["nodes"][1]["subnet"] in status.stdout


def test_input_and_output_of_exec_are_the_callers(standing: str) -> None:
    command = [*COMMAND, "exec", "--name", standing, "1", "--", "cat"]
    assert subprocess.run(command, input=b"through", capture_output=True, check=True).stdout == b"through"


def test_command_dies_with_the_lab(two_nodes: str) -> None:
    command = subprocess.Popen([*COMMAND, "exec", "--name", two_nodes, "1", "--", "sleep", "1000"])
    try:
        wait_until(lambda: "sleep" in run_at(two_nodes, "1", "ps", "-e").stdout, "the command runs")
        assert lab("down", "--name", two_nodes).returncode == 0
        assert command.wait(DEADLINE) == 128 + 9
    finally:
        command.kill()
        command.wait()


def test_command_dies_with_its_caller(standing: str) -> None:
    command = subprocess.Popen([*COMMAND, "exec", "--name", standing, "1", "--", "sleep", "1000"])
    try:
        wait_until(lambda: "sleep" in run_at(standing, "1", "ps", "-e").stdout, "the command runs")
    finally:
        command.kill()
        command.wait()
    wait_until(lambda: "sleep" not in run_at(standing, "1", "ps", "-e").stdout, "the command is gone")


def test_down_leaves_nothing_and_says_so_when_nothing_is_there(two_nodes: str) -> None:
    assert len(processes_of(two_nodes)) == 3
    down = lab("down", "--name", two_nodes)
    assert (down.returncode, down.stdout) == (0, f"lab {two_nodes} is down\n")
    assert processes_of(two_nodes) == []
    again = lab("down", "--name", two_nodes)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert f"there is no lab '{two_nodes}'" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_end_of_the_supervisor_is_the_end_of_all(two_nodes: str, number: signal.Signals) -> None:
    pids = processes_of(two_nodes)
    os.kill(pids[0], number)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes of the lab are gone")


def test_death_of_a_daemon_shows_in_the_status(two_nodes: str) -> None:
    os.kill(processes_of(two_nodes)[1], signal.SIGKILL)
    wait_until(lambda: Lab(two_nodes).status()["nodes"][0]["daemon"] == "ended: SIGKILL", "the status shows the death")
    assert run_at(two_nodes, "1", "true").returncode == 0


def any_process(name: str) -> bool:
    return bool(processes_of(name))


def first_node(name: str) -> bool:
    try:
        return len(Lab(name).status()["nodes"]) > 0
    except LabError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", [any_process, first_node])
def test_up_that_is_ended_in_the_middle_leaves_nothing(
    name: str, stage: Callable[[str], bool], number: signal.Signals
) -> None:
    starting = subprocess.Popen([*COMMAND, "up", "--nodes", "3", "--name", name], stderr=subprocess.PIPE)
    with starting:
        wait_until(lambda: stage(name), "up is in the middle")
        starting.send_signal(number)
        status = starting.wait(DEADLINE)
        if number == signal.SIGINT:
            assert status == 130
            assert processes_of(name) == []
    wait_until(lambda: not processes_of(name), "all processes of the lab are gone")


def test_second_lab_of_one_name_is_refused_and_the_first_stays(standing: str) -> None:
    second = lab("up", "--nodes", "1", "--name", standing)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "is up already" in second.stderr
    assert run_at(standing, "2", "true").returncode == 0


def test_two_labs_know_nothing_of_each_other(standing: str) -> None:
    other = f"{standing}-too"
    try:
        assert lab("up", "--nodes", "1", "--name", other).returncode == 0
        assert run_at(other, "1", "ping", "-n", "-c", "1", "-W", "1", "192.0.2.2").returncode != 0
        assert run_at(standing, "1", "ping", "-n", "-c", "1", "-W", "5", "192.0.2.2").returncode == 0
        assert Lab(other).status()["nodes"][0]["address"] == Lab(standing).status()["nodes"][0]["address"]
    finally:
        lab("down", "--name", other)
    wait_until(lambda: not processes_of(other), "the other lab is gone")


def test_daemon_that_cannot_start_fails_up_with_its_log(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = "import os, sys\nif 'run' in sys.orig_argv:\n    os.write(2, b'broken on purpose')\n    os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(breaker)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = lab("up", "--nodes", "2", "--name", name)
    assert done.returncode == 1
    assert "the daemon ended: status 3; its log ends:\n    broken on purpose" in done.stderr


@pytest.mark.parametrize(("words", "problem"), [(("--nodes", "0"), "1 to 100"), (("--name", "a/b"), "lab name 'a/b'")])
def test_unusable_words_are_refused_in_one_line(words: tuple[str, str], problem: str) -> None:
    done = lab("up", *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert problem in done.stderr


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        ("mount -t tmpfs tmpfs /dev/net", "modprobe tun"),
        ("mount -t tmpfs tmpfs /dev/net; mknod -m 0 /dev/net/tun c 1 3; CAPS=-dac_override", "chmod 0666 /dev/net/tun"),
    ],
)
def test_machine_without_tun_is_told_what_to_do(name: str, prepare: str, problem: str) -> None:
    require_commands("unshare", "setpriv")
    script = f'CAPS=-sys_boot; {prepare}; exec setpriv --bounding-set=$CAPS "$@"'
    done = lab("up", "--name", name, prefix=["unshare", "--mount", "sh", "-c", script, "sh"])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert problem in done.stderr


def test_machine_without_user_namespaces_is_told_what_to_do(name: str) -> None:
    require_commands("unshare", "setpriv")
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin "$@"'
    done = lab("up", "--name", name, prefix=["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "user namespaces" in done.stderr


def test_container_without_sysctls_is_told_what_to_do(name: str) -> None:
    script = 'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh", *as_user("nobody")]
    done = lab("up", "--name", name, prefix=prefix)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "--privileged" in done.stderr


def test_packet_shows_the_ping_on_both_sides(standing: str) -> None:
    shown = lab("packet", "--name", standing, "1", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("8 (echo request)") == 2
    assert "flannel udp  no header of its own" in shown.stdout
    assert "wrong" not in shown.stdout
    refused = lab("packet", "--name", standing, "1", "1")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


@pytest.mark.usefixtures("name")
def test_packet_whose_reader_leaves_ends_without_a_word(standing: str) -> None:
    with subprocess.Popen([*COMMAND, "packet", "--name", standing, "1", "2"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(DEADLINE) == 141


def test_exec_knows_the_labs_registry_whatever_the_callers_is(standing: str) -> None:
    callers = ["env", "FLANNELD_REGISTRY=sqlite:///nowhere/else.db", "FLANNELD_RUN_DIR=/nowhere"]
    for word in ("leases", "status"):
        asked = lab("exec", "--name", standing, "1", "--", sys.executable, "-P", "-m", "flannel_udp.cli", word,
                    prefix=callers)
        assert asked.returncode == 0, asked.stderr
        assert "10.5." in asked.stdout


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_demo_shows_everything_and_is_satisfied(user: str) -> None:
    done = lab("demo", prefix=as_user(user))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was as it should be" in done.stdout
    assert "FAILED" not in done.stdout
    assert done.stdout.count("[ok]") >= 10
    for expected in ("10.5.", "flannel udp", "Destination Net Unreachable", "no_route 0 -> 1", "sha256"):
        assert expected in done.stdout


@pytest.mark.usefixtures("name")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_that_is_interrupted_leaves_nothing(number: signal.Signals) -> None:
    demo = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with demo:
        assert demo.stdout is not None
        assert any("The leases" in line for line in demo.stdout), "the story has begun"
        if number == signal.SIGKILL:
            demo.kill()
        else:
            os.killpg(demo.pid, number)  # as a terminal does
        status = demo.wait(DEADLINE)
    assert status in (128 + number, -number)
    wait_until(lambda: not processes_of(f"demo-{demo.pid}"), "all processes of the demo's lab are gone")


@pytest.mark.usefixtures("name")
def test_demo_whose_reader_leaves_ends_without_a_word() -> None:
    demo = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == ""
        assert demo.wait(DEADLINE) == 128 + signal.SIGPIPE
    wait_until(lambda: not processes_of(f"demo-{demo.pid}"), "all processes of the demo's lab are gone")


def test_ordinary_user_has_the_same_commands(name: str) -> None:
    prefix = as_user("nobody")
    own = "; ".join(
        [
            f'"$@" up --nodes 2 --name {name}',
            f'"$@" exec --name {name} 1 --pod -- sh -c "id -u; hostname; exit 5"; echo status $?',
            f'"$@" packet --name {name} 1 2',
            f'"$@" status --name {name}',
            f'"$@" down --name {name}',
        ]
    )
    done = subprocess.run(
        [*prefix, "sh", "-c", own, "sh", *COMMAND], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "0\nnode1-pod\nstatus 5\n" in done.stdout
    assert done.stdout.endswith(f"lab {name} is down\n")


def test_another_user_cannot_enter(standing: str) -> None:
    other = lab("status", "--name", standing, prefix=as_user("nobody"))
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "there is no lab" in other.stderr


INTRUDER = """
import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect("\\0flannel-udp/lab/0/" + sys.argv[1])
door.send(b'{"request": "enter"}')
answer, descriptors, _, _ = socket.recv_fds(door, 65536, 8)
print(answer.decode(), descriptors)
"""


def test_user_who_knocks_at_anothers_door_is_refused(standing: str) -> None:
    command = [*as_user("nobody"), sys.executable, "-c", INTRUDER, standing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stdout == '{"error": "this lab belongs to another user"} []\n'


IMPOSTOR = """
import socket, sys, time
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.bind("\\0flannel-udp/lab/0/" + sys.argv[1])
door.listen()
print("listening", flush=True)
time.sleep(1000)
"""


def test_door_of_another_user_in_the_labs_place_is_not_believed(name: str) -> None:
    command = [*as_user("nobody"), sys.executable, "-c", IMPOSTOR, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as impostor:
        try:
            assert impostor.stdout is not None
            assert impostor.stdout.readline() == "listening\n"
            asked = lab("exec", "--name", name, "1", "--", "true")
        finally:
            impostor.kill()
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)
    assert "belongs to another user" in asked.stderr


def test_namespaces_of_the_lab_are_not_the_callers(standing: str) -> None:
    place = Lab(standing).place("node1")
    try:
        mine = namespace.here(place.descriptors)
        try:
            for kind, descriptor in place.descriptors.items():
                assert os.fstat(descriptor).st_ino != os.fstat(mine.descriptors[kind]).st_ino
        finally:
            mine.close()
    finally:
        place.close()
