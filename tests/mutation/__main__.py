"""Run the mutations of table.py: python -m tests.mutation [WORD ...]; with words only those that name one of them.

Each worker has a copy of the tree, never the tree itself. There a mutation is made, the one module that its test needs
is built (as fast as gcc can, since only behaviour is asked), and that test run. A mutation whose test passes survives:
then the guard is not needed, or the test does not hold it. Before all that the tests must pass without any mutation.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from .table import TABLE, Mutation

ROOT = Path(__file__).parents[2]
SOURCES = {"_dataplane": "worker", "_probe": "probe"}
# As setup.py has them.
DIRECTIVES = ("language_level=3str", "boundscheck=False", "wraparound=False", "cdivision=True",
              "initializedcheck=False")
DEADLINE = ("DEADLINE = 30.0", "DEADLINE = 8.0")
"""A test that waits in vain is what most mutations come to, so the copy waits less."""
TIMEOUT = 60


class Fault(Exception):
    """The table does not fit the tree: the text is not there, the build or the test cannot be run."""


class Tree:
    """A copy of the tree in which mutations are made, one after the other."""

    def __init__(self, place: Path) -> None:
        self.place = place
        skip = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, place, ignore=skip)
        self.change(Path("tests/conftest.py"), *DEADLINE)
        self.kept = {module: self.module(module).read_bytes() for module in SOURCES}

    def module(self, name: str) -> Path:
        return self.place / "flannel_udp" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"

    def change(self, file: Path, old: str, new: str) -> str:
        """Replace the one place where `old` stands; return the text as it was."""
        text = (self.place / file).read_text()
        if text.count(old) != 1:
            raise Fault(f"{file} has {text.count(old)} places with {old!r}, and one is wanted")
        (self.place / file).write_text(text.replace(old, new))
        return text

    def build(self, module: str, *, sanitized: bool) -> None:
        made = self.place / f"{module}.c"
        directives = [word for one in DIRECTIVES for word in ("-X", one)]
        self.command("build", sys.executable, "-m", "cython", "-I", "src", *directives, "--module-name",
                     f"flannel_udp.{module}", f"src/{SOURCES[module]}.pyx", "-o", str(made))
        includes = {sysconfig.get_path(name) for name in ("include", "platinclude")}
        self.command("build", "gcc", "-shared", "-fPIC", "-std=gnu11", "-fno-strict-aliasing", "-O0", "-w",
                     *(["-fsanitize=address"] if sanitized else []),
                     *(f"-I{one}" for one in includes), str(made), "-o", str(self.module(module)))

    def command(self, what: str, *argv: str) -> None:
        done = subprocess.run(argv, cwd=self.place, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Fault(f"{what}: {done.stdout}{done.stderr}"[-1000:])

    def passes(self, *tests: str, sanitized: bool = False) -> bool:
        """Run tests; whether all of them passed."""
        environment = {**os.environ, "PYTHONPATH": str(self.place), "CI": "true"}
        if sanitized:
            library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
            environment |= {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
        argv = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--timeout={TIMEOUT}",
                *tests]
        try:
            done = subprocess.run(argv, cwd=self.place, capture_output=True, text=True, check=False, env=environment,
                                  timeout=4 * TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode > 1:  # pytest's word for all but failed tests
            raise Fault(f"{' '.join(tests)}: {done.stdout}{done.stderr}"[-1000:])
        return done.returncode == 0

    def kills(self, mutation: Mutation) -> bool:
        """Make a mutation, and tell whether its test fails; the tree is as it was then."""
        file = Path(mutation.file)
        before = self.change(file, mutation.old, mutation.new)
        try:
            if mutation.module:
                self.build(mutation.module, sanitized=mutation.sanitized)
            return not self.passes(*shlex.split(mutation.test), sanitized=mutation.sanitized)
        finally:
            (self.place / file).write_text(before)
            if mutation.module:
                self.module(mutation.module).write_bytes(self.kept[mutation.module])


def main(words: list[str]) -> int:
    chosen = [one for one in TABLE if not words or any(word in f"{one.guard} {one.file}" for word in words)]
    with tempfile.TemporaryDirectory(prefix="flannel-udp-mutation-") as folder:
        trees: SimpleQueue[Tree] = SimpleQueue()
        workers = os.cpu_count() or 1
        for number in range(workers):
            trees.put(Tree(Path(folder) / f"{number}"))

        def outcome(mutation: Mutation) -> str:
            tree = trees.get()
            try:
                said = "killed" if tree.kills(mutation) else "SURVIVED"
            except Fault as fault:
                said = f"FAULT: {fault}"
            finally:
                trees.put(tree)
            print(f"{said:10}{mutation.guard}", flush=True)
            return said

        check(trees, chosen)
        with ThreadPoolExecutor(workers) as pool:
            outcomes = list(pool.map(outcome, chosen))
    left = [one for one, said in zip(chosen, outcomes, strict=True) if said != "killed"]
    print(f"{len(chosen) - len(left)} of {len(chosen)} mutations were killed")
    for one in left:
        print(f"left: {one.guard}: {one.file}: {one.old!r} -> {one.new!r}: {one.test}")
    return 1 if left else 0


def check(trees: "SimpleQueue[Tree]", chosen: Iterable[Mutation]) -> None:
    """Exit unless every test passes where nothing is mutated."""
    tree = trees.get()
    for test in dict.fromkeys(one.test for one in chosen):
        try:
            sound = tree.passes(*shlex.split(test))
        except Fault as fault:
            sys.exit(f"cannot be run: {fault}")
        if not sound:
            sys.exit(f"fails without a mutation, and so shows nothing: pytest {test}")
    trees.put(tree)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
