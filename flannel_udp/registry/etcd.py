"""The etcd registry, etcd://: flannel's own keys in etcd, beside flannel's own nodes.

    <prefix>/config              the network configuration
    <prefix>/subnets/<key>       one entry per lease; on a lease of etcd, or on none, which makes it a reservation

Every write is a transaction that compares before it writes. If its answer gets lost, the key is read back: either it
shows that the write was done (etcd_leases.py), or it was not, and then the guard makes a second try harmless.

To create compares the whole of subnets/: no key in it may have been modified after the snapshot that was chosen from.
So one transaction guards both families and subnets of any length, without keys of our own that flannel's nodes would
see.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from flannel_udp.errors import Conflict, NoConfig, RegistryUnavailable
from flannel_udp.registry import CALL_TIMEOUT, UNTOLD, Change, Entry, Listing, StoredConfig
from flannel_udp.registry.etcd_client import EtcdClient, Refused, Unanswered
from flannel_udp.registry.etcd_leases import EtcdLeases
from flannel_udp.registry.etcd_shim import grpc, rpc
from flannel_udp.registry.etcd_watch import EtcdWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from flannel_udp.etcd_options import EtcdOptions

    Judge = Callable[[Any], bool]  # whether what stands under a key (None: nothing) is what this write would leave

_ASKED_AT_ONCE: Final = 16  # our choice: calls at a time, where one is needed per lease
_RETRY_PAUSE: Final = 0.1  # our choice: seconds before a write is tried again that was found not to be done


class EtcdRegistry:
    """A Registry (see the protocol) below one prefix of an etcd cluster."""

    def __init__(self, options: EtcdOptions, timeout: float = CALL_TIMEOUT) -> None:
        self._client = EtcdClient(options, timeout)
        self._leases = EtcdLeases(self._client)
        self._watches: set[EtcdWatch] = set()
        self._config = f"{options.prefix}/config".encode()
        self._subnets = f"{options.prefix}/subnets/".encode()
        self._end = self._subnets[:-1] + bytes([self._subnets[-1] + 1])  # the first key after all below subnets/

    def read_config(self) -> StoredConfig:
        """See the protocol."""
        found = self._get(self._config, self._client.deadline())
        if found is None:
            raise NoConfig(f"etcd holds no network configuration yet ({self._config.decode()})")
        return StoredConfig(found.value.decode("utf-8", "replace"), found.mod_revision)

    def write_config(self, text: str, expected: int | None = None) -> int:
        """See the protocol."""
        deadline = self._client.deadline()
        while expected is None:
            found = self._get(self._config, deadline)
            with contextlib.suppress(Conflict):  # whoever is faster is overwritten the next time
                return self._write_config(text.encode(), found.mod_revision if found else 0, deadline)
        return self._write_config(text.encode(), expected, deadline)

    def snapshot(self) -> Listing:
        """See the protocol."""
        request = rpc.RangeRequest(key=self._subnets, range_end=self._end)
        answer = self._client.ask("kvstub", "Range", request, self._client.deadline())
        entries = tuple(Entry(self._name(kv.key), kv.value, kv.mod_revision, _untold(kv)) for kv in answer.kvs)
        return Listing(entries, answer.header.revision)

    def expiry(self, key: str) -> float | None:
        """See the protocol."""
        deadline = self._client.deadline()
        found = self._get(self._key(key), deadline)
        if found is None:
            raise Conflict(f"{key} is gone")
        return self._leases.expiry(found.lease, deadline) if found.lease else None

    def expiries(self, keys: Collection[str]) -> dict[str, float | None]:
        """See the protocol. One range read, and then a call per lease of etcd, many of them at a time."""
        wanted = set(keys)
        request = rpc.RangeRequest(key=self._subnets, range_end=self._end)  # keys_only leaves the lease out in 3.7
        answer = self._client.ask("kvstub", "Range", request, self._client.deadline())
        lies_on = {name: kv.lease for kv in answer.kvs if (name := self._name(kv.key)) in wanted}
        numbers = sorted(set(lies_on.values()) - {0})
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            ends = pool.map(lambda number: self._leases.expiry(number, self._client.deadline()), numbers)
            told: dict[int, float | None] = {0: None, **dict(zip(numbers, ends, strict=True))}
        return {name: told[number] for name, number in lies_on.items()}

    def watch(self, after: int) -> EtcdWatch:
        """See the protocol."""
        if self._client.closed:
            raise RegistryUnavailable("etcd: closed")
        watch = EtcdWatch(self, self._client, after)
        self._watches.add(watch)
        return watch

    def create(self, key: str, value: bytes, ttl: float | None, since: int) -> Entry:
        """See the protocol."""
        guard = rpc.Compare(result=rpc.Compare.LESS, target=rpc.Compare.MOD, key=self._subnets, range_end=self._end,
                            mod_revision=since + 1)
        free = rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.CREATE, key=self._key(key), create_revision=0)
        try:
            return self._put(key, value, ttl, [guard, free], since)
        except Conflict:
            raise Conflict(f"{key} or another key below subnets/ was written since revision {since}") from None

    def update(self, key: str, value: bytes, ttl: float | None, expected: int) -> Entry:
        """See the protocol."""
        return self._put(key, value, ttl, [_compare_revision(self._key(key), expected)], expected)

    def delete(self, key: str, expected: int) -> int:
        """See the protocol. If the answer got lost, the revision may be a later one."""
        full = self._key(key)
        revision = self._commit(
            [_compare_revision(full, expected)],
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=full)),
            full,
            lambda now: now is None,
            self._client.deadline(),
        )
        self._leases.moved(full, None)
        return revision

    def compact(self, revision: int) -> None:
        """See the protocol."""
        deadline = self._client.deadline()
        request = rpc.CompactionRequest(revision=min(revision, self.standing()[1]))
        try:
            self._client.ask("kvstub", "Compact", request, deadline)
        except Refused as error:
            if error.code is not grpc.StatusCode.OUT_OF_RANGE:  # already compacted
                raise

    def close(self) -> None:
        """See the protocol."""
        self._client.close()
        for watch in tuple(self._watches):
            watch.cancel()
            self._watches.discard(watch)

    # What a watch needs too.

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """The range to watch: one order of events for both, with strangers' keys between them."""
        return self._config, self._end

    def changes_of(self, events: Iterable[Any]) -> list[Change]:
        """What a watch's events mean; those of strangers' keys mean nothing."""
        changes = []
        for event in events:
            kv, gone = event.kv, event.type == event.DELETE
            if kv.key == self._config:
                changes.append(Change("config-delete" if gone else "config", kv.mod_revision, value=kv.value))
            elif kv.key.startswith(self._subnets):
                name = self._name(kv.key)
                changes.append(Change("delete", kv.mod_revision, name) if gone else
                               Change("put", kv.mod_revision, name, kv.value, _untold(kv)))
        return changes

    def standing(self) -> tuple[int, int]:
        """The cluster's id and its revision now, as its leader knows them."""
        request = rpc.RangeRequest(key=self._config, count_only=True)
        header = self._client.ask("kvstub", "Range", request, self._client.deadline()).header
        return header.cluster_id, header.revision

    def forget_watch(self, watch: EtcdWatch) -> None:
        """Take a closed watch off the list."""
        self._watches.discard(watch)

    # Keys, reading and writing.

    def _key(self, name: str) -> bytes:
        return self._subnets + name.encode("utf-8", "surrogateescape")

    def _name(self, key: bytes) -> str:
        """The key as a text; what is no UTF-8 comes back as it was when the text is a key again."""
        return key[len(self._subnets):].decode("utf-8", "surrogateescape")

    def _get(self, key: bytes, deadline: float) -> Any:  # noqa: ANN401 - messages of etcd
        answer = self._client.ask("kvstub", "Range", rpc.RangeRequest(key=key), deadline)
        return answer.kvs[0] if answer.kvs else None

    def _write_config(self, value: bytes, expected: int, deadline: float) -> int:
        def is_done(now: Any) -> bool:  # noqa: ANN401
            return now is not None and now.value == value and now.mod_revision > expected

        put = rpc.RequestOp(request_put=rpc.PutRequest(key=self._config, value=value))
        return self._commit([_compare_revision(self._config, expected)], put, self._config, is_done, deadline)

    def _put(self, key: str, value: bytes, ttl: float | None, compare: list[Any], since: int) -> Entry:
        """Write an entry, newer than revision `since`, onto a lease of its own."""
        deadline = self._client.deadline()
        full = self._key(key)
        granted = self._leases.grant(ttl, deadline)

        def is_done(now: Any) -> bool:  # noqa: ANN401
            if now is None or now.mod_revision <= since or now.lease != granted.id:
                return False
            return bool(granted.id) or now.value == value

        put = rpc.RequestOp(request_put=rpc.PutRequest(key=full, value=value, lease=granted.id))
        try:
            revision = self._commit(compare, put, full, is_done, deadline)
        except Conflict:
            self._leases.lost(granted)
            raise
        self._leases.moved(full, granted)
        return Entry(key, value, revision, granted.expiry)

    def _commit(self, compare: list[Any], operation: Any, key: bytes, is_done: Judge, deadline: float) -> int:  # noqa: ANN401
        """Do the operation if everything compares, else Conflict; its revision. A lost answer is read back."""
        look = rpc.RangeRequest(key=key)
        request = rpc.TxnRequest(compare=compare, success=[operation], failure=[rpc.RequestOp(request_range=look)])
        lost = False
        while True:
            try:
                answer = self._client.send("kvstub", "Txn", request, deadline)
                if answer.succeeded:
                    return int(answer.header.revision)
                seen = answer.responses[0].response_range
            except Unanswered:
                lost, answer = True, None
                seen = self._client.ask("kvstub", "Range", look, deadline)
            now = seen.kvs[0] if seen.kvs else None
            if lost and is_done(now):
                return int(now.mod_revision if now is not None else seen.header.revision)
            if answer is not None:
                raise Conflict(f"{key.decode(errors='replace')} " +
                               ("is gone" if now is None else f"has revision {now.mod_revision}, not the expected one"))
            self._client.pause(_RETRY_PAUSE)  # what would be written is not there: the guard makes a second try safe


def _compare_revision(key: bytes, revision: int) -> Any:  # noqa: ANN401
    """That a key was modified last at this revision; 0: that there is none."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=revision)


def _untold(kv: Any) -> float | None:  # noqa: ANN401
    return UNTOLD if kv.lease else None
