"""inbox: events in order, errands that never keep a stop waiting, questions that always end."""

import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest

from flannel_udp.errors import ControlError, RegistryUnavailable
from flannel_udp.inbox import Answer, Inbox, Question, Stop, Stopped

from ..conftest import DEADLINE, wait_until


def soon() -> float:
    return time.monotonic() + DEADLINE


def refuse() -> None:
    raise RegistryUnavailable("nobody there")


def test_a_batch_is_everything_that_waits_in_order() -> None:
    inbox: Inbox[str] = Inbox()
    for word in "abc":
        inbox.post(word)
    assert inbox.take(soon()) == ["a", "b", "c"]
    assert inbox.take(0.0) == []


def test_waiting_for_an_errand_keeps_other_events_for_later() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.post("before")
    assert inbox.wait(lambda number: number + 1, 1) == 2
    inbox.post("after")
    assert inbox.take(soon()) == ["before", "after"]


def test_an_errand_answers_by_the_queue() -> None:
    inbox: Inbox[str] = Inbox()
    number = inbox.send(refuse)
    answer, = inbox.take(soon())
    assert isinstance(answer, Answer)
    assert (answer.errand, type(answer.error)) == (number, RegistryUnavailable)
    with pytest.raises(RegistryUnavailable, match="nobody there"):
        inbox.wait(refuse)


def test_a_stop_ends_every_kind_of_waiting() -> None:
    inbox: Inbox[str] = Inbox()
    gate = threading.Event()
    for wait in (lambda: inbox.wait(gate.wait), lambda: inbox.pause(DEADLINE), lambda: inbox.take(soon())):
        inbox.post(Stop())
        with pytest.raises(Stopped):
            wait()
    gate.set()


def test_pausing_lasts_and_keeps_events() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.post("a")
    before = time.monotonic()
    inbox.pause(0.05)
    assert time.monotonic() - before >= 0.05
    assert inbox.take(0.0) == ["a"]


def test_questions_are_answered_or_refused() -> None:
    inbox: Inbox[str] = Inbox()
    told: list[object] = []

    def ask() -> None:
        try:
            told.append(inbox.ask({"command": "status"}, DEADLINE))
        except ControlError as error:
            told.append(str(error))

    def asked() -> threading.Thread:
        thread = threading.Thread(target=ask)
        thread.start()
        return thread

    thread = asked()
    question, = inbox.take(soon())
    assert isinstance(question, Question)
    question.reply({"all": "well"})
    thread.join()
    thread = asked()
    wait_until(lambda: not inbox._queue.empty(), "the question is there")
    inbox.post(Stop())
    with pytest.raises(Stopped):
        inbox.take(soon())
    inbox.close()
    thread.join()
    assert told == [{"all": "well"}, "the daemon is stopping"]
    with pytest.raises(ControlError, match=r"did not find time to answer within 0.01 s"):
        inbox.ask({}, 0.01)


def test_questions_are_answered_while_the_owner_waits_and_in_their_turn_otherwise() -> None:
    inbox: Inbox[str] = Inbox(lambda request: {"asked": request["command"]})
    gate = threading.Event()
    told: list[object] = []

    def ask() -> None:
        told.append(inbox.ask({"command": "health"}, DEADLINE))
        gate.set()

    inbox.post("before")
    threading.Thread(target=ask).start()
    assert inbox.wait(gate.wait, DEADLINE)  # an errand that ends when the question is answered
    assert told == [{"asked": "health"}]
    assert inbox.take(soon()) == ["before"]
    replies: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
    inbox.post(Question({"command": "status"}, replies))  # type: ignore[arg-type]
    inbox.pause(0.0)
    assert replies.get_nowait() == {"asked": "status"}
    inbox.post(Question({"command": "status"}, replies))  # type: ignore[arg-type]
    assert [type(event) for event in inbox.take(soon())] == [Question]
    assert replies.empty()
