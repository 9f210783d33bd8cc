"""The faults. Each breaks something, lets it last and mends it; a change after that must be heard of within a limit."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final

from ..conftest import wait_until
from ..interop.etcd_host import CONFIG, PREFIX, cut_off
from . import rubbish
from .world import STRANGER

if TYPE_CHECKING:
    from collections.abc import Callable

    from .world import Kind, World

AFTER_RESTART: Final = 2.0
AFTER_SILENCE: Final = 10.0


@dataclass(frozen=True)
class Fault:
    """A kind of fault, the worlds that have it, and the seconds within which a change is to be heard of after it."""

    strike: Callable[[World, float], None]
    worlds: tuple[Kind, ...]
    limit: float

    @property
    def name(self) -> str:
        return self.strike.__name__.replace("_", " ")


def etcd_killed(world: World, seconds: float) -> None:
    world.store.kill()
    world.hold(seconds)
    for member in world.store.members:
        world.store.start_member(member)


def etcd_restarted(world: World, seconds: float) -> None:  # noqa: ARG001 as long as it takes
    for member in world.store.members:
        world.store.restart(member)
        world.store.await_answer()


def etcd_frozen(world: World, seconds: float) -> None:
    for member in world.store.members:
        member.freeze()
    world.hold(seconds)
    for member in world.store.members:
        member.thaw()


def nodes_cut_off(world: World, seconds: float) -> None:
    with contextlib.ExitStack() as cuts:
        for daemon in world.daemons:
            cuts.enter_context(cut_off(daemon.node, world.store))
        world.hold(seconds)


def one_node_cut_off(world: World, seconds: float) -> None:
    """With changes meanwhile, which it must catch up with."""
    with cut_off(random.choice(world.daemons).node, world.store):
        subnet = world.unused()
        world.put_stranger(subnet)
        world.hold(seconds)
        world.remove(subnet)


def one_way_cut_off(world: World, seconds: float) -> None:
    with cut_off(random.choice(world.daemons).node, world.store, random.choice(["to", "from"])):
        world.hold(seconds)


def history_compacted(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    _come_and_go(world)
    world.store.compact()


def history_compacted_while_cut_off(world: World, seconds: float) -> None:
    with cut_off(random.choice(world.daemons).node, world.store):
        _come_and_go(world)
        world.store.compact()
        world.hold(seconds)


def _come_and_go(world: World) -> None:
    for _ in range(10):
        subnet = world.unused()
        world.put_stranger(subnet)
        world.remove(subnet)


def space_quota_filled(world: World, seconds: float) -> None:
    world.store.fill()
    world.hold(seconds)
    world.store.make_room()


def store_made_anew(world: World, seconds: float) -> None:
    """All data lost: the nodes take their leases again, and keep each other's routes meanwhile."""
    world.store.kill()
    world.hold(seconds)
    world.store.empty()
    wait_until(lambda: world.leases().items() >= world.standing.items(), "all have their leases again")


def newcomer_while_away(world: World, seconds: float) -> None:
    world.store.kill()
    with world.newcomer():
        world.hold(seconds)
        for member in world.store.members:
            world.store.start_member(member)
    world.store.await_answer()


def follower_killed(world: World, seconds: float) -> None:
    leader = world.store.leader()
    follower = random.choice([member for member in world.store.members if member is not leader])
    follower.kill()
    world.hold(seconds)
    world.store.start_member(follower)


def leader_killed(world: World, seconds: float) -> None:
    leader = world.store.leader()
    leader.kill()
    world.hold(seconds)
    world.store.start_member(leader)


def leader_killed_and_not_back(world: World, seconds: float) -> None:
    """A change is heard of while it is away; it comes back afterwards."""
    leader = world.store.leader()
    leader.kill()
    world.seconds_to_apply()
    world.hold(seconds)
    world.store.start_member(leader)


def leader_frozen(world: World, seconds: float) -> None:
    leader = world.store.leader()
    leader.freeze()
    world.hold(seconds)
    leader.thaw()


def majority_killed(world: World, seconds: float) -> None:
    two = random.sample(world.store.members, 2)
    for member in two:
        member.kill()
    world.hold(seconds)
    for member in two:
        world.store.start_member(member)


