"""The steering program of a TUN with several queues: it chooses the queue of each packet, the same for all of a flow.

Left alone, the kernel sends a flow where its answers were written last, and so moves flows between queues, whose loops
then reorder them. A small program (eBPF, RFC 9669), given to the device before it is up, replaces that:

    TCP, not in fragments   addresses and ports
    all else of IP          addresses alone: a UDP flow of small and of large datagrams has fragments among whole ones,
                            and only what every packet has may count, or they would overtake each other
    what is no IP           the first queue
"""

import ctypes
import errno
import os
import platform
import struct
from fcntl import ioctl

from flannel_udp.errors import TunError

TUNSETSTEERINGEBPF = 0x800454E0  # linux/if_tun.h, since Linux 4.16
# Specification, from here on: linux/bpf.h, and bpf(2)'s number, which is each architecture's own.
BPF_PROG_LOAD, BPF_PROG_TYPE_SOCKET_FILTER = 5, 1
BPF_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
CONTEXT, HASH, FACTOR, HEADER = 6, 7, 8, 9  # registers that a load from the packet leaves alone; it wants CONTEXT in 6
# Our choice: Fibonacci hashing; the product's upper half depends on all that went in.
GOLDEN = 0x9E3779B97F4A7C15

TCP = 6


def steer(queue: int) -> None:
    """Give the program to the TUN device of this descriptor, whose queues all follow it from then on, later ones too.

    TunError says why the kernel refused and what would help.
    """
    program = load(PROGRAM)
    try:
        ioctl(queue, TUNSETSTEERINGEBPF, struct.pack("i", program))
    except OSError as error:
        raise TunError(f"the TUN takes no steering program ({error.strerror}), which needs Linux 4.16") from error
    finally:
        os.close(program)  # the device holds it


def load(program: bytes) -> int:
    """Have the kernel check and compile a program; its descriptor. TunError says why not."""
    number = BPF_NUMBERS.get(platform.machine())
    if number is None:
        raise TunError(f"the number of bpf(2) on {platform.machine()} is not known here")
    instructions, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"Apache-2.0")
    request = struct.pack(
        "=IIQQIIQII16s", BPF_PROG_TYPE_SOCKET_FILTER, len(program) // 8, ctypes.addressof(instructions),
        ctypes.addressof(licence), 0, 0, 0, 0, 0, b"flow_to_queue")
    system = ctypes.CDLL(None, use_errno=True)
    descriptor: int = system.syscall(ctypes.c_long(number), ctypes.c_int(BPF_PROG_LOAD), request,
                                     ctypes.c_uint(len(request)))
    if descriptor < 0:
        raise TunError(_refusal(ctypes.get_errno()))
    return descriptor


def _refusal(number: int) -> str:
    said = f"the kernel does not take the steering program ({os.strerror(number)})"
    if number in (errno.EPERM, errno.EACCES):
        return (f"{said}: run as the host's root, or give the container the capability (--cap-add BPF, before Linux "
                "5.8 SYS_ADMIN)")
    if number == errno.ENOSYS:
        return f"{said}: it is built without bpf"
    return said


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, source << 4 | target, offset, value)


def _byte(offset: int) -> bytes:
    """Load from the packet, as the next two do: into R0, in host order; beyond its end the program returns 0."""
    return _instruction(0x30, value=offset)


def _half(offset: int) -> bytes:
    return _instruction(0x28, value=offset)


def _word(offset: int, base: int | None = None) -> bytes:
    return _instruction(0x20, value=offset) if base is None else _instruction(0x40, source=base, value=offset)


def _mix(load: bytes) -> bytes:
    """HASH = (HASH ^ what is loaded) * FACTOR."""
    return load + _instruction(0xAF, HASH) + _instruction(0x2F, HASH, FACTOR)


def _only_if(load: bytes, value: int) -> bytes:
    """Return here unless what is loaded is `value`."""
    return load + _instruction(0x15, offset=len(RETURN) // 8, value=value) + RETURN


def _and(value: int) -> bytes:
    return _instruction(0x57, value=value)


# The kernel takes it modulo the number of queues.
RETURN = _instruction(0xBF, 0, HASH) + _instruction(0x77, value=32) + _instruction(0x95)

START = (
    _instruction(0xBF, CONTEXT, 1)
    + _instruction(0xB7, HASH)
    + _instruction(0x18, FACTOR, value=GOLDEN & 0xFFFF_FFFF) + _instruction(0, value=GOLDEN >> 32)
)  # fmt: skip

# Offsets are those of RFC 791 (3.1) and RFC 8200 (3); a packet of a TUN begins with its IP header.
IPV4 = (
    _mix(_word(12)) + _mix(_word(16))
    + _only_if(_half(6) + _and(0x3FFF), 0)  # neither more fragments nor an offset
    + _only_if(_byte(9), TCP)
    + _byte(0) + _and(0x0F) + _instruction(0x67, value=2) + _instruction(0xBF, HEADER)  # HEADER = 4 * IHL
    + _mix(_word(0, HEADER)) + RETURN
)  # fmt: skip

IPV6 = (
    b"".join(_mix(_word(offset)) for offset in range(8, 40, 4))
    + _only_if(_byte(6), TCP)  # fragments have a header of their own, and its number here
    + _mix(_word(40)) + RETURN
)  # fmt: skip

VERSION = _byte(0) + _instruction(0x77, value=4)
PROGRAM = START + VERSION + _instruction(0x55, offset=len(IPV4) // 8, value=4) + IPV4 + _only_if(VERSION, 6) + IPV6
