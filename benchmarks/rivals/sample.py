"""What a load returns, or why it could not."""

import time
from collections.abc import Callable
from typing import Any

Sample = dict[str, Any]
DEADLINE = 20.0


class Failed(Exception):
    """A contender did not start or a load did not run; the run goes on without it, and the report says so."""


def wait_until(holds: Callable[[], object], what: str, pause: float = 0.05) -> None:
    """Wait for a condition; Failed names `what` if it does not come."""
    end = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > end:
            raise Failed(f"waited {DEADLINE:.0f} s in vain: {what}")
        time.sleep(pause)