def tokens_forgotten(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    world.store.forget_tokens()


def tokens_expired(world: World, seconds: float) -> None:
    """Unused for longer than a token lives, then the watch ends."""
    world.hold(max(seconds, 4.5))
    world.store.restart(world.store.members[0])


def proxy_slow(world: World, seconds: float) -> None:
    assert world.proxy
    world.proxy.delay = random.uniform(0.2, 1.5)
    subnet = world.unused()
    world.put_stranger(subnet)
    world.hold(seconds)
    world.remove(subnet)
    world.proxy.delay = 0.0


def proxy_loses_answers(world: World, seconds: float) -> None:
    assert world.proxy
    world.proxy.mute = True
    world.hold(seconds)
    world.proxy.mute = False
    world.proxy.cut()


def proxy_hangs_up(world: World, seconds: float) -> None:
    assert world.proxy
    world.proxy.closed = True
    world.proxy.cut()
    world.hold(seconds)
    world.proxy.closed = False


def rubbish_keys(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    _written_and_gone(world, [(rubbish.SUBNETS + name, b'{"PublicIP":"192.0.2.77"}')
                              for name in rubbish.KEYS.values()])


def rubbish_values(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    subnet = world.unused().replace("/", "-").encode()
    for value in rubbish.VALUES.values():
        _written_and_gone(world, [(rubbish.SUBNETS + subnet, value)])


def rubbish_on_a_nodes_key(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    """Its owner writes it anew."""
    number = random.randrange(len(world.daemons))
    key, address = world.own_key(number), world.daemons[number].node.address
    world.store.put(key, random.choice(list(rubbish.VALUES.values())[:10]))
    wait_until(lambda: f"{address}".encode() in world.store.stored(key)[key]["value"], "its owner wrote it anew")


def leases_over_a_nodes_subnet(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    """A shorter and a longer one, of a stranger: what stood first stays."""
    subnet = IPv4Network(random.choice(list(world.standing)))
    for other in (subnet.supernet(), subnet.supernet(new_prefix=16), next(subnet.subnets())):
        _written_and_gone(world, [(f"{PREFIX}/subnets/{other}".replace(f"/{other.prefixlen}", f"-{other.prefixlen}")
                                   .encode(), f'{{"PublicIP":"{STRANGER}"}}'.encode())])


def rubbish_for_a_configuration(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    for text in rubbish.CONFIGS.values():
        world.store.put(f"{PREFIX}/config", text)
        world.seconds_to_apply()
    world.store.put(f"{PREFIX}/config", CONFIG)


def configuration_deleted(world: World, seconds: float) -> None:  # noqa: ARG001 at once
    world.store.delete(f"{PREFIX}/config")
    world.seconds_to_apply()
    world.store.put(f"{PREFIX}/config", CONFIG)


def _written_and_gone(world: World, pairs: list[tuple[bytes, bytes]]) -> None:
    for key, value in pairs:
        world.store.put(key, value)
    world.seconds_to_apply()  # whoever heard of this has heard of those
    for key, _ in pairs:
        world.store.delete(key)


RUBBISH = (
    Fault(rubbish_keys, ("one",), AFTER_RESTART),
    Fault(rubbish_values, ("one",), AFTER_RESTART),
    Fault(rubbish_on_a_nodes_key, ("one",), AFTER_RESTART),
    Fault(leases_over_a_nodes_subnet, ("one",), AFTER_RESTART),
    Fault(rubbish_for_a_configuration, ("one",), AFTER_RESTART),
    Fault(configuration_deleted, ("one",), AFTER_RESTART),
)

FAULTS = (
    Fault(etcd_killed, ("one", "three", "slow", "users"), AFTER_RESTART),
    Fault(etcd_restarted, ("one", "three"), AFTER_RESTART),
    Fault(etcd_frozen, ("one", "three"), AFTER_SILENCE),
    Fault(nodes_cut_off, ("one", "three"), AFTER_SILENCE),
    Fault(one_node_cut_off, ("one", "three"), AFTER_SILENCE),
    Fault(one_way_cut_off, ("one",), AFTER_SILENCE),
    Fault(history_compacted, ("one",), AFTER_RESTART),
    Fault(history_compacted_while_cut_off, ("one",), AFTER_SILENCE),
    Fault(space_quota_filled, ("one",), AFTER_RESTART),
    Fault(store_made_anew, ("one",), AFTER_RESTART),
    Fault(newcomer_while_away, ("one",), AFTER_RESTART),
    *RUBBISH,
    Fault(follower_killed, ("three",), AFTER_RESTART),
    Fault(leader_killed, ("three",), AFTER_RESTART),
    Fault(leader_killed_and_not_back, ("three",), AFTER_RESTART),
    Fault(leader_frozen, ("three",), AFTER_SILENCE),
    Fault(majority_killed, ("three",), AFTER_RESTART),
    Fault(tokens_forgotten, ("users",), AFTER_RESTART),
    Fault(tokens_expired, ("users",), AFTER_RESTART),
    Fault(proxy_slow, ("slow",), AFTER_SILENCE),
    Fault(proxy_loses_answers, ("slow",), AFTER_SILENCE),
    Fault(proxy_hangs_up, ("slow",), AFTER_RESTART),
)
