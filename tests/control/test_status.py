"""What the status costs the owner thread in a network full of peers."""

import time
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.forwarder import Encapsulation, Forwarder
from flannel_udp.status import peer_row


def test_a_network_full_of_peers_is_told_of_while_others_wait() -> None:
    forwarder = Forwarder(IPv4Network("10.0.0.0/8"), 24, Encapsulation(0, 1, 28))
    for number in range(1 << 16):
        forwarder.set_peer(IPv4Network(((10 << 24) + (number << 8), 24)), IPv4Address("192.0.2.2") + number, 8285)
    forwarder.publish()
    before = time.thread_time()
    rows = [peer_row(peer) for peer in forwarder.peers()]
    assert time.thread_time() - before < 10
    assert len(rows) == 1 << 16
    assert rows[1] == {"subnet": "10.0.1.0/24", "underlay": "192.0.2.3", "packets_out": 0, "bytes_out": 0,
                       "packets_in": 0, "bytes_in": 0, "last_heard": None}
