"""etcd's leases, which carry the time to live of our keys: a fresh one for every write, as flannel does it.

A renewal puts the key onto a fresh lease instead of keeping the old one alive. So every node learns the new expiry from
an event, a key that another hand wrote is never prolonged unseen, and a flannel that lost sight of a peer (a fault of
some versions) sees it again at the next renewal.

A lease's id is ours to choose. It is random, so that a key which lies on it was written by us, whatever became of the
answer. The lease that a write leaves behind empty is revoked if this process granted it; others end by themselves.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flannel_udp.registry.etcd_client import Refused, Unanswered
from flannel_udp.registry.etcd_shim import grpc, rpc

if TYPE_CHECKING:
    from flannel_udp.registry.etcd_client import EtcdClient

_FRESH: Final = 0.1  # our choice: the part of its life that an unused lease may have spent when it is taken after all
_REVOKE_SECONDS: Final = 1.0  # our choice: a courtesy is not waited for longer


@dataclass(frozen=True)
class Granted:
    """A lease of etcd, and when it ends if nothing renews it (unix time). Id 0: none, for a reservation."""

    id: int
    expiry: float | None
    ttl: float | None = None
    until: float = math.inf
    """On the monotonic clock, until when it counts as fresh."""


class EtcdLeases:
    """Grants leases, knows which key lies on which, and gives back those that are empty."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._spare: Granted | None = None
        self._carriers: dict[bytes, int] = {}

    def grant(self, ttl: float | None, deadline: float) -> Granted:
        """Grant a lease of at least `ttl` seconds: etcd counts whole ones, and has a least number."""
        if ttl is None:
            return Granted(0, None)
        with self._lock:
            spare, self._spare = self._spare, None
        if spare and spare.ttl == ttl and time.monotonic() < spare.until:
            return spare
        now, number = time.time(), secrets.randbits(62) + 1
        fresh_until = time.monotonic() + ttl * _FRESH
        request = rpc.LeaseGrantRequest(TTL=max(1, math.ceil(ttl)), ID=number)
        try:
            seconds = self._client.ask("leasestub", "LeaseGrant", request, deadline).TTL
        except Refused as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION or "already exists" not in error.reason:
                raise
            seconds = request.TTL  # a first try of which no answer came
        return Granted(number, now + seconds, ttl, fresh_until)

    def lost(self, granted: Granted) -> None:
        """Keep a lease that a lost race left unused: the next try comes soon."""
        if granted.id:
            with self._lock:
                self._spare = granted

    def moved(self, key: bytes, granted: Granted | None) -> None:
        """Note that a key lies on this lease now, or is gone (None); revoke the one it lay on, if it was ours."""
        with self._lock:
            before = self._carriers.pop(key, 0)
            if granted and granted.id:
                self._carriers[key] = granted.id
        if before:
            with contextlib.suppress(Refused, Unanswered):  # then it ends by itself
                deadline = time.monotonic() + _REVOKE_SECONDS
                self._client.send("leasestub", "LeaseRevoke", rpc.LeaseRevokeRequest(ID=before), deadline)

    def expiry(self, number: int, deadline: float) -> float:
        """When a lease ends (unix time); now, if it has ended."""
        request = rpc.LeaseTimeToLiveRequest(ID=number)
        try:
            seconds = int(self._client.ask("leasestub", "LeaseTimeToLive", request, deadline).TTL)
        except Refused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            seconds = -1
        return time.time() + max(0, seconds)
