"""The owner thread's one queue, and errands: calls that may wait for others and so run in threads of their own.

Everybody posts; only the owner takes. An errand's answer comes by the queue like any other event, so that the owner is
never kept from a stop or from packets by a registry that does not answer.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flannel_udp.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Stop:
    """Somebody wants the owner to end."""


@dataclass(frozen=True)
class Answer:
    """What an errand came back with."""

    errand: int
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Question:
    """A request that somebody waits for, in another thread, to be answered."""

    request: dict[str, Any]
    replies: SimpleQueue[dict[str, Any] | Exception]

    def reply(self, answer: dict[str, Any] | Exception) -> None:
        """Let the asking thread go on."""
        self.replies.put(answer)


class Stopped(Exception):
    """The stop that was asked for, on its way up through whatever the owner was doing."""


class Inbox(Generic[T]):
    """Events of type T, and stops, answers and questions."""

    def __init__(self, reply: Callable[[dict[str, Any]], dict[str, Any] | Exception] | None = None) -> None:
        """`reply` answers the questions that come while the owner waits in here; without it they wait for take()."""
        self._reply = reply
        self._queue: SimpleQueue[T | Stop | Answer | Question] = SimpleQueue()
        self._later: list[T | Answer | Question] = []
        self._errands = 0

    def post(self, event: T | Stop) -> None:
        """Hand an event to the owner; from any thread, and from signal handlers."""
        self._queue.put(event)

    def send(self, call: Callable[..., object], *args: object) -> int:
        """Start an errand; its Answer bears the number that this returns."""
        self._errands += 1
        number = self._errands

        def run() -> None:
            try:
                self._queue.put(Answer(number, call(*args)))
            except Exception as error:  # whatever it is, the owner raises it or knows what to do
                self._queue.put(Answer(number, error=error))

        threading.Thread(target=run, name=f"errand-{number}", daemon=True).start()
        return number

    def wait(self, call: Callable[..., R], *args: object) -> R:
        """Send an errand and wait for its answer, or for a stop (Stopped); other events wait for their turn."""
        number = self.send(call, *args)
        while True:
            event = self._next(None)
            if isinstance(event, Answer) and event.errand == number:
                if event.error:
                    raise event.error
                result: R = event.result
                return result
            self._defer(event)

    def pause(self, seconds: float) -> None:
        """Wait, unless a stop comes (Stopped)."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._defer(self._next(deadline))
            except Empty:
                return

    def ask(self, request: dict[str, Any], patience: float) -> dict[str, Any]:
        """From another thread: put a question to the owner and give its reply, raise it if it is an error.

        ControlError when none comes in time.
        """
        question = Question(request, SimpleQueue())
        self._queue.put(question)
        try:
            reply = question.replies.get(timeout=patience)
        except Empty:
            raise ControlError(f"the daemon did not find time to answer within {patience:g} s") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """Refuse the questions that wait, now that nobody will take them."""
        while self._later or not self._queue.empty():
            event = self._later.pop() if self._later else self._queue.get()
            if isinstance(event, Question):
                event.reply(ControlError("the daemon is stopping"))

    def take(self, until: float) -> list[T | Answer | Question]:
        """A batch: all events that wait, else the first to come before `until` (monotonic), else none."""
        batch, self._later = self._later, []
        try:
            if not batch:
                batch.append(self._next(until))
            for _ in range(self._queue.qsize()):
                batch.append(self._next(0.0))
        except Empty:
            pass
        except Stopped:
            self._later = batch  # close() looks among them
            raise
        return batch

    def _defer(self, event: T | Answer | Question) -> None:
        """Keep an event until take(), but for a question that can be answered now."""
        if isinstance(event, Question) and self._reply:
            event.reply(self._reply(event.request))
        else:
            self._later.append(event)

    def _next(self, deadline: float | None) -> T | Answer | Question:
        event = self._queue.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        if isinstance(event, Stop):
            raise Stopped
        return event
