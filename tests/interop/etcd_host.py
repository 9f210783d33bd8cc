"""etcd on a host of a topology: one member or three, each with an address of its own on the underlay."""

from __future__ import annotations

import contextlib
import shutil
import urllib.error
from typing import TYPE_CHECKING, Any

from ..conftest import wait_until
from ..netns.topology import UNDERLAY, Node
from .etcd_cluster import Cluster, Member, b64

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "/coreos.com/network"
CONFIG = b'{"Network": "10.5.0.0/16"}'
ROOT = {"name": "root", "password": "secret"}
NODE = {"name": "node", "password": "pass"}
_FIRST = 101  # the host part of the first member's address
_QUOTA = 16 << 20
_TOKEN_SECONDS = 3


class Store(Cluster):
    """etcd's members on one host. Calls go to whichever member answers, as root where users are asked for."""

    def __init__(self, node: Node, folder: Path, size: int) -> None:
        self.node = node
        self._token = ""
        self._guarded = False
        addresses = [f"{UNDERLAY[_FIRST + number]}" for number in range(size)]
        node.ip(*(f"addr add {address}/24 dev eth0" for address in addresses))
        super().__init__("3.7", addresses, folder, None, [
            "--quota-backend-bytes", f"{_QUOTA}", "--auth-token-ttl", f"{_TOKEN_SECONDS}"])

    @property
    def url(self) -> str:
        """Where the first member serves."""
        return f"http://{self.members[0].address}:2379"

    def start(self) -> None:
        for member in self.members:
            self.start_member(member)
        self.await_answer()
        self.put(f"{PREFIX}/config", CONFIG)

    def start_member(self, member: Member) -> None:
        with self.node.entered():
            member.start()

    def restart(self, member: Member) -> None:
        """End it as an administrator would, and start it again."""
        assert member.process
        member.process.terminate()
        member.process.wait()
        self.start_member(member)

    def empty(self) -> None:
        """Lose everything, as a machine does that is made anew; the configuration is written again."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.log.with_suffix(""))
        self.start()

    def await_answer(self) -> None:
        """Wait until it serves."""
        wait_until(self._answers, "etcd answers")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.call("kv/range", key=b64("/"))
            return True
        return False

    def call(self, method: str, **request: object) -> dict[str, Any]:
        failure: Exception = ConnectionError("no member runs")
        with self.node.entered():
            for member in self.members:
                if member.process is None:
                    continue
                try:
                    return self._call_as_root(member, method, request)
                except OSError as error:
                    failure = error
        raise failure

    def _call_as_root(self, member: Member, method: str, request: dict[str, object]) -> dict[str, Any]:
        try:
            return self.call_at(member, method, request, self._token)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            if not self._guarded or not any(words in text for words in ("token", "user name is empty", "auth store")):
                raise OSError(f"{method}: {text}") from None
        self._token = self.call_at(member, "auth/authenticate", dict(ROOT))["token"]
        return self.call_at(member, method, request, self._token)

    def delete(self, key: str | bytes) -> None:
        self.call("kv/deleterange", key=b64(key))

    def leader(self) -> Member:
        """The member that leads; all run."""
        def of_all() -> Member | None:
            with self.node.entered(), contextlib.suppress(OSError):
                for member in self.members:
                    told = self.call_at(member, "maintenance/status", {}, self._token)
                    if told["leader"] == told["header"]["member_id"]:
                        return member
            return None

        found = wait_until(of_all, "a member leads")
        assert found
        return found

    def guard(self) -> None:
        """Ask for users from now on: root, and one for the nodes, whose tokens end when unused for some seconds."""
        for user in (ROOT, NODE):
            self.call("auth/user/add", **user)
        self.call("auth/user/grant", user="root", role="root")
        self.call("auth/role/add", name="node")
        self.call("auth/role/grant", name="node", perm={
            "permType": "READWRITE", "key": b64(f"{PREFIX}/"), "range_end": b64(f"{PREFIX}0")})
        self.call("auth/user/grant", user="node", role="node")
        self.call("auth/enable")
        self._guarded = True

    def forget_tokens(self) -> None:
        """Have the nodes' tokens forgotten, which a changed password does, if only into itself."""
        self.call("auth/user/changepw", **NODE)

    def fill(self) -> None:
        """Write until the space quota is reached."""
        def write() -> bool:
            try:
                self.put("/heap", bytes(1 << 20))
            except OSError as error:
                return "space exceeded" in str(error)
            return False

        wait_until(write, "the store is full")

    def make_room(self) -> None:
        """What etcd's manual tells of an alarm for space."""
        self.delete("/heap")
        self.compact()
        self.call("maintenance/defragment")
        for alarm in self.call("maintenance/alarm", action="GET").get("alarms", []):
            self.call("maintenance/alarm", **{**alarm, "action": "DEACTIVATE"})

    def compact(self) -> None:
        """Forget the history up to now."""
        revision = self.call("kv/range", key=b64("/"))["header"]["revision"]
        self.call("kv/compaction", revision=revision, physical=True)


@contextlib.contextmanager
def cut_off(node: Node, store: Store, *directions: str) -> Iterator[None]:
    """Drop what passes between a node and etcd, "to" it and "from" it, for the block."""
    members = ",".join(member.address for member in store.members)
    rules = {"to": f"add rule ip faults out ip daddr {{ {members} }} drop",
             "from": f"add rule ip faults in ip saddr {{ {members} }} drop"}
    node.run("nft", "-f", "-", text="\n".join([
        "add table ip faults",
        "add chain ip faults out { type filter hook output priority 0; }",
        "add chain ip faults in { type filter hook input priority 0; }",
        *(rules[direction] for direction in directions or rules),
    ]) + "\n")
    try:
        yield
    finally:
        node.run("nft", "delete", "table", "ip", "faults")
