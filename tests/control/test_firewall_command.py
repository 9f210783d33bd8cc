"""firewall/command.py against programs of our own."""

from pathlib import Path

import pytest

from flannel_udp.errors import FirewallError
from flannel_udp.firewall import command


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "PATH", f"{tmp_path}:{command.PATH}")
    made = tmp_path / "firewall-of-the-test"
    made.touch(mode=0o755)
    return made


def test_bytes_that_are_no_text_are_passed_on_escaped(program: Path) -> None:
    program.write_text("#!/bin/sh\nprintf 'B\\374ro'\n")
    assert command.run(program.name) == "B\\xfcro"


def test_a_refusal_is_the_first_line_that_tells_something(program: Path) -> None:
    program.write_text("#!/bin/sh\nprintf '# a hint\\n\\nno \\374 there\\nmore\\n' >&2; exit 3\n")
    with pytest.raises(FirewallError, match=r"^firewall-of-the-test: no \\xfc there$"):
        command.run(program.name)
    assert command.answer(program.name) == ""
