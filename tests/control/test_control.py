"""control: a question and an answer over the socket; every fault on either side ends in one line and no crash."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flannel_udp import control
from flannel_udp.control import ControlServer, ask, serve
from flannel_udp.errors import ControlError, InstanceError, LeaseError

Start = Callable[..., ControlServer]


def echo(request: dict[str, Any]) -> Mapping[str, Any]:
    return {"echo": request}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return control.socket_path(tmp_path / "run")


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    servers = []

    def begin(handler: control.Handler = echo) -> ControlServer:
        servers.append(serve(path, handler))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def raw(path: Path, sent: bytes, hang_up: bool = True) -> dict[str, Any]:
    """Send bytes as they are, read to the end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(sent)
        if hang_up:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return dict(json.loads(answer))


def test_an_answer_to_a_request(start: Start, path: Path) -> None:
    start()
    assert ask(path, {"command": "status", "depth": [1, 2]}) == {"echo": {"command": "status", "depth": [1, 2]}}
    assert ask(path, {}) == {"echo": {}}


def test_the_wire_is_one_versioned_line_each_way(start: Start, path: Path) -> None:
    start()
    answer = raw(path, b'{"version": 1, "request": {"a": 1}}\n', hang_up=False)
    assert answer == {"version": 1, "answer": {"echo": {"a": 1}}}


def test_large_answers_arrive_whole(start: Start, path: Path) -> None:
    start(lambda _: {"peers": ["x" * 100] * 50_000})
    assert len(ask(path, {}, timeout=30)["peers"]) == 50_000


def test_many_clients_at_once_are_all_served(start: Start, path: Path) -> None:
    start()
    got: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda n=n: got.append(ask(path, {"n": n}, 30))) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["echo"]["n"] for answer in got) == list(range(30))


def test_only_the_owner_may_connect_from_the_first_moment_on(start: Start, path: Path) -> None:
    before = os.umask(0)
    try:
        start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("sent", "told"), [
    (b"", "not one line"),
    (b"hello\n", "not a line of JSON"),
    (b"\xff\xfe\n", "not a line of JSON"),
    (b"[" * 60_000 + b"\n", "not a line of JSON"),
    (b"[1]\n", "not a JSON object"),
    (b'{"version": 2, "request": {}}\n', "speaks version 1"),
    (b'{"request": {}}\n', "version None"),
    (b'{"version": 1, "request": 7}\n', "not a JSON object"),
    (b"x" * control.REQUEST_LIMIT, "at most 65536 bytes"),
])
def test_a_malformed_request_gets_an_error_and_the_next_one_an_answer(
        start: Start, path: Path, sent: bytes, told: str) -> None:
    start()
    assert told in raw(path, sent, hang_up=not sent.endswith((b"\n", b"x")))["error"]
    assert ask(path, {}) == {"echo": {}}


