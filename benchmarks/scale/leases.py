"""Many nodes' leases in etcd, written by a client that shares nothing with the registry under test but etcd's messages.

Node number n leases 10.x.y.0/24, the subnets counted from 10.0.0.0/24 on, with an etcd lease of its own as flannel's
nodes have it. Its public address is of 198.18.0.0/15, and is another after each change.
"""

import itertools
import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.registry.etcd_shim import grpc, rpc

OVERLAY = IPv4Network("10.0.0.0/8")
SUBNET_LENGTH = 24
PEERS = IPv4Network("198.18.0.0/15")  # RFC 2544: for benchmarks
PORT = 8285
CONFIG = f'{{"Network":"{OVERLAY}","SubnetLen":{SUBNET_LENGTH},"Backend":{{"Type":"udp","Port":{PORT}}}}}'
MOST = 50_000
"""Of nodes, so that subnets and addresses are left for those that start, and for changes."""
TTL = 86400
DEADLINE = 30.0


class Leases:
    """The leases below one prefix, and `current`: the address by node that was sent last."""

    def __init__(self, target: str, prefix: str, count: int) -> None:
        self._channel = grpc.insecure_channel(target, (("grpc.enable_http_proxy", 0),))
        self._kv, grants = rpc.KVStub(self._channel), rpc.LeaseStub(self._channel)
        self._prefix, self._count = prefix, count
        self._addresses = itertools.cycle(range(1, PEERS.num_addresses - 1))  # several threads may take the next
        self.current: dict[int, IPv4Address] = {}
        self.commit(rpc.RequestOp(request_put=rpc.PutRequest(key=f"{prefix}/config".encode(), value=CONFIG.encode())))
        calls = [grants.LeaseGrant.future(rpc.LeaseGrantRequest(TTL=TTL, ID=number + 1), timeout=DEADLINE)
                 for number in range(count)]
        for call in calls:
            call.result()
        for first in range(0, count, 100):
            self.commit(*(self.put(number) for number in range(first, min(count, first + 100))))

    def put(self, number: int) -> Any:  # noqa: ANN401 - messages of etcd
        """The operation that gives node `number` a new address."""
        address = self.current[number] = PEERS[next(self._addresses)]
        put = rpc.PutRequest(key=self._key(number), value=f'{{"PublicIP":"{address}","PublicIPv6":null}}'.encode(),
                             lease=number + 1)
        return rpc.RequestOp(request_put=put)

    def delete(self, number: int) -> Any:  # noqa: ANN401
        """The operation that takes node `number`'s lease away."""
        del self.current[number]
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._key(number)))

    def send(self, *operations: Any) -> Any:  # noqa: ANN401
        """Have these done in one transaction; a future."""
        return self._kv.Txn.future(rpc.TxnRequest(success=operations), timeout=DEADLINE)

    def commit(self, *operations: Any) -> None:  # noqa: ANN401
        """Have these done in one transaction, and wait for it."""
        self.send(*operations).result()

    def expected(self) -> dict[str, str]:
        """What a daemon's status should tell, by what etcd holds: address by subnet of all nodes of ours."""
        begin = f"{self._prefix}/subnets/".encode()
        kvs = self._kv.Range(rpc.RangeRequest(key=begin, range_end=begin[:-1] + b"0"), timeout=DEADLINE).kvs
        pairs = {kv.key[len(begin):].decode().replace("-", "/"): json.loads(kv.value)["PublicIP"] for kv in kvs}
        ours = {f"{subnet_of(number)}" for number in range(self._count)}
        return {subnet: address for subnet, address in pairs.items() if subnet in ours}

    def close(self) -> None:
        self._channel.close()

    def _key(self, number: int) -> bytes:
        return f"{self._prefix}/subnets/{subnet_of(number).network_address}-{SUBNET_LENGTH}".encode()


def subnet_of(number: int) -> IPv4Network:
    """The subnet that node `number` leases."""
    return IPv4Network((int(OVERLAY.network_address) + (number << (32 - SUBNET_LENGTH)), SUBNET_LENGTH))
