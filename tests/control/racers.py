"""Nodes that all want a lease at once: `python racers.py COUNT` with registry and options, pickled, on standard input.

Each is a process of its own, forked before the registry's library does anything, so that fifty cost little to start.
Prints a line of JSON for each: its number, and its two subnets or the error.
"""

import json
import os
import pickle
import random
import sys
from ipaddress import IPv4Address

from flannel_udp.lease import LeaseAttrs
from flannel_udp.registry import etcd, open_registry, sqlite
from flannel_udp.subnet.leased import LeasedSubnetManager

LOADED = (etcd, sqlite)  # before the fork


def race(where: tuple[str, object], number: int, ready: int, start: int) -> list[object]:
    """One node; all choose by the same random numbers, so that all want the same subnet."""
    manager = LeasedSubnetManager(open_registry(where[0], etcd=where[1], timeout=30.0),  # type: ignore[arg-type]
                                  rng=random.Random(0), acquire_timeout=60.0)
    try:
        manager.config()
        os.write(ready, b".")
        os.read(start, 1)  # until the other end is closed
        lease = manager.acquire(LeaseAttrs(IPv4Address(f"192.0.2.{number}")))
        return [number, str(lease.subnet), str(lease.ipv6_subnet)]
    except Exception as error:  # told to the test, which fails by it
        return [number, repr(error), repr(error)]
    finally:
        manager.close()


def main() -> None:
    """Fork all, let them go when all are ready, wait for the last."""
    count, where = int(sys.argv[1]), pickle.load(sys.stdin.buffer)  # noqa: S301 - the test's own
    ready, is_ready = os.pipe()
    start, go = os.pipe()
    children = []
    for number in range(1, count + 1):
        child = os.fork()
        if not child:
            os.close(go)
            os.write(1, (json.dumps(race(where, number, is_ready, start)) + "\n").encode())
            os._exit(0)
        children.append(child)
    os.close(is_ready)
    seen = 0
    while seen < count and (some := os.read(ready, count)):
        seen += len(some)
    os.close(go)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
