"""One endpoint of etcd: its gRPC channel, its TLS files, and why it does not serve when it does not.

gRPC says of most failed connections that they failed. diagnose() finds out more by connecting once itself, with
Python's own sockets and TLS, whose errors have names.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flannel_udp.errors import UsageError
from flannel_udp.registry.etcd_shim import etcd3

if TYPE_CHECKING:
    from flannel_udp.etcd_options import Endpoint

# Our choices: a peer that froze or was cut off is noticed within 8 s while a call is open, which a watch always is.
# etcd takes pings no more often than every 5 s. Without the HTTP/2 timeout the keep-alive's own is never looked at.
_KEEPALIVE_MS: Final = 5_500
_KEEPALIVE_TIMEOUT_MS: Final = 2_000
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),  # etcd hangs up on who pings without a call
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in truth how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),  # per endpoint; with 500 three that are down cost 0.9 % of a core
    ("grpc.enable_http_proxy", 0),  # http_proxy of the environment is not for the cluster's own store
    ("grpc.max_receive_message_length", 256 << 20),  # all leases come in one message; gRPC's own limit is 4 MiB
    ("grpc.use_local_subchannel_pool", 1),
)
_PROBE_SECONDS: Final = 0.5
_SYSTEM_CAS: Final = (  # where distributions keep them; the first is Debian's
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# specification: with which HTTP/2 begins (RFC 9113, 3.4), and an empty SETTINGS frame
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class TlsFiles:
    """Key, certificate and authorities towards https endpoints; looked at once here, so that a slip is told at once."""

    def __init__(self, keyfile: Path | None, certfile: Path | None, cafile: Path | None) -> None:
        self.given = bool(keyfile or certfile or cafile)
        self.keyfile, self.certfile, self._cafile = keyfile, certfile, cafile
        if self.given:
            self.context()

    @property
    def cafile(self) -> Path:
        """The file of authorities: the given one, or the system's."""
        if self._cafile:
            return self._cafile
        for name in (ssl.get_default_verify_paths().cafile, *_SYSTEM_CAS):
            if name and Path(name).is_file():
                return Path(name)
        raise UsageError("this system has no certificate authorities (Debian: ca-certificates): name some by "
                         "--etcd-cafile")

    def context(self) -> ssl.SSLContext:
        """Read the files; UsageError says which of them is of no use."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        _load("cafile", self.cafile, "certificates in PEM form", lambda: context.load_verify_locations(self.cafile))
        if self.certfile and self.keyfile:
            certfile, keyfile = self.certfile, self.keyfile
            for name, path in (("certfile", certfile), ("keyfile", keyfile)):
                _load(name, path, "", path.read_bytes)
            _load("keyfile", keyfile, f"the unencrypted key of the certificate {certfile}, both in PEM form",
                  lambda: context.load_cert_chain(certfile, keyfile, password=""))
        return context

    def state(self) -> tuple[float, ...]:
        """Changes whenever a file does."""
        paths = (self.cafile, self.certfile, self.keyfile)
        return tuple(path.stat().st_mtime for path in paths if path and path.exists())


class EtcdEndpoint:
    """One member of the cluster, connected when it is first needed."""

    def __init__(self, endpoint: Endpoint, files: TlsFiles) -> None:
        self.tls = files.given if endpoint.tls is None else endpoint.tls
        self._host, self._port = endpoint.host, endpoint.port
        self.url = f"{'https' if self.tls else 'http'}://{self._host}:{self._port}"
        self._files = files
        if self.tls:
            files.context()
        self._lock = threading.Lock()
        self._client: Any = None
        self._state: tuple[float, ...] = ()

    def client(self) -> Any:  # noqa: ANN401 - etcd3 has no types
        """etcd3's client: a channel and its stubs."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def diagnose(self, reason: str) -> str:
        """Say why a connection failed, better than gRPC's `reason` if a try of our own fails too."""
        self._renew_files()
        try:
            found = self._greet_tls() if self.tls else self._greet_plain()
        except socket.gaierror as error:
            found = f"the name cannot be resolved: {error.strerror}"
        except UnicodeError:
            found = "the name cannot be resolved: it is no host name"
        except TimeoutError:
            found = "no answer in time"
        except OSError as error:
            found = (error.strerror or str(error)).lower()
        except UsageError as error:
            found = str(error)
        # gRPC: "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:2379: what we want"
        return found or re.sub(r".*; last error: \w+: \w+:\S+: ", "", reason)

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connect(self) -> Any:  # noqa: ANN401
        if not self.tls:
            return etcd3.client(self._host, self._port, grpc_options=_OPTIONS)
        self._state = self._files.state()
        key, certificate = self._files.keyfile, self._files.certfile
        return etcd3.client(self._host, self._port, ca_cert=str(self._files.cafile), cert_key=key and str(key),
                            cert_cert=certificate and str(certificate), grpc_options=_OPTIONS)

    def _renew_files(self) -> None:
        """Begin anew if the files are others than before: certificates are renewed while daemons run."""
        if self.tls and self._state and self._files.state() != self._state:
            self.close()

    def _dial(self) -> socket.socket:
        return socket.create_connection((self._host.strip("[]"), self._port), _PROBE_SECONDS)

    def _greet_plain(self) -> str:
        with self._dial() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(_PREFACE)
            if connection.recv(1):
                return ""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it or believed
        with self._dial() as connection, contextlib.suppress(OSError), context.wrap_socket(connection):
            return "speaks TLS: an https:// endpoint"
        return "hangs up"

    def _greet_tls(self) -> str:
        try:
            with self._dial() as connection, self._files.context().wrap_socket(
                connection, server_hostname=self._host.strip("[]")
            ) as tls:
                tls.sendall(_PREFACE)
                tls.recv(1)  # with TLS 1.3 a client's certificate is refused only now
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is refused: {error.verify_message} (--etcd-cafile {self._files.cafile})"
        except ssl.SSLError as error:
            if error.reason in {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING"}:
                return "speaks no TLS: an http:// endpoint"
            if re.search("ALERT_(.*CERTIFICATE|UNKNOWN_CA)", error.reason or ""):
                return "wants a certificate of this node, and this one will not do: --etcd-certfile and --etcd-keyfile"
            return f"TLS fails: {error.reason or error}"
        return ""


def _load(flag: str, path: Path, expected: str, read: Any) -> None:  # noqa: ANN401 - whatever it returns
    """Read a file; UsageError names the flag, the file and the fault."""
    try:
        read()
    except ssl.SSLError:
        raise UsageError(f"--etcd-{flag} {path}: expected {expected}") from None
    except OSError as error:
        raise UsageError(f"--etcd-{flag} {path}: {error.strerror}") from None
