"""The monitor of links when it meets what it does not expect; tests/netns/ has the links."""

import queue

import pytest

from flannel_udp import netlink
from flannel_udp.errors import Fault
from tests.conftest import DEADLINE


def test_a_monitor_does_not_end_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(netlink, "MarshalRtnl", broken)
    events: queue.Queue[object] = queue.Queue()
    monitor = netlink.LinkMonitor(events.put)
    try:
        event = events.get(timeout=DEADLINE)
    finally:
        monitor.close()
    assert isinstance(event, Fault)
    assert event.thread == "link-monitor"
    assert isinstance(event.error, ZeroDivisionError)
