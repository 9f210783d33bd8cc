"""Many containers plugged in and out at once while calls are killed: no address is lost, and none is given twice."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flannel_udp.cni import failure, records

from ..conftest import require_commands, require_namespaces, wait_until
from .cni_storm import SUBNET, THREADS, TRACES, Blow, Done, Runtime, Storm, debian, reference, tardy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTAINERS = 50
GONE = 10
"""Containers that nobody unplugs: their namespaces just go."""
LOCK = {".lock"}
"""What GC alone may take away."""


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[Callable[..., Storm]]:
    """Make a node of so many containers, with the plugins of a folder."""
    require_commands("ip")
    require_namespaces()
    made: list[Storm] = []

    def make(containers: int, plugins: Path, version: str) -> Storm:
        made.append(Storm(tmp_path, plugins, version, containers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def agree(storm: Storm, containers: set[str]) -> None:
    """See that exactly these are there, by the word of the kernel, of host-local and of the plugin's files."""
    held = storm.addresses()
    assert set(held.values()) == containers
    assert len(held) == len(containers)
    assert {address: owner for address, owner in storm.reserved().items() if owner} == held
    assert len(storm.ports()) == len(containers)
    assert storm.kept() == containers | LOCK


def rage(storm: Storm, *, group: bool) -> Runtime:
    """200 calls and those that follow a kill: all are plugged in, then out and in, each of which `agree` looks at."""
    runtime, names = Runtime(storm, 7, group), list(storm.pods)
    runtime.all_of(runtime.plug, names)
    agree(storm, set(names))
    runtime.all_of(runtime.replug, names)
    agree(storm, set(names))
    return runtime


def opened_by_others(file: Path) -> bool:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.parts[2] != f"{os.getpid()}" and str(link.readlink()) == str(file):
                return True
    return False


def assert_blows_met(runtime: Runtime) -> None:
    """See that calls were killed in each of their steps, and not before or after all of them."""
    met = set(runtime.struck)
    assert {trace for verb, trace in met if verb == "ADD"} == {"start", *TRACES}
    assert {trace for verb, trace in met if verb == "DEL"} >= {"start", "link"}


def test_no_address_is_lost_or_given_twice_when_plugins_are_killed(
    storm: Callable[..., Storm], tmp_path: Path
) -> None:
    made = storm(CONTAINERS, tardy(debian(), tmp_path / "plugins", "ADD"), "1.0.0")
    runtime = rage(made, group=False)
    runtime.all_of(runtime.unplug, list(made.pods))
    agree(made, set())
    assert not made.reserved()
    assert_blows_met(runtime)


def test_nor_when_all_that_they_started_is_killed_and_gc_takes_the_rest(storm: Callable[..., Storm]) -> None:
    made = storm(CONTAINERS, reference(), "1.1.0")
    runtime, names = rage(made, group=True), list(made.pods)
    assert made.call("GC", valid=names) == Done(0, {})
    agree(made, set(names))
    runtime.all_of(runtime.unplug, names[GONE:])
    agree(made, set(names[:GONE]))
    made.lose(names[:GONE])
    for name, group in (("c1", True), ("c4", False)):
        blow = Blow(lambda name=name: not made.has(name, "record"), 0.0, group)  # type: ignore[misc]
        assert made.call("GC", blow=blow).killed, f"GC was done before it could be killed, when it had freed {name}"
    assert made.call("GC") == Done(0, {})
    assert (made.kept(), made.reserved()) == (set(), {})
    wait_until(lambda: not made.ports(), "the kernel has taken down the namespaces")
    assert_blows_met(runtime)


def test_calls_for_one_container_take_turns(storm: Callable[..., Storm]) -> None:
    made = storm(8, debian(), "1.0.0")

    def at_once(*verbs: str) -> dict[str, list[Done]]:
        with ThreadPoolExecutor(THREADS) as pool:
            calls = {name: [pool.submit(made.call, verb, name) for verb in verbs] for name in made.pods}
            return {name: [call.result() for call in two] for name, two in calls.items()}

    for name, (one, two) in at_once("ADD", "ADD").items():
        assert sorted(done.answer.get("code", 0) for done in (one, two)) == [0, failure.ADDED_BEFORE], name
        assert made.traces(name) == set(TRACES)
    agree(made, set(made.pods))
    for name, (added, deleted) in at_once("ADD", "DEL").items():
        assert deleted == Done(0, {})
        assert added.answer.get("code", failure.ADDED_BEFORE) == failure.ADDED_BEFORE, name
        assert made.traces(name) == (set() if added.status else set(TRACES))
    for ends in at_once("DEL", "DEL").values():
        assert ends == [Done(0, {})] * 2
    agree(made, set())


def test_what_a_killed_gc_has_started_takes_no_later_container_for_a_gone_one(
    storm: Callable[..., Storm], tmp_path: Path
) -> None:
    plugins = tardy(reference(), tmp_path / "plugins", "GC")
    made = storm(2, plugins, "1.1.0")
    assert made.call("ADD", "c0").status == 0
    assert made.call("GC", blow=Blow((plugins / "GC").exists, 0.0, group=False), valid=["c0"]).killed
    assert made.call("ADD", "c1").status == 0
    wait_until((plugins / "GC.done").exists, "what was left of GC is done")
    agree(made, {"c0", "c1"})


def test_a_call_that_has_waited_for_gc_does_not_lock_the_file_that_gc_took_away(storm: Callable[..., Storm]) -> None:
    made = storm(1, debian(), "1.0.0")
    lock = made.records / ".lock"
    with ThreadPoolExecutor(1) as pool:
        with records.locked(made.records, None):
            waiting = pool.submit(made.call, "ADD", "c0")
            wait_until(lambda: opened_by_others(lock), "the call waits")
            records.tidy(made.records)
            assert not lock.exists()
        assert waiting.result().status == 0
    agree(made, {"c0"})


def test_gc_frees_what_host_local_was_killed_in_the_midst_of_giving(storm: Callable[..., Storm]) -> None:
    made = storm(1, reference(), "1.1.0")
    assert made.call("ADD", "c0").status == 0
    made.leave_unfinished(SUBNET[9])
    assert made.call("DEL", "c0") == Done(0, {})
    assert made.reserved() == {SUBNET[9]: ""}
    assert made.call("GC") == Done(0, {})
    assert (made.kept(), made.reserved()) == (set(), {})


def test_del_takes_the_record_too_that_a_killed_add_was_writing(storm: Callable[..., Storm]) -> None:
    made = storm(1, reference(), "1.1.0")
    assert made.call("ADD", "c0").status == 0
    assert made.call("DEL", "c0") == Done(0, {})
    (made.records / ".c0.new").write_text('{"type": "bri')
    assert made.call("DEL", "c0") == Done(0, {})
    assert made.kept() == LOCK
