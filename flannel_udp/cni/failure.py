"""What a call fails with, by the codes of the specification (section 5, "Error") and, from 100 on, our own."""

from __future__ import annotations

import sys

VERSION = 1  # of the specification: not known, or too old for this verb
UNSUPPORTED = 2  # a key that must not be there
UNKNOWN_CONTAINER = 3
ENVIRONMENT = 4  # a CNI_* variable
INPUT_OUTPUT = 5
DECODE = 6
CONFIGURATION = 7
OWN_NETNS = 8  # as the reference library has it: CNI_NETNS is where the plugin runs itself
TRY_LATER = 11
UNAVAILABLE = 50  # STATUS: containers cannot be added
LIMITED = 51  # STATUS: nor may those that are there be reached
DELEGATE = 100  # the delegated plugin is not found, cannot be run, or gives no answer that makes sense
DAEMON = 101  # CHECK: the node's daemon is not ready
STALE = 102  # CHECK: the container's addresses are not of the node's subnet any more
ADDED_BEFORE = 103  # ADD of an attachment that is there
INTERNAL = 999  # as the reference library has it


class Failure(Exception):
    """One error of the specification: a code, what is wrong in a few words, and what would be right."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def fields(self) -> dict[str, object]:
        """The error object, but for its cniVersion."""
        return {"code": self.code, "msg": self.message, **({"details": self.details} if self.details else {})}


def log(line: str) -> None:
    """Tell it on stderr, if anybody has one there: what becomes of a log line is no matter of the call's."""
    if sys.stderr is None:  # which print would take for stdout
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # full, or its reader gone
        return
