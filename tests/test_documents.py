"""README.md, docs/tutorial.md and src/README.md hold true: their commands are run, their claims compared with the code.

How a document is read. A block marked console holds commands and what they print: "$ " begins a command, "> " goes on
with it, all else is output. A block marked python is a file if its first line is "# name.py", else a Python session in
doctest's form; all sessions of a document are one. A block marked text is a picture and is not looked at.

How output is compared. A line "..." stands for any lines, or none, and "..." within a line for anything. The subnets of
a lab are random: the first that a document shows must be the first that is really printed, and so on, and is then the
same throughout. Times, checksums, hardware addresses, process ids, bytes of a dump and counts of packets that passed
may differ (VARYING), spaces may be more or fewer. A command must succeed, unless its shown output tells of a loss.

Where commands run. All of a document's in one shell, inside network, mount and PID namespaces of their own, which
gives them a /run and /var/lib of their own too: its lab collides with no other, and ends with the shell, whatever
happens. Not run is what sets the stage (make, activate), for the test itself stands on it.
"""

import contextlib
import doctest
import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flannel_udp import cli, options
from flannel_udp._dataplane import OUTCOMES
from flannel_udp.errors import FlannelUdpError

from .conftest import require_commands, require_tun

ROOT = Path(__file__).parent.parent
README, TUTORIAL, PLAN, GUIDE, COMPATIBILITY = (
    ROOT / name for name in ("README.md", "docs/tutorial.md", "src/README.md", "docs/operations.md",
                             "docs/compatibility.md"))
DOCUMENTS = pytest.mark.parametrize(
    "document", [README, TUTORIAL, PLAN, GUIDE, COMPATIBILITY], ids=lambda path: str(path.relative_to(ROOT)))
STAGE = ("make", "git ", ". .venv/bin/activate", "flannel-udp lab demo")  # the demo has a test of its own
LOSS = "100% packet loss"
DEADLINE = 100.0
MARK = "\x1e"

FURNISH = """\
mount -t tmpfs none /run && mount -t tmpfs none /var/lib && ip link set lo up &&
ip link add eth0 type veth peer name switch && ip addr add 198.51.100.7/24 dev eth0 && ip link set switch up &&
ip link set eth0 up || exit 99
"""  # a host with an external interface; the address is one for documentation (RFC 5737)

