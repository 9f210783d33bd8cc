"""Pods plugged in by the CNI plugin, as a container runtime does it: for labs that are started with --cni.

Everything lies in the node's own /run/cni: the plugin (bin), its records (flannel), the addresses that host-local has
given (networks), and what a runtime keeps of each ADD, the configuration and the result. The pod's namespace has a name
in the node's /run/netns. All of it goes with the node.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from flannel_udp.cni.install import PLUGIN, conflist, install_plugin
from flannel_udp.errors import LabError
from flannel_udp.lab import layout, namespace
from flannel_udp.lab.namespace import Namespaces

FOLDER = Path("/run/cni")
NETNS = Path("/run/netns/pod")
NETWORK = FOLDER / "network.json"
RESULT = FOLDER / "result.json"
RECORDS = FOLDER / "flannel"
USUAL_FOLDERS = "/opt/cni/bin:/usr/lib/cni"  # of Kubernetes' packages; of Debian's
NEEDED = ("bridge", "host-local")


def folders() -> str:
    """Where this machine has the plugins that ours delegates to: CNI_PATH, or the usual places."""
    path = os.environ.get("CNI_PATH") or USUAL_FOLDERS
    missing = [name for name in NEEDED if not any(Path(folder, name).is_file() for folder in path.split(":") if folder)]
    if missing:
        raise LabError(f"--cni needs the CNI plugins {' and '.join(missing)}, which are not in {path}: apt-get install "
                       "containernetworking-plugins, or name their folder in CNI_PATH")  # fmt: skip
    return path


def network(node: str) -> dict[str, Any]:
    """The network that a runtime on a node plugs pods into."""
    usual = conflist()
    # Pods of a lab have nowhere to go but other pods, and those are to see who it is that comes.
    delegate = {"bridge": layout.POD_BRIDGE, "isDefaultGateway": True, "ipMasq": False}
    return {"cniVersion": usual["cniVersion"], "name": node, "type": PLUGIN, "dataDir": str(RECORDS),
            "delegate": delegate, "ipam": {"dataDir": str(FOLDER / "networks")}}  # fmt: skip


def plug(node: str, plugins: str, pod: Namespaces) -> dict[str, Any]:
    """Plug a pod in; what the plugin answers. To be called at the node."""
    install_plugin(FOLDER / "bin")
    NETNS.parent.mkdir(exist_ok=True)
    NETNS.touch()
    namespace.mount(f"/proc/self/fd/{pod.descriptors['net']}", str(NETNS), flags=namespace.MS_BIND)
    said = network(node)
    done = call("ADD", node, plugins, said)
    if done.returncode:
        raise LabError(f"{node}: the CNI plugin cannot plug the pod in: {done.stdout}{done.stderr}".rstrip())
    NETWORK.write_text(json.dumps(said, indent=2))
    RESULT.write_text(done.stdout)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def kept(node: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was said to the plugin, what it said to the plugin that it delegates to, and the result; at the node."""
    said, delegated, result = (json.loads(path.read_text()) for path in (NETWORK, RECORDS / f"{node}-pod", RESULT))
    return said, delegated, result


def call(verb: str, node: str, plugins: str, said: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Call the plugin for a node's pod, at the node."""
    environment = {**os.environ, **variables(verb, node, plugins)}
    return subprocess.run([FOLDER / "bin" / PLUGIN], input=json.dumps(said), env=environment, capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip


def variables(verb: str, node: str, plugins: str) -> dict[str, str]:
    """What the specification has a runtime say in the environment."""
    return {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"{node}-pod", "CNI_NETNS": str(NETNS),
            "CNI_IFNAME": layout.EXTERNAL_INTERFACE, "CNI_PATH": plugins}  # fmt: skip
