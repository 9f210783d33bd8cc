"""A test in the kernel's place: it answers system calls of one thread, where the kernel cannot be made to say a thing.

A seccomp filter of the thread's own hands the chosen calls to a listener (seccomp_unotify(2)). What answers sees their
arguments, which are addresses in this very process: it lets the kernel do as it would, says an errno, or does the call
itself, in part or with another result. The filter ends with the thread.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from ..conftest import DEADLINE, require

Answer: TypeAlias = Callable[..., int | None]
"""Gets the call's six arguments; None: the kernel answers, else what the call returns, below 0 an errno."""

# Specification: linux/audit.h, asm/unistd_64.h and asm-generic/unistd.h.
ARCHITECTURES = {
    "x86_64": (317, {"sendmsg": 46, "sendmmsg": 307, "recvmsg": 47, "recvmmsg": 299, "read": 0,
                      "writev": 20}),
    "aarch64": (277, {"sendmsg": 211, "sendmmsg": 269, "recvmsg": 212, "recvmmsg": 243, "read": 63,
                       "writev": 66}),
}
# Specification: linux/seccomp.h, linux/prctl.h, linux/bpf_common.h.
SET_MODE_FILTER, NEW_LISTENER, PR_SET_NO_NEW_PRIVS = 1, 1 << 3, 38
NOTIF_RECV, NOTIF_SEND, CONTINUE = 0xC050_2100, 0xC018_2101, 1
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, USER_NOTIF = 0x7FFF_0000, 0x7FC0_0000

LIBC = ctypes.CDLL(None, use_errno=True)


def require_answers() -> None:
    """Require a kernel whose seccomp can ask."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    require(platform.machine() in ARCHITECTURES and actions.exists() and "user_notif" in actions.read_text(),
            "needs seccomp's user_notif (Linux 5.5), on x86_64 or aarch64")


def kernel(name: str, *arguments: int) -> int:
    """Do a system call from this thread; below 0: -errno."""
    number = ARCHITECTURES[platform.machine()][1][name]
    done = int(LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)))
    return done if done >= 0 else -ctypes.get_errno()


class Answers:
    """Answers(sendmsg=..., recvmsg=...): who answers which call of a thread that calls install().

    The thread that answers is this object's own, since one that the asking thread began would inherit the filter.
    """

    def __init__(self, **answers: Answer) -> None:
        require_answers()
        self.seccomp, numbers = ARCHITECTURES[platform.machine()]
        self.answers = {numbers[name]: answer for name, answer in answers.items()}
        self.faults: list[Exception] = []
        self.listeners: SimpleQueue[int] = SimpleQueue()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def install(self) -> None:
        """Answer the calling thread from here on; cannot be undone."""
        instructions = [(LOAD, 0, 0, 0)]
        instructions += [(JUMP_EQUAL, len(self.answers) - i, 0, number) for i, number in enumerate(self.answers)]
        instructions += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, USER_NOTIF)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
        described = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(program)))
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        listener = int(LIBC.syscall(self.seccomp, SET_MODE_FILTER, NEW_LISTENER, described))
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp")
        self.listeners.put(listener)

    def serve(self) -> None:
        """Answer one thread after the other, each until it has ended."""
        while (listener := self.listeners.get()) >= 0:
            asked = select.poll()
            asked.register(listener, select.POLLIN)
            while not asked.poll()[0][1] & select.POLLHUP:
                self.answer(listener)
            os.close(listener)

    def answer(self, listener: int) -> None:
        question = bytearray(80)
        fcntl.ioctl(listener, NOTIF_RECV, question)
        identity, _, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", question)
        try:
            said = self.answers[number](*arguments)
        except Exception as fault:  # the thread that asks must go on; close() raises it
            self.faults.append(fault)
            said = None
        reply = (0, 0, CONTINUE) if said is None else (max(said, 0), min(said, 0), 0)
        fcntl.ioctl(listener, NOTIF_SEND, struct.pack("=QqiI", identity, *reply))

    def close(self) -> None:
        """After the thread that asked has ended: raise what went wrong in an answer."""
        self.listeners.put(-1)
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        if self.faults:
            raise self.faults[0]


class Message:
    """A msghdr of this process, by address; an mmsghdr begins with one."""

    SIZE, MMSG_SIZE = 56, 64

    def __init__(self, address: int) -> None:
        self.address = address

    @property
    def pieces(self) -> int:
        """How many iovecs it has."""
        return ctypes.c_size_t.from_address(self.address + 24).value

    @property
    def has_control(self) -> bool:
        return ctypes.c_size_t.from_address(self.address + 40).value > 0

    def set_gro_size(self, size: int) -> None:
        """Say another size in the one control message, whose head has 16 bytes."""
        control = ctypes.c_void_p.from_address(self.address + 32).value or 0
        ctypes.c_int.from_address(control + 16).value = size

    def add_flags(self, flags: int) -> None:
        """Say more of it in msg_flags."""
        ctypes.c_int.from_address(self.address + 48).value |= flags


class Sends:
    """The kernel's answers to a loop that sends: an errno for `runs` by message, for `singles` by datagram.

    A datagram's number counts what sendmmsg was asked to send and did; what is refused with EAGAIN is asked again.
    `others` is for whatever else is sent: what may be fragmented, when single datagrams do not fit.
    """

    def __init__(self, runs: dict[int, int] | None = None, singles: dict[int, list[int]] | None = None,
                 others: dict[int, int] | None = None) -> None:
        self.runs, self.singles, self.others = runs or {}, singles or {}, others or {}
        self.pieces: list[int] = []
        """Of each message of a run: how many pieces."""
        self.passed = 0
        self.fragmented = 0

    def answers(self) -> Answers:
        return Answers(sendmsg=self.sendmsg, sendmmsg=self.sendmmsg)

    def sendmsg(self, _: int, address: int, *__: int) -> int | None:
        message = Message(address)
        if message.has_control:
            self.pieces.append(message.pieces)
            return self.said(self.runs, len(self.pieces) - 1)
        self.fragmented += 1
        return self.said(self.others, self.fragmented - 1)

    def sendmmsg(self, fd: int, vector: int, count: int, flags: int, *_: int) -> int:
        """Send up to the first datagram that is to be refused, as the kernel does: it tells the refusal next time."""
        refusals = self.singles.get(self.passed)
        if refusals:
            error = refusals.pop(0)
            self.passed += error != errno.EAGAIN
            return -error
        until = min((number for number, left in self.singles.items() if number > self.passed and left),
                    default=self.passed + count)
        sent = kernel("sendmmsg", fd, vector, min(count, until - self.passed), flags)
        self.passed += max(sent, 0)
        return sent

    @staticmethod
    def said(refusals: dict[int, int], number: int) -> int | None:
        return -refusals[number] if number in refusals else None