def test_a_silent_client_is_hung_up_on(start: Start, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENT_DEADLINE", 0.1)
    start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(20)
        silent.connect(str(path))
        assert silent.recv(1) == b""
    assert ask(path, {}) == {"echo": {}}


def test_errors_of_the_tree_reach_the_client_as_they_are(start: Start, path: Path) -> None:
    def refuse(_: dict[str, Any]) -> Mapping[str, Any]:
        raise LeaseError("no lease yet")

    start(refuse)
    with pytest.raises(ControlError, match=r"^no lease yet$"):
        ask(path, {})


@pytest.mark.parametrize("handler", [lambda _: {"x": object()}, lambda request: {"x": request["missing"]}])
def test_a_handler_that_fails_is_told_and_logged_and_the_server_lives(
        start: Start, path: Path, handler: control.Handler, capsys: pytest.CaptureFixture[str]) -> None:
    start(handler)
    for _ in range(2):
        with pytest.raises(ControlError, match="the daemon failed to answer"):
            ask(path, {})
    assert "request failed" in capsys.readouterr().err


def test_nobody_there(path: Path) -> None:
    with pytest.raises(ControlError, match=r"no daemon listens at .*--run-dir"):
        ask(path, {})


def test_a_left_over_socket_is_told_apart_and_replaced(start: Start, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="left behind"):
        ask(path, {})
    start()
    assert ask(path, {}) == {"echo": {}}


def test_a_living_daemon_is_not_replaced(start: Start, path: Path) -> None:
    start()
    with pytest.raises(InstanceError, match="--run-dir of its own"):
        serve(path, echo)
    assert ask(path, {}) == {"echo": {}}


def test_of_many_that_start_over_a_left_over_socket_one_wins(
        start: Start, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = control._living

    def look_and_hesitate(path: Path) -> bool:
        living = looks(path)
        time.sleep(0.05)  # so that without a turn each would find nobody there
        return living

    monkeypatch.setattr(control, "_living", look_and_hesitate)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    outcomes: list[str] = []

    def begin() -> None:
        try:
            start()
            outcomes.append("serves")
        except InstanceError:
            outcomes.append("gave way")

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["gave way"] * 7 + ["serves"]


def test_a_file_of_another_kind_is_not_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"):
        serve(path, echo)
    assert path.read_text() == "precious"


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="cannot be made: File exists"):
        serve(tmp_path / "file" / "control.sock", echo)


def test_directories_too_deep_for_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "control.sock"
    server = serve(path, echo)
    try:
        assert ask(path, {}) == {"echo": {}}
    finally:
        server.close()
    assert not path.exists()


def test_close_removes_the_socket_and_may_be_said_twice(start: Start, path: Path) -> None:
    server = start()
    server.close()
    server.close()
    assert list(path.parent.iterdir()) == []
    start()
    assert ask(path, {}) == {"echo": {}}


def test_close_leaves_a_successors_socket_alone(start: Start, path: Path) -> None:
    first = start()
    path.unlink()
    start()
    first.close()
    assert ask(path, {}) == {"echo": {}}


def test_close_waits_neither_for_a_silent_client_nor_for_a_stuck_handler(start: Start, path: Path) -> None:
    entered, released = threading.Event(), threading.Event()

    def stuck(request: dict[str, Any]) -> Mapping[str, Any]:
        entered.set()
        released.wait(30)
        return request

    server = start(stuck)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b'{"version": 1, "request": {}}\n')
        assert entered.wait(20)
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 5
        released.set()
        assert client.recv(1) == b""
    server._thread.join(20)
    assert not server._thread.is_alive()


def test_a_daemon_that_does_not_answer(start: Start, path: Path) -> None:
    released = threading.Event()
    start(lambda _: {"late": released.wait(20)})
    with pytest.raises(ControlError, match=r"did not answer within 0\.1 s"):
        ask(path, {}, timeout=0.1)
    released.set()


@pytest.mark.parametrize(("answer", "told"), [
    (b"", "hung up"), (b"junk\n", "not a line of JSON"), (b'{"version": 9, "answer": {}}\n', "speaks version 9"),
    (b'{"version": 1}\n', "not a JSON object"), (b'{"version": 9, "error": "old"}\n', "old"),
])
def test_a_daemon_that_answers_otherwise(path: Path, answer: bytes, told: str) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(ControlError, match=told):
            ask(path, {}, timeout=20)
        thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as somebody else")
def test_somebody_else_is_told_that_he_may_not() -> None:
    # Not below pytest's own folder, which nobody but root may enter.
    path = Path("/tmp") / f"flannel-udp-test-{os.getpid()}" / "control.sock"
    server = serve(path, echo)
    try:
        code = ("import os, sys; from pathlib import Path; from flannel_udp.control import ask; os.setuid(65534)\n"
                "try: ask(Path(sys.argv[1]), {})\n"
                "except Exception as error: print(type(error).__name__, error)")
        told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True,
                              timeout=60, cwd=Path(control.__file__).parent.parent).stdout
    finally:
        server.close()
        shutil.rmtree(path.parent)
    assert told.startswith("ControlError")
    assert "permission denied" in told
