"""Nodes that start at once, as far as a registry sees of them.

Each is the daemon's own subnet manager on an etcd connection of its own, in a thread. When all are made a line is
printed; when one is read, all go: they read the configuration, take a lease, and follow the others. A line of JSON
tells what came of each. Then a line is read that tells how many others there are, and one printed when all know them.

    python -m benchmarks.scale.starters ENDPOINT PREFIX FIRST COUNT
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.scale.leases import PEERS
from flannel_udp.errors import FlannelUdpError
from flannel_udp.etcd_options import EtcdOptions, read_endpoints
from flannel_udp.lease import LeaseAttrs
from flannel_udp.registry.etcd import EtcdRegistry
from flannel_udp.subnet import PeersChanged, PeersReset, SubnetEvent
from flannel_udp.subnet.leased import LeasedSubnetManager

PATIENCE = 60.0


class Starter:
    """One node; its public address is counted from the end of the peers' addresses."""

    def __init__(self, endpoint: str, prefix: str, number: int) -> None:
        options = EtcdOptions(endpoints=read_endpoints(endpoint), prefix=prefix)
        self.manager = LeasedSubnetManager(EtcdRegistry(options))
        self._attrs = LeaseAttrs(PEERS[-2 - number])
        self._peers: set[str] = set()
        self._came = threading.Condition()

    def start(self, begin: float) -> dict[str, Any]:
        """Do what a daemon's start does."""
        try:
            self.manager.config()
            lease = self.manager.acquire(self._attrs)
        except FlannelUdpError as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        took = time.monotonic() - begin
        self.manager.events(self._take)
        return {"subnet": f"{lease.subnet}", "seconds": took, "lost_races": self.manager.counters["lost_races"]}

    def await_peers(self, count: int) -> bool:
        """Whether it comes to know as many peers."""
        with self._came:
            return self._came.wait_for(lambda: len(self._peers) >= count, PATIENCE)

    def _take(self, event: SubnetEvent) -> None:
        with self._came:
            if isinstance(event, PeersReset):
                self._peers = {lease.key for lease in event.leases}
            elif isinstance(event, PeersChanged):
                self._peers -= {lease.key for lease in event.deleted}
                self._peers |= {lease.key for lease in event.put}
            self._came.notify_all()


def main() -> None:
    endpoint, prefix, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    starters = [Starter(endpoint, prefix, number) for number in range(first, first + count)]
    with ThreadPoolExecutor(count) as pool:
        print("made", flush=True)
        sys.stdin.readline()
        begin = time.monotonic()
        print(json.dumps(list(pool.map(lambda starter: starter.start(begin), starters))), flush=True)
        peers = int(sys.stdin.readline())
        known = sum(pool.map(lambda starter: starter.await_peers(peers), starters))
        print(json.dumps({"know_all": known, "seconds": time.monotonic() - begin}), flush=True)
        for starter in starters:
            starter.manager.close()


if __name__ == "__main__":
    main()
