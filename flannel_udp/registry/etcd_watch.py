"""A watch of etcd that outlives its connections: one stream after another, each resumed where the last one ended.

A thread of its own reads the stream, since gRPC has no reading with a timeout. When the stream breaks it goes to the
next endpoint, with back-off, and says so to wait() only after some time without one.

Where to resume: after the last event that came; or after the revision of a progress notification, which etcd sends
while nothing happens, so that an idle watch is not overtaken by compaction. Not after the revision in the header of a
response with events: with a backlog that is the revision etcd stands at, far ahead of the events in it.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from flannel_udp import logs
from flannel_udp.errors import Compacted, RegistryUnavailable
from flannel_udp.registry.etcd_shim import grpc, rpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flannel_udp.registry import Change
    from flannel_udp.registry.etcd import EtcdRegistry
    from flannel_udp.registry.etcd_client import EtcdClient

_log = logs.get("etcd")

_BACKOFF_MIN: Final = 0.1  # our choice: seconds; a change is to be told within 2 s of a server's return
_BACKOFF_MAX: Final = 1.0
_SILENCE: Final = 1.5  # our choice: seconds without a stream before it is told; a cluster elects a leader in less
_CLOSE_SECONDS: Final = 5.0


class EtcdWatch:
    """A Watch (see the protocol) over the registry's keys."""

    def __init__(self, registry: EtcdRegistry, client: EtcdClient, after: int) -> None:
        self._registry = registry
        self._client = client
        self._next = after + 1
        self._cluster = 0
        self._stop = threading.Event()
        self._call: Any = None
        self._call_lock = threading.Lock()
        self._silent_since: float | None = time.monotonic()
        self._delay = _BACKOFF_MIN
        # Guarded by the condition: what wait() is to tell.
        self._news = threading.Condition()
        self._changes: list[Change] = []
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="etcd-watch", daemon=True)
        self._thread.start()

    def wait(self, timeout: float) -> tuple[Change, ...]:
        """See the protocol."""
        with self._news:
            self._news.wait_for(lambda: self._changes or self._problem or self._stop.is_set(), timeout)
            if self._client.closed:
                raise RegistryUnavailable("etcd: closed")
            if self._stop.is_set():
                return ()
            changes, self._changes = tuple(self._changes), []
            if not changes and self._problem is not None:
                problem = self._problem
                if isinstance(problem, RegistryUnavailable):
                    self._problem = None  # it goes on trying
                raise problem
            return changes

    def cancel(self) -> None:
        """See the protocol."""
        with self._news:
            self._stop.set()
            self._news.notify_all()
        with self._call_lock:
            if self._call is not None:
                self._call.cancel()

    def close(self) -> None:
        """See the protocol."""
        self.cancel()
        self._registry.forget_watch(self)
        self._thread.join(_CLOSE_SECONDS)

    # The thread.

    def _follow(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._stream()
                except RegistryUnavailable as error:
                    self._broke(error)
                self._stop.wait(random.uniform(self._delay / 2, self._delay))
                self._delay = min(2 * self._delay, _BACKOFF_MAX)
        except Exception as error:  # Compacted, or whatever else it is: wait() raises it in the reader's thread
            self._tell(problem=error)

    def _stream(self) -> None:
        """Read one stream to its end, which is always an error."""
        requests = _Requests(self._registry.keys, self._next)
        call, endpoint = self._client.open_watch(requests)
        try:
            with self._call_lock:
                self._call = call
            if self._stop.is_set():
                return
            for response in call:
                self._take(response)
            raise RegistryUnavailable(f"etcd: {endpoint.url}: ended the watch")
        except grpc.RpcError as error:
            if not self._stop.is_set():
                raise self._client.failed(endpoint, error) from None
        finally:
            requests.end()
            call.cancel()

    def _take(self, response: Any) -> None:  # noqa: ANN401 - messages of etcd
        if response.compact_revision:
            raise Compacted(f"changes from revision {self._next} on are no longer kept (etcd compacted up to "
                            f"{response.compact_revision})")
        if response.canceled:  # not an error of the call: permission denied and a stale token come this way
            reason = response.cancel_reason.rpartition("etcdserver: ")[2]
            raise self._client.refused(reason or "the watch was cancelled")
        if response.created:
            self._check(response.header)
            self._silent_since, self._delay = None, _BACKOFF_MIN
            with self._news:
                self._problem = None  # an outage that nobody has heard of yet is over
        elif response.events:
            self._tell(self._registry.changes_of(response.events))
            self._next = response.events[-1].kv.mod_revision + 1
        else:
            self._next = response.header.revision + 1

    def _check(self, header: Any) -> None:  # noqa: ANN401
        """See that this is the store that was watched before: revisions of another one say nothing."""
        cluster, revision = header.cluster_id, header.revision
        if revision < self._next - 1:  # of a member that lags, or of a store made anew
            cluster, revision = self._registry.standing()
        if revision < self._next - 1 or self._cluster not in (0, cluster):
            raise Compacted(f"another etcd than before: at revision {revision}, not {self._next - 1} or later")
        self._cluster = cluster

    def _broke(self, error: RegistryUnavailable) -> None:
        """Note an end of the stream; tell it when there has been none for too long."""
        now = time.monotonic()
        if self._silent_since is None:
            _log.debug("watch broke, resuming", revision=self._next, reason=error)
            self._silent_since = now
        if now - self._silent_since >= _SILENCE:
            self._silent_since = now
            self._tell(problem=error)

    def _tell(self, changes: Iterable[Change] = (), problem: Exception | None = None) -> None:
        with self._news:
            self._changes += changes
            self._problem = problem or self._problem
            self._news.notify_all()


class _Requests:
    """What the client says on a watch's stream: one request, then nothing until the end.

    It stays open meanwhile, since a proxy of etcd may end the watch of a client that has finished speaking.
    """

    def __init__(self, keys: tuple[bytes, bytes], start: int) -> None:
        create = rpc.WatchCreateRequest(key=keys[0], range_end=keys[1], start_revision=start, progress_notify=True)
        self._first: Any = rpc.WatchRequest(create_request=create)
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:  # noqa: ANN401
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self._ended.wait()
        raise StopIteration

    def end(self) -> None:
        """Let gRPC's thread go that waits for more."""
        self._ended.set()
