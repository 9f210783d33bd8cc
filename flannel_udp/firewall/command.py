"""Programs of the host's firewall: found, run without a shell, their refusals told in one line."""

import os
import shutil
import subprocess

from flannel_udp.errors import FirewallError

# Our choice, in seconds: iptables waits for its lock for 5 (LOCK in iptables.py), and its rules are many on some hosts.
DEADLINE = 30.0
# These programs live in sbin, which the PATH of a service or of an ordinary user may leave out.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def found(*names: str) -> bool:
    """Whether all these programs are here."""
    return all(shutil.which(name, path=PATH) for name in names)


def run(*argv: str, text: str = "") -> str:
    """Run a program to its end with this on its standard input; what it printed. FirewallError when it refuses."""
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        raise FirewallError(f"{argv[0]} is not installed")
    try:
        # The comments of others' rules may hold any bytes.
        done = subprocess.run([program, *argv[1:]], input=text, capture_output=True, encoding="utf-8",
                              errors="backslashreplace", timeout=DEADLINE, check=False,
                              env={**os.environ, "LC_ALL": "C", "PATH": PATH})
    except subprocess.TimeoutExpired:
        raise FirewallError(f"{' '.join(argv)} did not end within {DEADLINE:.0f} s") from None
    except OSError as error:
        raise FirewallError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("#")]
        raise FirewallError(f"{' '.join(argv)}: {said[0] if said else f'status {done.returncode}'}")
    return done.stdout


def answer(*argv: str) -> str:
    """What a question to a program brings, nothing if it refuses: what is asked for is then not there."""
    try:
        return run(*argv)
    except FirewallError:
        return ""
