"""What is measured: rows of (link mode, load, contenders), and the order in which one run goes through them."""

from collections.abc import Iterator
from dataclasses import dataclass

VETH, VXLAN, FLANNEL, WIREGUARD, OURS = "veth", "vxlan", "flannel", "wireguard-go", "flannel_udp"
BUSY = "flannel_udp:busy-poll=50"
OURS_VXLAN, FLANNEL_VXLAN = "flannel_udp:backend=vxlan", "flannel:backend=vxlan"
BUSY_VXLAN, TAP = f"{OURS_VXLAN}+busy-poll=50", f"{OURS_VXLAN}+device=tap"
PROGRAMS = (FLANNEL, WIREGUARD, OURS, "daemon")
START = "start"
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
    # The vxlan backend wears 22 bytes more: it may cost a tenth of what udp does, and must hold what udp has to.
    *(
        Target(f"backend vxlan: {load}, {mode}", mode, load, value, OURS_VXLAN, OURS, floor, aim, smaller)
        for load, value, floor, aim, smaller in (
            ("tcp-1", "gbps", 0.9, 1.0, False),
            ("udp-64", "pps", 0.9, 1.0, False),
            ("udp-1400", "pps", 0.9, 1.0, False),
            ("ask", "p50", 1 / 0.9, 1.0, True),
        )
        for mode in (ALL, NO_TUNNEL, NONE)
    ),
    Target("backend vxlan: tcp-1, all", ALL, "tcp-1", "gbps", OURS_VXLAN, VXLAN, 0.7, 0.85),
    Target("backend vxlan: tcp-1, none", NONE, "tcp-1", "gbps", OURS_VXLAN, VXLAN, 0.8, 1.0),
    Target("backend vxlan: udp-64, all", ALL, "udp-64", "pps", OURS_VXLAN, VXLAN, 1.8, 3),
    Target("backend vxlan: udp-1400, all", ALL, "udp-1400", "pps", OURS_VXLAN, VXLAN, 1.0, 1.5),
    Target("backend vxlan: ask, busy-poll 50", ALL, "ask", "p50", BUSY_VXLAN, VXLAN, 0.8, 0.45, True),
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
EVERY = (VETH, VXLAN, FLANNEL, WIREGUARD, OURS)
TUNNELS = (VXLAN, FLANNEL, WIREGUARD, OURS)
IPV6 = tuple(f"{name}{'+' if ':' in name else ':'}family=6" for name in (VXLAN, OURS, OURS_VXLAN))
STANDARD = (
    *(Row(ALL, load, (*EVERY, OURS_VXLAN)) for load in ("tcp-1", "udp-64")),
    *(Row(ALL, load, (VXLAN, OURS)) for load in ("tcp-4", "tcp-1-in", "tcp-1-both", "udp-512", "rate-512")),
    *(Row(ALL, load, (VXLAN, FLANNEL, OURS)) for load in ("tcp-16", "udp-1400")),
    *(Row(ALL, load, TUNNELS) for load in ("rate-64", "rate-1400", "ask-loaded")),
    Row(ALL, "ask", (*TUNNELS, BUSY)),
    Row(ALL, "ask-apart", (VXLAN, FLANNEL, OURS, BUSY)),
    Row(ALL, START, PROGRAMS),
    *(Row(mode, load, (VXLAN, OURS)) for mode in (NO_TUNNEL, NONE) for load in ("tcp-1", "udp-64")),
)
POOLS = tuple(f"{OURS_VXLAN}+source-ports={ports}" for ports in (4, 16))
BACKENDS = (
    *(Row(ALL, load, (VXLAN, FLANNEL_VXLAN, OURS, OURS_VXLAN, TAP)) for load in ("tcp-1", "udp-64", "udp-1400")),
    Row(ALL, "ask", (VXLAN, FLANNEL_VXLAN, OURS, OURS_VXLAN, BUSY_VXLAN, TAP)),
    *(
        Row(mode, load, (VXLAN, OURS, OURS_VXLAN, TAP))
        for mode in (NO_TUNNEL, NONE)
        for load in ("tcp-1", "udp-64", "udp-1400", "ask")
    ),
    *(Row(ALL, load, (VXLAN, OURS, OURS_VXLAN, *POOLS)) for load in ("tcp-16", "flows-64", "flows-1400")),
    *(Row(ALL, load, IPV6) for load in ("tcp-1", "udp-64", "ask")),
)
FULL = (
    Row(ALL, START, PROGRAMS),
    *(
        Row(mode, load, (*EVERY, BUSY, *(f"{OURS}:threads={n}" for n in (1, 2)), OURS_VXLAN, TAP, FLANNEL_VXLAN))
        for mode in (ALL, NO_TUNNEL, NONE)
        for load in (
            *(f"tcp-{flows}{way}" for flows in (1, 4, 16) for way in ("", "-in", "-both")),
            *(f"{kind}-{size}" for kind in ("udp", "rate") for size in (64, 512, 1400)),
            *("ask", "ask-apart", "ask-loaded"),
        )
    ),
    *(Row(mode, load, IPV6) for mode in (ALL, NO_TUNNEL, NONE) for load in ("tcp-1", "tcp-16", "udp-64", "ask")),
    *(Row(mode, f"flows-{size}", (VXLAN, OURS, OURS_VXLAN, *POOLS)) for mode in (ALL, NONE) for size in (64, 1400)),
)
# Rows, rounds, seconds of one measurement.
SIZES: dict[str, tuple[tuple[Row, ...], int, float]] = {
    "quick": (QUICK, 5, 2), "standard": (STANDARD, 5, 5), "full": (FULL, 10, 10),
    "backends": (BACKENDS, 10, 2),
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


# Seconds beside those of the measurement itself, as measured on two cores: starts and ends of programs, questions to
# the contenders, the steps of a search. A start sets nodes and a registry up, then sends for as long.
BESIDE = {"tcp": 0.2, "udp": 1.0, "flows": 1.0, "rate": 1.5, "ask": 0.3, "ask-loaded": 1.2, "start": 2.0}
# Seconds to set one contender up, the slowest with its registry.
UPRIGHT = 2.0


def duration(rows: tuple[Row, ...], rounds: int, seconds: float) -> float:
    """Return about how many seconds a run takes, the first build of other projects' programs not included."""
    names = {name for row in rows for name in row.contenders}
    beside = {row: BESIDE.get(row.load) or BESIDE[row.load.partition("-")[0]] for row in rows}
    each = sum(len(row.contenders) * (seconds + beside[row]) for row in rows)
    return UPRIGHT * len(names) + rounds * each