VARYING = [
    (re.compile(r"\b\d+(\.\d+)? ?ms\b"), "<ms>"),
    (re.compile(r"0x[0-9a-f]{4}\b"), "<hex>"),
    (re.compile(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b"), "<mac>"),
    (re.compile(r"\b[0-9a-f]{2}(?= [0-9a-f]{2}\b)|(?<=[0-9a-f]{2} )[0-9a-f]{2}(?= |$)", re.MULTILINE), "<byte>"),
    (re.compile(r"(?<=running )\d+"), "<pid>"),
    (re.compile(r"\b\d+ (?=packets =|sent\b|delivered\b)"), "<count> "),
    (re.compile(r"time=\d{4}-\S+Z"), "<time>"),
    (re.compile(r"\bin \d+h\d+m\b|\b\d+s ago\b"), "<duration>"),
]


@dataclass(frozen=True)
class Command:
    """One command of a document, and what the document shows of its output."""

    text: str
    shown: str


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[Command]:
    """All commands of a document, in order."""
    found = []
    for block in blocks(document, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *lines = part.splitlines()
            more = list(itertools.takewhile(lambda line: line.startswith("> "), lines))
            text = "\n".join([first, *(line[2:] for line in more)])
            found.append(Command(text, "\n".join(lines[len(more):])))
    return found


def files(document: Path) -> dict[str, str]:
    """The Python files that a document has its reader save."""
    named = ((re.match(r"# (\w+\.py)\b", block), block) for block in blocks(document, "python"))
    return {found[1]: block for found, block in named if found}


class Canonical:
    """Rewrites text so that two runs of the same commands give the same; subnets are numbered as they come."""

    def __init__(self) -> None:
        self._subnets: dict[str, str] = {"0": "10.5.0"}  # of the network itself, and never leased

    def __call__(self, text: str) -> str:
        for pattern, word in VARYING:
            text = pattern.sub(word, text)
        text = re.sub(r"\b10\.5\.(\d+)\b", lambda found: self._subnet(found[1]), text)
        return "\n".join(" ".join(line.split()) for line in text.strip("\n").splitlines()).lower()

    def _subnet(self, number: str) -> str:
        return self._subnets.setdefault(number, f"<subnet {len(self._subnets)}>")


def pattern_of(shown: str) -> str:
    """The regular expression for canonical output that is shown with "..." in it."""
    lines = ["(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
             for line in shown.splitlines()]
    return "".join(lines)


def run(document: Path, directory: Path) -> list[tuple[Command, str, int]]:
    """Run all commands of a document in one shell; each with its output and its status."""
    shell = [line for line in commands(document) if not line.text.startswith(STAGE)]
    for name, text in files(document).items():
        (directory / name).write_text(text)
    script, output = directory / "commands.sh", directory / "output"
    parts = [FURNISH]
    for command in shell:
        parts += [f"printf '{MARK}'", command.text]
        if command.text.startswith("flannel-udp run") and command.text.endswith("&"):
            parts.append("until flannel-udp status >/dev/null 2>&1; do sleep 0.1; done")  # "&" does not say: ready
        parts.append(f"printf '{MARK}%d' $?")
    script.write_text("\n".join([*parts, "exit 0\n"]))
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    with output.open("w") as written:
        done = subprocess.run([*apart, "bash", str(script)], stdin=subprocess.DEVNULL, stdout=written, cwd=directory,
                              stderr=subprocess.STDOUT, env={**os.environ, "PATH": path}, timeout=DEADLINE, check=False)
    said = output.read_text(errors="replace")
    assert done.returncode == 0, said
    printed = said.split(MARK)
    return [(command, printed[2 * i + 1], int(re.match(r"\d+", printed[2 * i + 2])[0]))  # type: ignore[index]
            for i, command in enumerate(shell)]


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=["README", "tutorial"])
def test_every_command_does_what_is_shown(document: Path, tmp_path: Path) -> None:
    require_commands("bash", "unshare", "ip", "ping", "awk", "grep")
    require_tun()
    done = run(document, tmp_path)
    assert done
    told, seen = Canonical(), Canonical()
    for command, printed, status in done:
        if command.text.startswith("flannel-udp run"):  # of another network, which may lease what the lab had
            told, seen = Canonical(), Canonical()
        shown, found = told(command.shown), seen(printed)
        assert re.fullmatch(pattern_of(shown), found + "\n" if found else ""), (
            f"$ {command.text}\n--- shown\n{shown}\n--- printed\n{found}"
        )
        assert status == 0 or LOSS in shown, f"$ {command.text}\nstatus {status}: {printed}"


def test_the_demo_prints_what_the_readme_quotes() -> None:
    require_commands("ip", "ping")
    require_tun()
    (quoted,) = [command.shown for command in commands(README) if command.text == "make demo"]
    demo = [sys.executable, "-P", "-m", "flannel_udp.cli", "lab", "demo"]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^── ", quoted, re.MULTILINE)) >= 5, "the README quotes the demo's headings"
    shown, found = ([re.sub(r"[─═]+", "─", line) for line in text.splitlines()]
                    for text in (Canonical()(quoted), Canonical()(done.stdout)))
    assert re.fullmatch(pattern_of("\n".join(shown)), "\n".join(found) + "\n"), done.stdout


def test_the_tutorials_python_session_gives_what_is_shown() -> None:
    sessions = "\n".join(block for block in blocks(TUTORIAL, "python") if block.startswith(">>> "))
    test = doctest.DocTestParser().get_doctest(sessions, {}, "tutorial", str(TUTORIAL), 0)
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert result.attempted > 10
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=["README", "tutorial"])
def test_every_block_is_of_a_kind_that_is_looked_at(document: Path) -> None:
    assert set(re.findall(r"^```(\w*)$", document.read_text(), re.MULTILINE)) - {""} <= {"console", "python", "text"}
    for block in blocks(document, "python"):
        assert block.startswith(">>> ") or re.match(r"# \w+\.py\b", block), block


def invocations(document: Path) -> set[str]:
    """The words after flannel-udp wherever a document has them in a command or as code."""
    text = document.read_text()
    code = [*re.findall(r"`([^`\n]+)`", text), *(command.text for command in commands(document))]
    return {found.strip() for piece in code for found in re.findall(r"flannel-udp ((?:[\w-]|[ =:/.,$+])+)", piece)}


@DOCUMENTS
def test_every_command_exists(document: Path) -> None:
    for words in invocations(document):
        head = words.split(" -- ")[0].split()
        try:
            if head[0] == "run":
                options.parse([*head[1:], "--registry", "sqlite:///leases.db"], {})
            else:
                assert help_of(*[word for word in head[:2] if re.fullmatch("[a-z][a-z-]*", word)])
        except FlannelUdpError as error:
            pytest.fail(f"flannel-udp {words}: {error}")


@DOCUMENTS
def test_every_flag_exists(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {f"--{flag.name}" for flag in options.FLAGS}
    for words in ("config get", "config set", "config check", "leases", "status", "lab up", "lab exec", "lab packet",
                  "cleanup", "mk-docker-opts", "cni install"):
        with contextlib.suppress(SystemExit):
            cli.main([*words.split(), "--help"])
    known |= set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    told = re.findall(r"`(--[a-z][a-z0-9-]*)", document.read_text())
    for command in commands(document):
        if command.text.startswith("flannel-udp"):
            told += re.findall(r" (--[a-z][a-z0-9-]*)", command.text.split(" -- ")[0])
    assert {flag for flag in told if flag.startswith("--")} - {"--x"} <= known  # x: any


def help_of(*words: str) -> bool:
    """Whether the command line knows these words."""
    try:
        cli.main([*words, "--help"])
    except SystemExit as end:
        return end.code == 0
    return False


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {target for document in (README, TUTORIAL)
            for target in re.findall(r"(?:`|\$ )make ([a-z]+)", document.read_text())}
    assert {"demo", "test"} <= told <= targets


def headings(document: Path) -> set[str]:
    """The headings of a document as links name them: lower case, hyphens for spaces, no other marks."""
    found = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in found}


def test_every_sentence_of_the_cni_specification_has_its_test() -> None:
    """The last column of the table names tests that there are."""
    (section,) = re.findall(r"^### The specification, sentence by sentence$(.*)", COMPATIBILITY.read_text(),
                            re.MULTILINE | re.DOTALL)  # fmt: skip
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        (named,) = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
        assert f"\ndef {named[1]}(" in (ROOT / "tests" / named[0]).read_text(), named


@DOCUMENTS
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        file, _, heading = target.partition("#")
        if not target.startswith("https://"):
            there = document.parent / file if file else document
            assert there.exists(), target
            assert not heading or heading in headings(there), target
    for path in re.findall(r"`((?:src|docs|flannel_udp|tests|benchmarks)/[\w./-]*)`", document.read_text()):
        assert (ROOT / path).exists(), path


def test_the_drop_table_is_the_codes() -> None:
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", PLAN.read_text(), re.MULTILINE)
    assert table == [tuple(outcome) for outcome in OUTCOMES]


def test_the_readme_says_what_is_not_there_yet() -> None:
    """The section that a refused flag of `run` sends its user to."""
    (section,) = re.findall(r"^## Not yet$(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    for missing in ("Kubernetes", "wireguard"):
        assert missing in section, missing
