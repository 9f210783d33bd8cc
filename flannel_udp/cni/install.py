"""Puts the plugin where container runtimes look for it: a launcher, and a network that calls it."""

from __future__ import annotations

import compileall
import json
import sys
from pathlib import Path

from flannel_udp.cni.call import VERSIONS
from flannel_udp.errors import PluginError, UsageError
from flannel_udp.subnet_env import write_whole

PLUGIN = "flannel"  # what networks made for flannel call
CONFLIST = "10-flannel.conflist"  # flannel's, so that it replaces that
SAVED = "flannel.saved"
# Our choice: what the plugins of Debian and containerd of this age all know.
DEFAULT_VERSION = "1.0.0"
MARK = "# flannel-udp's CNI plugin"
_SHEBANG_MOST = 127  # of Linux before 5.1, whose kernels cut a longer first line

# -I and -S: neither the user's environment nor site-packages, whose look-up costs more than a whole call.
_LAUNCHER = """{interpreter}
{mark}, made by `flannel-udp cni install`. It runs the installed package: install again when that has moved.
import gc
import sys

gc.disable()  # the process ends before there is anything to collect
sys.path.append({folder!r})
try:
    from flannel_udp.cni.main import main
except ImportError as error:
    import json

    print(json.dumps({{"cniVersion": "1.0.0", "code": 999, "msg": "flannel-udp is not where it was installed from",
                      "details": f"{{error}}: run flannel-udp cni install again"}}))
    sys.exit(1)
main()
"""


def launcher() -> str:
    """The plugin's program: a few lines that start this package by this interpreter."""
    folder = str(Path(__file__).resolve().parents[2])
    return _LAUNCHER.format(interpreter=_interpreter(sys.executable), mark=MARK, folder=folder)


def _interpreter(python: str) -> str:
    line = f"#!{python} -IS"
    if len(line) <= _SHEBANG_MOST and not any(letter.isspace() for letter in python):
        return line
    # The kernel would not find it: the shell reads the second line, Python takes it for a string that nobody needs.
    quoted = python.replace("'", "'\\''")
    return f"#!/bin/sh\n'''exec' '{quoted}' -IS \"$0\" \"$@\"\n' '''"


def conflist(version: str = DEFAULT_VERSION) -> dict[str, object]:
    """flannel's usual network: the plugin, then port mappings.

    forceAddress is ours: without it the bridge plugin refuses all containers once the node's subnet has changed.
    """
    delegate = {"hairpinMode": True, "isDefaultGateway": True, "forceAddress": True}
    return {
        "name": "cbr0",
        "cniVersion": version,
        "plugins": [
            {"type": PLUGIN, "delegate": delegate},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def install(bin_dir: Path, conf_dir: Path | None = None, version: str = DEFAULT_VERSION) -> list[str]:
    """Put the plugin into `bin_dir` and, if asked, its network into `conf_dir`; what was done, a line each.

    Another plugin of that name is kept beside ours; a network that differs is the administrator's: PluginError. Files
    appear whole or not at all.
    """
    if version not in VERSIONS:
        raise UsageError(f"--cni-version {version}: expected one of {', '.join(VERSIONS)}")
    network = json.dumps(conflist(version), indent=2) + "\n"
    try:
        there = conf_dir / CONFLIST if conf_dir else None
        if there and there.exists() and there.read_bytes() != network.encode():
            raise PluginError(f"{there} is there and differs: move it away, or leave --conf-dir out; nothing was done")
        done = install_plugin(bin_dir)
        compileall.compile_dir(Path(__file__).parents[1], quiet=2)  # who runs it may not be able to write there
        if there:
            write_whole(there, network)
            done.append(f"{there}: network cbr0, CNI {version}")
    except OSError as error:
        raise PluginError(f"{error.filename or bin_dir}: {error.strerror}: the plugin is not installed") from None
    return done


def install_plugin(bin_dir: Path) -> list[str]:
    """Put the plugin alone into `bin_dir`: OSError, or PluginError, when it stays as it was there."""
    plugin, done = bin_dir / PLUGIN, []
    if plugin.exists() and MARK.encode() not in plugin.read_bytes():
        saved = bin_dir / SAVED
        if saved.exists():
            raise PluginError(f"{plugin} is not ours, and {saved} is taken: move one of them away; nothing was done")
        saved.hardlink_to(plugin)
        done.append(f"{saved}: the plugin that was there")
    write_whole(plugin, launcher(), mode=0o755)
    return [*done, f"{plugin}: the CNI plugin"]
