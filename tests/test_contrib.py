"""contrib/ and the operator's guide hold true: systemd takes the unit, what is watched exists, alerts are explained."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_udp import options, paths

from .conftest import require_commands
from .control.test_metrics import families, figures

ROOT = Path(__file__).parent.parent
CONTRIB = ROOT / "contrib"
GUIDE = (ROOT / "docs" / "operations.md").read_text()
UNIT = CONTRIB / "systemd" / "flannel-udp.service"
DASHBOARD: dict[str, Any] = json.loads((CONTRIB / "grafana" / "flannel-udp.json").read_text())
ALERTS = yaml.safe_load((CONTRIB / "prometheus" / "alerts.yml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPOSED = {sample.name: set(sample.labels) for family in families(figures()).values() for sample in family.samples} | {
    "flannel_udp_dropped_packets_total": {"direction", "family", "reason"}, "up": set()}
OF_PROMETHEUS = {"job", "instance", "alertname"}


def settings(section: str) -> dict[str, list[str]]:
    """What a section of the unit sets, each key with all its values."""
    found: dict[str, list[str]] = {}
    text = UNIT.read_text().partition(f"[{section}]\n")[2].partition("\n[")[0]
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    require_commands("systemd-analyze")
    command = settings("Service")["ExecStart"][0].split()[0]
    here = Path(sys.executable).with_name("flannel-udp")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(command, str(here)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_gives_one_capability_and_what_the_program_has_need_of() -> None:
    service = settings("Service")
    assert (service["Type"], service["NotifyAccess"]) == (["notify"], ["main"])
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ["CAP_NET_ADMIN"]
    assert service["DeviceAllow"] == ["/dev/net/tun rw"]
    assert float(service["WatchdogSec"][0]) >= 3
    folders = {f"/run/{name}" for name in service["RuntimeDirectory"][0].split()}
    folders |= {f"/var/lib/{name}" for name in service["StateDirectory"]}
    assert folders == {str(paths.DEFAULT_RUN_DIR), str(paths.DEFAULT_STATE_DIR),
                       str(paths.DEFAULT_SUBNET_FILE.parent)}
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert settings("Unit")["Conflicts"] == ["flanneld.service"]


def test_variables_that_are_named_exist() -> None:
    known = {flag.variable for flag in options.FLAGS}
    for text in (GUIDE, UNIT.read_text()):
        assert set(re.findall(r"FLANNELD_[A-Z_]*[A-Z]", text)) <= known


def test_the_image_is_made_of_what_is_here() -> None:
    """A builder that may pull a base image is not everywhere; its second stage runs in test_packaging.py."""
    text = (CONTRIB / "container" / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    sources = {name for names in copied for name in names}
    assert {"pyproject.toml", "setup.py", "src", "flannel_udp"} <= sources
    assert all((ROOT / name).exists() for name in sources)
    sent = (CONTRIB / "container" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == sources
    assert 'ENTRYPOINT ["flannel-udp", "run"]' in text
    assert "--cap-drop ALL --cap-add NET_ADMIN --device /dev/net/tun" in text


def expressions() -> Iterator[tuple[str, str]]:
    """What Prometheus is asked, and by whom."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"][1:]:
        yield variable["name"], variable["definition"]
    for line in re.findall(r"  (.*flannel_udp_\w+.*)$", GUIDE, re.MULTILINE):
        yield "the guide", line


@pytest.mark.parametrize(("who", "expression"), list(expressions()))
def test_every_metric_and_label_that_is_asked_for_exists(who: str, expression: str) -> None:
    named = re.findall(r"\b((?:flannel_udp|process)_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert named, who
    for name, selectors in named:
        assert name in EXPOSED, f"{who} asks for {name}"
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
        assert asked <= EXPOSED[name] | OF_PROMETHEUS, f"{who}: {name} has no label {asked - EXPOSED[name]}"
    assert expression.count("(") == expression.count(")")


def test_reasons_and_states_that_are_asked_for_exist() -> None:
    values = {value for family in families(figures()).values() for sample in family.samples
              for value in sample.labels.values()}
    for who, expression in expressions():
        for pattern in re.findall(r'(?:reason|state|direction|what)=~?"([^"$]*)"', expression):
            assert set(pattern.split("|")) <= values, f"{who}: {pattern}"


def test_every_alert_is_explained_and_no_other() -> None:
    section = GUIDE.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def test_every_metric_of_the_program_is_watched_or_documented() -> None:
    for name in EXPOSED.keys() - {"up"}:
        assert name in GUIDE or name.startswith("process_")


def test_what_it_says_is_what_it_says() -> None:
    """The guide's messages stand in the source, but for line breaks of the source's own."""
    section = GUIDE.partition("\n## What it says, and what to do\n")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(messages) > 20
    source = "".join(file.read_text() for file in (ROOT / "flannel_udp").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for message in messages:
        assert message in source, message
