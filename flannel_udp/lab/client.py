"""What the commands of `flannel-udp lab` do: start a lab, enter it, ask after it, end it.

A command runs as whoever typed it. To be inside it asks the supervisor for descriptors of the namespaces and enters
them in a child process; the descriptors pass through the door, so no name, no file and no privilege is needed.
"""

import contextlib
import ctypes
import errno
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from flannel_udp.errors import FlannelUdpError, LabError
from flannel_udp.lab import channel, layout
from flannel_udp.lab.namespace import Namespaces

TUN_DEVICE = "/dev/net/tun"
DOWN_DEADLINE = 10.0  # our choice: seconds for the kernel to end all processes of a lab before more is done
PR_SET_PDEATHSIG = 1  # specification: linux/prctl.h


class Lab:
    """A running lab, as a client sees it."""

    def __init__(self, name: str) -> None:
        self.name = layout.check_name(name)

    def ask(self, request: str, **words: object) -> tuple[channel.Message, list[int]]:
        """Send one request to the supervisor; LabError if there is no lab, or it refuses."""
        with channel.open_socket() as connection:
            try:
                connection.connect(channel.door_address(self.name))
            except ConnectionRefusedError:
                raise LabError(f"there is no lab {self.name!r}: flannel-udp lab up starts one") from None
            if channel.peer_credentials(connection)[1] != os.geteuid():
                raise LabError(f"what listens in the place of lab {self.name!r} belongs to another user")
            channel.send(connection, {"request": request, **words})
            try:
                said = channel.receive(connection)
            except ConnectionError:
                said = None
        if said is None:
            raise LabError(f"lab {self.name!r} ended before it answered")
        answer, descriptors = said
        if "error" in answer:
            raise LabError(answer["error"])
        return answer, descriptors

    def place(self, node: str = "", *, pod: bool = False) -> Namespaces:
        """Get the namespaces of a node, of its pod, or of the lab itself (""), to be closed."""
        answer, descriptors = self.ask("enter", node=node, pod=pod)
        return Namespaces(dict(zip(answer["kinds"], descriptors, strict=True)))

    def status(self) -> channel.Message:
        """What the supervisor tells of itself and the nodes."""
        return self.ask("status")[0]

    def down(self) -> None:
        """End the lab and wait until the last of its processes is gone."""
        with _closing(self.ask("down")[1]) as (supervisor,):
            wait_gone(supervisor)


@contextlib.contextmanager
def _closing(descriptors: list[int]) -> Iterator[list[int]]:
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def wait_gone(supervisor: int) -> None:
    """Wait for the end of PID 1, which is the end of all, by its pidfd; kill it when it takes its time."""
    waiting = select.poll()
    waiting.register(supervisor, select.POLLIN)
    if not waiting.poll(DOWN_DEADLINE * 1000):
        signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        if not waiting.poll(DOWN_DEADLINE * 1000):
            raise LabError("the lab's processes do not end even when killed; one may hang in the kernel")


# Up.


def start(nodes: int, name: str, overlay: layout.Overlay) -> "StartedLab":
    """Start a lab that lives as long as this process holds it; returns when all nodes are ready."""
    layout.check_name(name)
    layout.check_nodes(nodes)
    importlib.import_module("flannel_udp._dataplane")  # not built: better said here than by each daemon's end
    _check_tun()
    _check_paths()
    door = channel.open_socket()
    with door:
        try:
            door.bind(channel.door_address(name))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise LabError(f"lab {name!r} is up already: flannel-udp lab down --name {name} ends it") from None
        started = StartedLab(name, nodes, overlay, door)
    try:
        started.wait_ready()
    except BaseException:  # Ctrl-C too: raised again, when nothing is left of the lab
        started.close()
        raise
    return started


