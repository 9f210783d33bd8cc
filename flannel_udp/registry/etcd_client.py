"""Calls to etcd: to whichever endpoint answers, logged in, each with a deadline, their errors in our words.

etcd3's client makes the channel and the stubs of one endpoint; here are held one per endpoint, and the one that
answered last is asked first. An endpoint that gives no answer is left for the next, so that one that is down is no
event.

Two kinds of failure, since they mean different things to a writer: Refused (etcd said no, nothing was done) and
Unanswered (the call may have been carried out). ask() is for what may be repeated, and does so until its deadline;
send() tries once.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from flannel_udp import logs
from flannel_udp.errors import RegistryRefused, RegistryUnavailable, UsageError
from flannel_udp.registry.etcd_endpoint import EtcdEndpoint, TlsFiles
from flannel_udp.registry.etcd_shim import grpc, rpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flannel_udp.etcd_options import EtcdOptions

_log = logs.get("etcd")

_PAUSE_MIN: Final = 0.05  # our choice: seconds between rounds over all endpoints, doubled up to the most
_PAUSE_MAX: Final = 0.8  # with 0.5 three endpoints that are down cost 1 % of a core
_LEADER: Final = ("hasleader", "true")  # specification: a member cut off from its leader says so instead of waiting
# What gRPC or etcd answers where the call may have been carried out all the same; everything else is a refusal.
_OPEN: Final = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
})
# etcd's words for a token that is missing, has expired or is older than the last change of users and roles.
_STALE_TOKEN: Final = ("invalid auth token", "user name is empty", "revision of auth store is old")
_NO_AUTH: Final = "authentication is not enabled"
_DENIED: Final = "permission denied"
_NOT_HIM: Final = "authentication failed"


class Refused(RegistryRefused):
    """etcd answered that it will not; nothing was done."""

    def __init__(self, text: str, code: object, reason: str, stale: bool) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.stale = stale
        """Whether a new login may help."""


class Unanswered(RegistryUnavailable):
    """No answer came, from these endpoints for these reasons; what was asked for may have been done."""

    def __init__(self, failures: dict[str, str]) -> None:
        super().__init__("etcd: " + "; ".join(f"{endpoint}: {reason}" for endpoint, reason in failures.items()))
        self.failures = failures


class EtcdClient:
    """One cluster, through all its endpoints. Any thread may call."""

    def __init__(self, options: EtcdOptions, timeout: float) -> None:
        self.timeout = timeout
        self._username, self._password = options.username, options.password
        files = TlsFiles(options.keyfile, options.certfile, options.cafile)
        self._endpoints = [EtcdEndpoint(endpoint, files) for endpoint in options.endpoints]
        if files.given and not any(endpoint.tls for endpoint in self._endpoints):
            _log.warning("no endpoint is https://: the TLS files are not used, etcd is spoken to in plain text")
        self._current = 0
        self._token: str | None = None
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed.is_set()

    def deadline(self) -> float:
        """When a call that begins now must have ended, on the monotonic clock."""
        return time.monotonic() + self.timeout

    def ask(self, stub: str, method: str, request: Any, deadline: float) -> Any:  # noqa: ANN401 - messages of etcd
        """Call what may be done twice, endpoint after endpoint, again and again until the deadline."""
        pause = _PAUSE_MIN
        while True:
            failures: dict[str, str] = {}
            for untried in range(len(self._endpoints), 0, -1):
                try:
                    return self._call(stub, method, request, deadline, untried)
                except Unanswered as error:
                    failures |= error.failures
            if time.monotonic() + pause > deadline:
                raise Unanswered(failures)
            self.pause(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    def send(self, stub: str, method: str, request: Any, deadline: float) -> Any:  # noqa: ANN401
        """Call once, for what must not be repeated unseen."""
        return self._call(stub, method, request, deadline, 2)  # the other half is for finding out what became of it

    def pause(self, seconds: float) -> None:
        """Wait about so long; close() ends it."""
        if self._closed.wait(random.uniform(seconds / 2, seconds)):
            raise RegistryUnavailable("etcd: closed")

    def open_watch(self, requests: Iterator[Any]) -> tuple[Any, EtcdEndpoint]:
        """Open a stream of watch responses at the current endpoint; failed() is to be told of its end."""
        endpoint = self._endpoints[self._current]
        stub = rpc.WatchStub(self._client(endpoint).channel)
        metadata = self._metadata(endpoint, self.timeout)
        try:
            return stub.Watch(requests, metadata=metadata), endpoint
        except ValueError:  # as in _call_once()
            raise self._shut(endpoint) from None

    def failed(self, endpoint: EtcdEndpoint, error: grpc.RpcError) -> RegistryUnavailable:
        """Take note of a failed call: what it means to the caller. The next one goes elsewhere if that may help."""
        if self.closed:
            return RegistryUnavailable("etcd: closed")
        code, reason = error.code(), (error.details() or "").removeprefix("etcdserver: ")
        if code not in _OPEN:
            return self.refused(reason, code)
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)
        if code is grpc.StatusCode.UNAVAILABLE:
            reason = endpoint.diagnose(reason)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            reason = "no answer in time"
        _log.debug("endpoint failed", endpoint=endpoint.url, reason=reason)
        return Unanswered({endpoint.url: reason})

    def refused(self, reason: str, code: object = None) -> Refused:
        """Say what a refusal means; a stale token is forgotten, so that the next call logs in again."""
        stale = any(words in reason for words in _STALE_TOKEN)
        if stale:
            self._token = None
        hint = ""
        if stale and not self._username:
            hint = " (it wants a user: --etcd-username and --etcd-password)"
        elif self._username and any(words in reason for words in (_DENIED, _NOT_HIM)):
            hint = f" (user {self._username!r} of --etcd-username, --etcd-password)"
        return Refused(f"etcd refuses: {reason}{hint}", code, reason, stale)

    def close(self) -> None:
        """End all calls, now and ever after."""
        self._closed.set()
        for endpoint in self._endpoints:
            endpoint.close()

    def _call(self, stub: str, method: str, request: Any, deadline: float, untried: int) -> Any:  # noqa: ANN401
        """Call the current endpoint with its share of the time that is left; once more after a new login."""
        try:
            return self._call_once(stub, method, request, deadline, untried)
        except Refused as error:
            if not self._username or not error.stale:
                raise
        return self._call_once(stub, method, request, deadline, untried)

    def _call_once(self, stub: str, method: str, request: Any, deadline: float, untried: int) -> Any:  # noqa: ANN401
        endpoint = self._endpoints[self._current]
        seconds = max(0.01, deadline - time.monotonic()) / untried
        call = getattr(getattr(self._client(endpoint), stub), method)
        metadata = self._metadata(endpoint, seconds)
        try:
            return call(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise self.failed(endpoint, error) from None
        except ValueError:  # gRPC's word for a channel that another thread closed
            raise self._shut(endpoint) from None

    def _client(self, endpoint: EtcdEndpoint) -> Any:  # noqa: ANN401 - etcd3 has no types
        if self.closed:
            raise RegistryUnavailable("etcd: closed")
        try:
            return endpoint.client()
        except UsageError as error:  # the TLS files are just being renewed; at the start they were read before
            raise Unanswered({endpoint.url: str(error)}) from None
        except OSError as error:
            raise Unanswered({endpoint.url: f"{error.filename}: {error.strerror}"}) from None

    def _shut(self, endpoint: EtcdEndpoint) -> RegistryUnavailable:
        return RegistryUnavailable("etcd: closed") if self.closed else Unanswered({endpoint.url: "connection closed"})

    def _metadata(self, endpoint: EtcdEndpoint, seconds: float) -> tuple[tuple[str, str], ...]:
        """What every call carries; logs in first where there is a user and no token."""
        token = self._token
        if token is None and self._username:
            token = self._token = self._login(endpoint, seconds)
        return (_LEADER, ("token", token)) if token else (_LEADER,)

    def _login(self, endpoint: EtcdEndpoint, seconds: float) -> str:
        request = rpc.AuthenticateRequest(name=self._username, password=self._password)
        try:
            stub = rpc.AuthStub(self._client(endpoint).channel)
            return str(stub.Authenticate(request, timeout=seconds, metadata=(_LEADER,)).token)
        except grpc.RpcError as error:
            if _NO_AUTH in (error.details() or ""):
                return ""  # a cluster that asks nobody who he is takes the same options
            raise self.failed(endpoint, error) from None
        except ValueError:
            raise self._shut(endpoint) from None
