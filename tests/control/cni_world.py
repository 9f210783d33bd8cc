"""What tests of the CNI plugin share: the installed plugin, run as runtimes run it, and stand-ins for what it calls."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flannel_udp.cni.install import install_plugin

if TYPE_CHECKING:
    from pathlib import Path

SUBNET_ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
DUAL_ENV = ("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\n"
            "FLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n")
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/nowhere"}],
    "ips": [{"address": "10.5.52.2/24", "gateway": "10.5.52.1", "interface": 1}],
    "routes": [{"dst": "10.5.0.0/16"}],
    "dns": {},
}
OWNER = "flannel-udp/ifname"

# It notes how it was called, then does what the test wrote down for it and this verb.
_STAND_IN = """#!/bin/sh
name=${{0##*/}} line='%s\\t%s\\t%s\\t%s\\t%s\\t%s\\n'
printf "$line" "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$CNI_NETNS" "$(cat)" >>{root}/calls
part={root}/$name.$CNI_COMMAND
test -e "$part" && . "$part"
test "$CNI_COMMAND" != ADD || cat {root}/result
"""


@dataclass(frozen=True)
class Delegated:
    """One call of a stand-in."""

    plugin: str
    verb: str
    container: str
    interface: str
    netns: str
    said: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """What came of a call of the plugin."""

    status: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.stdout.count("\n") == 1, self
        answer: dict[str, Any] = json.loads(self.stdout)
        return answer

    def succeeded(self) -> dict[str, Any]:
        """See that it did, and give its answer; empty where there is none, not even an empty one."""
        assert self.status == 0, self
        assert self.stdout != "{}\n"
        return self.answer if self.stdout else {}

    def failed(self, code: int, *words: str) -> None:
        """See that it ended as the specification wants it: one error object, one line, and nothing of Python's."""
        assert self.status == 1, self
        told = self.answer
        assert told["code"] == code, self
        assert set(told) - {"details"} == {"cniVersion", "code", "msg"}
        assert "Traceback" not in self.stderr
        text = f"{told['msg']}: {told.get('details', '')}"
        assert all(word in text for word in words), (words, text)
        assert "\n" not in told["msg"]


class World:
    """A node as the plugin sees it: subnet.env, dataDir, and a folder with it, bridge and host-local."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = root / "subnet.env"
        self.data = root / "data"
        self.bin = root / "bin"
        self.socket = root / "control.sock"
        self.env.write_text(SUBNET_ENV)
        (root / "result").write_text(json.dumps(RESULT))
        install_plugin(self.bin)
        for name in ("bridge", "host-local", "other"):
            self.stand_in(name)

    def stand_in(self, name: str) -> None:
        """Put a stand-in for another plugin beside ours."""
        plugin = self.bin / name
        plugin.write_text(_STAND_IN.format(root=self.root))
        plugin.chmod(0o755)

    def has(self, name: str, verb: str, script: str) -> None:
        """Have a stand-in do something of its own."""
        (self.root / f"{name}.{verb}").write_text(script)

    @staticmethod
    def until(gate: Path) -> str:
        """For a stand-in's script: wait for a file, but not for ever."""
        return f"n=0; until test -e {gate} || test $n = 6000; do n=$((n+1)); sleep 0.01; done\n"

    def fails(self, name: str, verb: str, code: int = 999, message: str = "no luck") -> None:
        """Have a stand-in fail as the specification wants it."""
        error = json.dumps({"cniVersion": "1.1.0", "code": code, "msg": message})
        self.has(name, verb, f"echo '{error}'; exit 1\n")

    def network(self, **changes: object) -> dict[str, Any]:
        """The configuration that a runtime says."""
        usual = {"cniVersion": "1.1.0", "name": "net1", "type": "flannel", "subnetFile": str(self.env),
                 "dataDir": str(self.data), "controlSocket": str(self.socket)}  # fmt: skip
        return {**usual, **changes}

    def environment(self, verb: str, changes: dict[str, str | None]) -> dict[str, str]:
        """What a runtime says in the environment; None leaves a variable out."""
        usual = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/nowhere", "CNI_IFNAME": "eth0",
                 "CNI_PATH": f"/nowhere:{self.bin}", "PATH": os.environ["PATH"]}  # fmt: skip
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def call(self, verb: str, said: dict[str, Any] | bytes | None = None, **changes: str | None) -> Done:
        """Call the plugin to its end; `changes` of the environment without their CNI_."""
        with self.start(verb, said, **changes) as process:
            out, err = process.communicate(timeout=60)
        return Done(process.returncode, out.decode(), err.decode())

    def start(
        self, verb: str, said: dict[str, Any] | bytes | None = None, **changes: str | None
    ) -> subprocess.Popen[bytes]:
        """Call the plugin, and do not wait for its end."""
        data = said if isinstance(said, bytes) else json.dumps(self.network() if said is None else said).encode()
        environment = self.environment(verb, {f"CNI_{name}": value for name, value in changes.items()})
        file = self.root / "stdin"
        file.write_bytes(data)
        with file.open("rb") as stdin:
            return subprocess.Popen([self.bin / "flannel"], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    env=environment)  # fmt: skip

    def calls(self) -> list[Delegated]:
        """What stand-ins were called for since this was asked last."""
        file = self.root / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        found = []
        for line in lines:
            plugin, verb, container, interface, netns, said = line.split("\t")
            found.append(Delegated(plugin, verb, container, interface, netns, json.loads(said)))
        return found

    def verbs(self) -> list[tuple[str, str]]:
        """The same, told shorter."""
        return [(one.plugin, one.verb) for one in self.calls()]

    def records(self) -> set[str]:
        """The files in dataDir, but for the lock."""
        return {path.name for path in self.data.iterdir()} - {".lock"} if self.data.exists() else set()
