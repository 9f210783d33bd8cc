"""The lab's supervisor: PID 1 of the lab's PID namespace, so that the kernel ends the lab with it, whatever happens.

`lab up` starts this file as a program with two sockets: the door, bound but not yet listening, and the lifeline. It
makes the lab's namespaces, forks, and the child is PID 1; the parent ends. PID 1 never blocks: a second child, the
builder, makes nodes and pods one by one and hands their namespaces over as descriptors; PID 1 keeps them, starts each
node's daemon in them, and serves the door. It ends on SIGTERM, SIGINT, a request, when the build fails, or when the
lifeline's other end closes, unless that end said "detach" before. All that is the lab's lives in its namespaces: the
mounts, links and files go with the last process and the last descriptor, which are PID 1's.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass, field

from flannel_udp.errors import FlannelUdpError, LabError
from flannel_udp.lab import channel, layout, namespace
from flannel_udp.lab.layout import Overlay
from flannel_udp.lab.namespace import Kind, Namespaces

LAB_KINDS: tuple[Kind, ...] = ("mnt", "pid", "uts", "net")
NODE_KINDS: tuple[Kind, ...] = ("mnt", "uts", "net")
POD_KINDS: tuple[Kind, ...] = ("uts", "net")


@dataclass
class NodeState:
    """What is known of a node. `pid` is the daemon's in the lab's PID namespace; 0: it does not run.

    Addresses, subnets and the pod's addresses are one of each family; the latter two come when there is a lease.
    """

    node: str
    addresses: list[str]
    daemon: str = "starting"
    pid: int = 0
    subnets: list[str] = field(default_factory=list)
    pods: list[str] = field(default_factory=list)

    def told(self, overlay: Overlay) -> dict[str, object]:
        """For the status."""
        return {"node": self.node, **overlay.by_family("address", self.addresses), "daemon": self.daemon,
                "pid": self.pid, **overlay.by_family("subnet", self.subnets),
                **overlay.by_family("pod", self.pods)}  # fmt: skip


class Supervisor:
    """PID 1: a table of nodes, and what may happen to it."""

    def __init__(
        self, name: str, nodes: int, overlay: Overlay, door: socket.socket, lifeline: socket.socket, own: Namespaces
    ) -> None:
        self.name = name
        self.nodes = nodes
        self.overlay = overlay
        self.door = door
        self.lifeline: socket.socket | None = lifeline
        self.own = own
        self.places: dict[str, Namespaces] = {}
        self.states: dict[str, NodeState] = {}
        self.ready = False
        self.end_reason: str | None = None
        self.builder: socket.socket | None = None

    def run(self) -> None:
        """Serve until there is a reason to end."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda number, _: self._signalled(number))
        self.door.listen()
        self._start_builder()
        guests: dict[int, socket.socket] = {}
        while self.end_reason is None:
            ways = (wake, self.door, self.lifeline, self.builder, *guests.values())
            ready, _, _ = select.select([way for way in ways if way], [], [])
            if wake in ready:
                wake.recv(4096)
                self._reap()
            if self.builder in ready:
                self._on_builder()
            if self.lifeline in ready:
                self._on_lifeline()
            if self.door in ready:
                guest, _ = self.door.accept()
                guests[guest.fileno()] = guest
            for guest in [guest for guest in guests.values() if guest in ready]:
                del guests[guest.fileno()]
                with guest, contextlib.suppress(OSError, ValueError):  # left without waiting, or speaks no JSON
                    self._on_guest(guest)
        if self.lifeline and not self.ready:
            channel.send(self.lifeline, {"error": self.end_reason})

    # What comes in.

    def _signalled(self, number: int) -> None:
        if number != signal.SIGCHLD:
            self.end_reason = f"the lab's supervisor got {signal.Signals(number).name}"

    def _on_lifeline(self) -> None:
        """The other end says "detach", or nothing for ever."""
        assert self.lifeline is not None
        try:
            said = channel.receive(self.lifeline)
        except ConnectionError:
            said = None
        self.lifeline.close()
        self.lifeline = None
        if said is None:
            self.end_reason = "the command that started the lab has ended"

    def _on_builder(self) -> None:
        assert self.builder is not None
        said = channel.receive(self.builder)
        if said is None:
            self.builder.close()
            self.builder = None
            if not self.ready:
                self.end_reason = self.end_reason or "the lab's builder died"
            return
        message, descriptors = said
        kind = message["kind"]
        if kind == "node":
            self.states[message["node"]] = NodeState(message["node"], message["addresses"])
            self.places[message["node"]] = Namespaces(dict(zip(NODE_KINDS, descriptors, strict=True)))
            self._start_daemon(message["node"])
        elif kind == "pod":
            state = self.states[message["node"]]
            state.subnets, state.pods = message["subnets"], message["pods"]
            self.places[f"{message['node']}/pod"] = Namespaces(dict(zip(POD_KINDS, descriptors, strict=True)))
        elif kind == "ready":
            self.ready = True
            if self.lifeline:
                channel.send(self.lifeline, {"ready": True})
        else:
            self.end_reason = message["error"]

    def _on_guest(self, guest: socket.socket) -> None:
        said = channel.receive(guest)  # whoever it is: a close with something unread would undo the answer
        if said is None:
            return
        message, descriptors = said
        for descriptor in descriptors:  # nobody asked for these
            os.close(descriptor)
        try:
            if channel.peer_credentials(guest)[1] != os.geteuid():
                raise LabError("this lab belongs to another user")
            answer, passed = self._answer(str(message.get("request")), str(message.get("node", "")), message)
        except LabError as error:
            answer, passed = {"error": str(error)}, []
        channel.send(guest, answer, passed)

    def _answer(self, request: str, node: str, message: channel.Message) -> tuple[channel.Message, list[int]]:
        if request == "status":
            nodes = [state.told(self.overlay) for state in self.states.values()]
            told = {"name": self.name, "ready": self.ready, "expected": self.nodes, "nodes": nodes}
            return {**told, "overlay": self.overlay.words()}, []
        if request == "enter":
            kinds, descriptors = self._place(node, bool(message.get("pod")))
            return {"kinds": kinds}, descriptors
        if request == "down":
            self.end_reason = "asked for"
            return {}, [os.pidfd_open(os.getpid())]
        raise LabError(f"no such request: {request}")

    # What it does.

    def _start_builder(self) -> None:
        ours, theirs = channel.socket_pair()
        if os.fork():
            theirs.close()
            self.builder = ours
            return
        with theirs:
            ours.close()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            status = 0
            try:
                from flannel_udp.lab import builder  # brings netlink; PID 1 stays without

                builder.build(self.nodes, self.overlay, theirs)
            except (FlannelUdpError, OSError) as error:
                channel.send(theirs, {"kind": "error", "error": f"{error}"})
                status = 1
        os._exit(status)

    def _start_daemon(self, node: str) -> None:
        """Start a node's daemon inside the node, with nothing of the caller's but the environment."""
        state = self.states[node]
        options = ["--iface", layout.EXTERNAL_INTERFACE, "--state-dir", str(layout.STATE_DIR), "-v=1"]
        command = [sys.executable, "-P", "-m", "flannel_udp.cli", "run", *options]
        log = os.open(layout.log_path(node), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        outputs = [(os.POSIX_SPAWN_DUP2, log, number) for number in (1, 2)]
        with namespace.inside(self.places[node]):
            defaults = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores these two
            state.pid = os.posix_spawn(
                sys.executable, command, layout.environment(), file_actions=outputs, setsid=True, setsigdef=defaults
            )
        os.close(log)
        state.daemon = "running"

    def _reap(self) -> None:
        """Take leave of dead children: daemons, and orphans of whatever was executed."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for state in self.states.values():
                    if state.pid == pid:
                        self._daemon_ended(state, os.waitstatus_to_exitcode(status))

    def _daemon_ended(self, state: NodeState, code: int) -> None:
        state.pid = 0
        state.daemon = f"ended: {signal.Signals(-code).name}" if code < 0 else f"ended: status {code}"
        if not self.ready:
            self.end_reason = f"{state.node}: the daemon {state.daemon}{layout.log_tail(state.node)}"

    def _state(self, node: str) -> NodeState:
        if node not in self.states:
            there = ", ".join(self.states) or "none yet"
            raise LabError(f"lab {self.name} has no node {node!r} (there: {there})")
        return self.states[node]

    def _place(self, node: str, pod: bool) -> tuple[list[Kind], list[int]]:
        """The namespaces that make up a place, the lab's own ones where a node or a pod has none."""
        found = dict(self.own.descriptors)
        if node:
            self._state(node)
            found |= self.places[node].descriptors
        if pod:
            if f"{node}/pod" not in self.places:
                raise LabError(f"{node or 'the underlay'} has no pod (yet)")
            found |= self.places[f"{node}/pod"].descriptors
        return list(found), list(found.values())


# From the program's start to PID 1.


def _unshare() -> tuple[Kind, ...]:
    """Make the lab's namespaces, a user namespace among them where this user may not do without."""
    try:
        namespace.unshare(*LAB_KINDS)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        namespace.unshare("user", *LAB_KINDS)
        namespace.map_user(uid, gid)
        return ("user", *LAB_KINDS)
    return LAB_KINDS


def _furnish() -> None:
    """Make the lab's mounts: what is written below /run lives and dies with the lab."""
    namespace.mount("none", "/", flags=namespace.MS_REC | namespace.MS_PRIVATE)
    flags = namespace.MS_NOSUID | namespace.MS_NODEV
    # A container may refuse a fresh /proc: then the old one shows the processes of outside, and all goes on.
    with contextlib.suppress(PermissionError):
        namespace.mount("proc", "/proc", "proc", flags | namespace.MS_NOEXEC)
    namespace.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755")
    layout.SHARED.mkdir()


def _explain(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return (
            f"cannot make the lab's namespaces ({error.strerror}): run as root, or allow user namespaces: sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
        )
    return f"cannot make the lab's namespaces: {error.strerror}"


def main(argv: list[str]) -> int:
    """Make the namespaces and become PID 1: NAME NODES BACKEND FAMILIES PLUGINS DOOR LIFELINE, the latter two as
    inherited descriptors.
    """
    name, nodes, overlay = argv[0], int(argv[1]), Overlay.read(*argv[2:5])
    door, lifeline = (socket.socket(fileno=int(word)) for word in argv[5:7])
    for inherited in (door, lifeline):
        inherited.set_inheritable(False)  # a daemon that held them would keep the lab's end from being seen
    try:
        kinds = _unshare()
        pid = os.fork()
        if pid:
            channel.send(lifeline, {"started": True}, [os.pidfd_open(pid)])
            return 0
        os.chdir("/")
        _furnish()
    except OSError as error:
        channel.send(lifeline, {"error": _explain(error)})
        return 1
    Supervisor(name, nodes, overlay, door, lifeline, namespace.here(kinds)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
