"""What is measured: rows of (link mode, load, contenders), and the order in which one run goes through them."""

from collections.abc import Iterator
from dataclasses import dataclass

VETH, VXLAN, FLANNEL, OURS = "veth", "vxlan", "flannel", "flannel_udp"
BUSY = "flannel_udp:busy-poll=50"
ALL, NO_TUNNEL, NONE = "all", "no-tunnel", "none"


@dataclass(frozen=True)
class Row:
    """One load in one link mode, with the contenders that are compared under it."""

    mode: str
    load: str
    contenders: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A ratio of `ours` to `rival`, with what it must reach and what it should."""

    name: str
    mode: str
    load: str
    value: str
    ours: str
    rival: str
    floor: float
    aim: float
    smaller_is_better: bool = False

    def verdict(self, ratio: float) -> str:
        """Say where a measured ratio stands."""
        sign = -1 if self.smaller_is_better else 1
        if ratio * sign >= self.aim * sign:
            return "aim reached"
        return "floor reached" if ratio * sign >= self.floor * sign else "missed"


TARGETS = (
    Target("TCP 1 flow", ALL, "tcp-1", "gbps", OURS, FLANNEL, 10, 20),
    Target("TCP 1 flow", ALL, "tcp-1", "gbps", OURS, VXLAN, 0.7, 0.85),
    Target("TCP 1 flow, no segmentation on the link", NONE, "tcp-1", "gbps", OURS, VXLAN, 0.8, 1.0),
    Target("UDP 64 bytes, received pps", ALL, "udp-64", "pps", OURS, VXLAN, 1.8, 3),
    Target("UDP 64 bytes, received pps", ALL, "udp-64", "pps", OURS, FLANNEL, 5, 8),
    Target("UDP 1400 bytes, received pps", ALL, "udp-1400", "pps", OURS, VXLAN, 1.0, 1.5),
    Target("UDP request-response p50", ALL, "ask", "p50", OURS, FLANNEL, 1.0, 0.7, True),
    Target("the same, ends on different processors", ALL, "ask-apart", "p50", OURS, FLANNEL, 1.0, 0.7, True),
    Target("UDP request-response p50, busy-poll 50", ALL, "ask", "p50", BUSY, VXLAN, 0.8, 0.45, True),
    Target("the same, ends on different processors", ALL, "ask-apart", "p50", BUSY, VXLAN, 0.8, 0.45, True),
    Target("CPU per Gb, TCP 1 flow", ALL, "tcp-1", "cpu_per_gb", OURS, FLANNEL, 1 / 7, 1 / 15, True),
)

HEADLINE = (VETH, VXLAN, FLANNEL, OURS)
QUICK = (
    Row(ALL, "tcp-1", HEADLINE),
    Row(ALL, "udp-64", HEADLINE),
    Row(ALL, "udp-1400", (VXLAN, FLANNEL, OURS)),
    Row(ALL, "ask", (VXLAN, FLANNEL, OURS, BUSY)),
    Row(ALL, "ask-apart", (VXLAN, FLANNEL, OURS, BUSY)),
    Row(NONE, "tcp-1", (VXLAN, OURS)),
)
STANDARD = (
    *(Row(ALL, load, HEADLINE) for load in ("tcp-1", "tcp-4", "tcp-16", "udp-64", "udp-512", "udp-1400")),
    Row(ALL, "tcp-1-in", HEADLINE),
    Row(ALL, "tcp-1-both", HEADLINE),
    *(Row(ALL, load, (*HEADLINE, BUSY)) for load in ("ask", "ask-apart")),
    *(Row(mode, load, HEADLINE) for mode in (NO_TUNNEL, NONE) for load in ("tcp-1", "udp-64")),
)
FULL = tuple(
    Row(mode, load, (*HEADLINE, BUSY, "flannel_udp:threads=1"))
    for mode in (ALL, NO_TUNNEL, NONE)
    for load in (
        *(f"tcp-{flows}{way}" for flows in (1, 4, 16) for way in ("", "-in", "-both")),
        "udp-64",
        "udp-512",
        "udp-1400",
        "ask",
        "ask-apart",
    )
)
# Rows, rounds, seconds of one measurement.
SIZES: dict[str, tuple[tuple[Row, ...], int, float]] = {
    "quick": (QUICK, 5, 2), "standard": (STANDARD, 5, 5), "full": (FULL, 10, 10),
}  # fmt: skip


def schedule(rows: tuple[Row, ...], rounds: int) -> Iterator[tuple[Row, int, list[str]]]:
    """Yield every row's rounds: contenders in turn, every second round backwards (ABBA), so that drift hits all alike.

    Rounds of all rows of a link mode are interleaved, so that a busy minute does not fall on one row alone.
    """
    for mode in dict.fromkeys(row.mode for row in rows):
        for number in range(rounds):
            for row in rows:
                if row.mode == mode:
                    yield row, number, list(row.contenders)[:: -1 if number % 2 else 1]
