"""Offloads: what the kernel may do for the data plane at its two doors, as values: granted, refused, given up.

    tun_*         frames of up to 64 KiB and unfinished checksums, out of the TUN device and into it
    udp_segment   a message that the kernel or the card cuts into datagrams
    udp_gro       datagrams of one sender that arrive as one message
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TUN_OFFLOADS = ("tun_csum", "tun_tso4", "tun_tso6", "tun_ecn", "tun_uso4", "tun_uso6")
UDP_OFFLOADS = ("udp_segment", "udp_gro")


@dataclass(frozen=True)
class Refusal:
    """What the kernel refused when it was asked, and what it said."""

    offloads: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Granted:
    """What a door was granted, and what it was refused; what is in neither was not asked for."""

    offloads: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def report(doors: Iterable[Granted], given_up: Mapping[str, str]) -> list[dict[str, str]]:
    """A line per offload for the status; `given_up`: what the kernel granted and then did not do, and why."""
    told = dict.fromkeys((*TUN_OFFLOADS, *UDP_OFFLOADS), ("off", "switched off by an option"))
    for door in doors:
        told |= dict.fromkeys(door.offloads, ("granted", ""))
        for refusal in door.refusals:
            told |= dict.fromkeys(refusal.offloads, ("refused", refusal.reason))
    told |= {name: ("given up", reason) for name, reason in given_up.items()}
    return [{"offload": name, "state": state, "reason": reason} for name, (state, reason) in told.items()]
