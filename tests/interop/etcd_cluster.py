"""Real etcd servers for tests: one member or several, plain or with TLS, to be killed, frozen and started again.

Each member has an address of its own in 127.0.0.0/8, so that the ports are etcd's usual ones and free. The
servers die with the thread that started them, whatever becomes of it (setpriv --pdeathsig).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.registry.etcd import EtcdRegistry
from tests.conftest import require, require_commands, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import trustme

VERSIONS = ("debian", "3.7")
_BUILD = Path(__file__).parent / "peers" / "build"
_CACHED = _BUILD.parents[3] / ".cache" / "peers" / "bin" / "etcd"
# A fast election, so that little time passes without a leader, and a least time to live of one second.
_PACE = ("--heartbeat-interval", "50", "--election-timeout", "500")


def program(version: str) -> str:
    """The server: Debian's (3.4 in Debian 12), or 3.7, which tests/interop/peers/build builds."""
    require_commands("setpriv")
    if version == "debian":
        found = shutil.which("etcd")
        require(found, "needs Debian's etcd-server")
        assert found
        return found
    require(_CACHED.exists() or shutil.which("go"), "needs go (1.26) to build etcd 3.7, see tests/interop/peers/build")
    done = subprocess.run([_BUILD, "etcd"], stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return done.stdout.strip()


@dataclass
class Member:
    """One server."""

    words: list[str]
    address: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *self.words, *more], stdout=log,
                                            stderr=log, stdin=subprocess.DEVNULL, cwd=self.log.parent)

    def kill(self) -> None:
        """End it at once, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop it; it does nothing any more when this returns."""
        tasks = Path(f"/proc/{self.pid}/task")
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
                               for task in tasks.iterdir()), "all its threads stand still")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid


class Cluster:
    """Servers that form one store."""

    def __init__(
        self, version: str, addresses: Sequence[str], folder: Path, authority: trustme.CA | None, more: Sequence[str]
    ) -> None:
        self.folder = folder
        self.tls = authority is not None
        if authority:
            write_certificates(folder, authority, *addresses)
        scheme = "https" if authority else "http"
        server = program(version)
        everyone = ",".join(f"m{number}=http://{address}:2380" for number, address in enumerate(addresses))
        self.members = []
        for number, address in enumerate(addresses):
            data = folder / f"m{number}"
            words = [server, "--name", f"m{number}", "--data-dir", str(data), "--logger", "zap",
                     "--log-outputs", "stderr", "--log-level", "warn",
                     "--listen-client-urls", f"{scheme}://{address}:2379",
                     "--advertise-client-urls", f"{scheme}://{address}:2379",
                     "--listen-peer-urls", f"http://{address}:2380",
                     "--initial-advertise-peer-urls", f"http://{address}:2380",
                     "--initial-cluster", everyone, *_PACE, *more]
            if version != "debian":
                words.append("--unsafe-no-fsync")  # no test cuts the power
            if authority:
                words += ["--cert-file", f"{folder}/server.crt", "--key-file", f"{folder}/server.key"]
            if "--client-cert-auth" in more:
                words += ["--trusted-ca-file", f"{folder}/ca.pem"]
            self.members.append(Member(words, address, folder / f"m{number}.log"))

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(member.address, 2379, self.tls) for member in self.members)

    def options(self, **more: object) -> EtcdOptions:
        """How to reach it, below a prefix of its own unless told."""
        cafile = self.folder / "ca.pem" if self.tls else None
        return EtcdOptions(**{"endpoints": self.endpoints, "prefix": fresh_prefix(), "cafile": cafile, **more})  # type: ignore[arg-type]

    def start(self) -> None:
        for member in self.members:
            member.start()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until it answers; its log if it does not."""
        for member in self.members:
            wait_until(lambda member=member: _listens(member.address), f"{member.log.read_text()[-2000:]}")  # type: ignore[misc]
        client = {"keyfile": self.folder / "client.key", "certfile": self.folder / "client.crt"} if self.tls else {}
        registry = EtcdRegistry(self.options(**client), timeout=30)
        try:
            registry.snapshot()
        finally:
            registry.close()

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    # etcd's own HTTP gateway: another way to the same store, which shares nothing with what is tested.

    def call(self, method: str, **request: object) -> dict[str, Any]:
        """Call it with JSON, bytes as base64: call("kv/range", key=b64(b"x"))."""
        return self.call_at(self.members[0], method, request)

    def call_at(self, member: Member, method: str, request: dict[str, Any], token: str = "") -> dict[str, Any]:
        """Call one member, as the user who was given the token."""
        body = json.dumps(request).encode()
        url, headers = f"http://{member.address}:2379/v3/{method}", {"Authorization": token} if token else {}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            decoded: dict[str, Any] = json.loads(answer.read())
            return decoded

    def put(self, key: str | bytes, value: bytes) -> int:
        """Put a key as a stranger would; its revision."""
        return int(self.call("kv/put", key=b64(key), value=b64(value))["header"]["revision"])

    def stored(self, prefix: str) -> dict[str, dict[str, Any]]:
        """All keys that begin with this, with value, lease, version and revisions."""
        begin = prefix.encode()
        found = self.call("kv/range", key=b64(begin), range_end=b64(begin[:-1] + bytes([begin[-1] + 1])))
        return {base64.b64decode(kv["key"]).decode("utf-8", "surrogateescape"): {
                    "value": base64.b64decode(kv.get("value", "")),
                    **{name: int(kv.get(name, 0)) for name in ("lease", "version", "mod_revision", "create_revision")},
                } for kv in found.get("kvs", [])}

    def leases(self) -> set[int]:
        """The ids of all leases of etcd that live."""
        return {int(lease["ID"]) for lease in self.call("lease/leases").get("leases", [])}


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _listens(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, 2379), 1):
        return True
    return False


def fresh_prefix() -> str:
    """A prefix that no other test uses."""
    return f"/test-{os.getpid()}-{random.randrange(1 << 40):x}/network"


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """A folder in memory where that can be had: Debian's etcd has no way to spare fsync()."""
    shared = Path("/dev/shm")
    place = str(shared) if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="flannel-udp-etcd-", dir=place) as folder:
        yield Path(folder)


@contextlib.contextmanager
def cluster(version: str, size: int = 1, *more: str, authority: trustme.CA | None = None) -> Iterator[Cluster]:
    """A running cluster, with `more` flags, and with TLS if there is an `authority` for its certificates."""
    network = f"127.{random.randrange(1, 250)}.{random.randrange(250)}"
    addresses = [f"{network}.{number + 1}" for number in range(size)]
    with memory() as folder:
        made = Cluster(version, addresses, folder, authority, more)
        try:
            made.start()
            yield made
        finally:
            made.kill()


def write_certificates(folder: Path, authority: trustme.CA, *names: str) -> None:
    """Write ca.pem, and a server's and a client's key and certificate for these names."""
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for who, issued in (("server", authority.issue_cert(*names)), ("client", authority.issue_cert("client"))):
        issued.private_key_pem.write_to_path(str(folder / f"{who}.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{who}.crt"))