class StartedLab:
    """A lab by its lifeline: it ends when this is closed, or this process ends, unless detached before."""

    def __init__(self, name: str, nodes: int, overlay: layout.Overlay, door: socket.socket) -> None:
        self.lab = Lab(name)
        self._lifeline, theirs = channel.socket_pair()
        self._pidfd = -1
        self._output = os.memfd_create("lab-supervisor")  # what it may complain of; no file, and no pipe to hold open
        words = [name, str(nodes), *overlay.words(), str(door.fileno()), str(theirs.fileno())]
        with theirs:
            self._starter = subprocess.Popen(
                [sys.executable, "-P", "-m", "flannel_udp.lab.supervisor", *words],
                stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                pass_fds=(door.fileno(), theirs.fileno()), start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Wait until all nodes are ready; LabError tells why they are not."""
        while said := self._receive():
            message, descriptors = said
            if descriptors:
                (self._pidfd,) = descriptors
            if "error" in message:
                raise LabError(message["error"])
            if "ready" in message:
                return
        complaint = os.pread(self._output, 1 << 16, 0).decode(errors="replace").strip()
        raise LabError(f"the lab's supervisor ended{': ' + complaint if complaint else ' without a word'}")

    def _receive(self) -> tuple[channel.Message, list[int]] | None:
        try:
            return channel.receive(self._lifeline)
        except ConnectionError:
            return None

    def detach(self) -> None:
        """Let the lab live on without this process."""
        channel.send(self._lifeline, {"detach": True})
        self._release()

    def close(self) -> None:
        """End the lab, and wait until it is gone."""
        self._lifeline.close()
        if self._pidfd >= 0:
            wait_gone(self._pidfd)
        self._release()

    def _release(self) -> None:
        self._starter.wait()  # it ended when PID 1 began
        self._lifeline.close()
        os.close(self._output)
        if self._pidfd >= 0:
            os.close(self._pidfd)


def _check_tun() -> None:
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise LabError(f"{TUN_DEVICE} does not exist: modprobe tun (in a container: --device {TUN_DEVICE})") from None
    except PermissionError:
        remedy = f"run as root, or let everybody open it as most distributions do: chmod 0666 {TUN_DEVICE}"
        raise LabError(f"{TUN_DEVICE} cannot be opened by this user: {remedy}") from None
    except OSError as error:
        raise LabError(f"{TUN_DEVICE} cannot be opened: {error.strerror}: modprobe tun may help") from None


def _check_paths() -> None:
    """Programs inside see another /run, so Python had better not live there."""
    for path in (sys.executable, sys.prefix, __file__):
        if Path(path).resolve().is_relative_to("/run"):
            raise LabError(f"{path} lies below /run, which nodes have for themselves: install flannel-udp elsewhere")


# Inside.


def run_inside(place: Namespaces, action: Callable[[], int]) -> int:
    """Run `action` in a process inside `place`, with this process's terminal; return its exit status.

    Two forks: the first child enters, and may not come back; only its own child is in the lab's PID namespace, so that
    it ends with the lab. Both end with this process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _in_child(lambda: _enter_and_run(place, action))
    return _wait_for(child)


def _enter_and_run(place: Namespaces, action: Callable[[], int]) -> int:
    directory = os.getcwd()  # noqa: PTH109 - a path for chdir alone
    place.enter()
    with contextlib.suppress(OSError):  # it may lie where the lab has something else
        os.chdir(directory)
    child = os.fork()
    if child == 0:
        _in_child(action)
    place.close()
    return _wait_for(child)


def _in_child(action: Callable[[], int]) -> NoReturn:
    """Run `action` and end, as a program would."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    status = 1
    try:
        status = action()
    except FlannelUdpError as error:
        print(f"flannel-udp: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has left (head, less)
        status = 128 + signal.SIGPIPE
    except BaseException:  # a forked child must end here, and not in its parent's code: shown, not raised
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(status)


def _wait_for(child: int) -> int:
    """Wait for a child, as a shell would: the terminal's signals are the child's business, others are passed on."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda number, _: _pass_on(child, number))
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def become(command: list[str], environment: Mapping[str, str]) -> int:
    """Become another program, in this environment; the status that a shell has for it if that cannot be."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # what Python ignores, a program would go on ignoring
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the user's own command is what this is for
    except OSError as error:
        print(f"flannel-udp: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126
