"""Pictures of a run: SVG for the page, bars of text for Markdown. Nothing is drawn but numbers of figures.py."""

import html
import math
import statistics

from benchmarks.figures import Record, kind_of, label, paired, spread, values
from benchmarks.rivals.plan import TARGETS

LEFT, WIDTH, STEP = 260, 460, 26
BAR = 40


def _found(record: Record, row: Record) -> dict[str, list[float]]:
    """Return the measurements of a row by contender, in the unit that is shown; without those that have none."""
    kind = kind_of(row["load"])
    found = {name: values(record, row["mode"], row["load"], name, kind.value) for name in row["contenders"]}
    return {name: [number * kind.scale for number in told.values()] for name, told in found.items() if told}


def title(row: Record) -> str:
    """Return what a picture of a row shows."""
    return f"{row['load']}, {kind_of(row['load']).unit}, link mode {row['mode']}"


def bars(record: Record, row: Record) -> list[str]:
    """Return a row as lines of text: a bar for each contender's median."""
    found = _found(record, row)
    most = max((statistics.median(numbers) for numbers in found.values()), default=0) or 1
    return [f"{label(record, name):32} {'█' * max(1, round(BAR * statistics.median(numbers) / most)):{BAR}} "
            f"{spread(numbers)}" for name, numbers in found.items()]  # fmt: skip


def plot(record: Record, row: Record) -> str:
    """Return a row as SVG: a bar to the median of each contender, a dot for each round."""
    found = _found(record, row)
    most = max((number for numbers in found.values() for number in numbers), default=0) or 1
    drawn = []
    for i, (name, numbers) in enumerate(found.items()):
        y, scale = 12 + i * STEP, WIDTH / most
        middle = statistics.median(numbers) * scale
        drawn.append(_text(0, y, label(record, name)))
        drawn.append(f'<rect x="{LEFT}" y="{y}" width="{middle:.0f}" height="12" fill="#9bc"></rect>')
        drawn += [_dot(LEFT + number * scale, y) for number in numbers]
        drawn.append(_text(LEFT + WIDTH + 15, y, spread(numbers)))
    return _svg(drawn, len(found))


def target_plot(record: Record) -> str:
    """Return the targets as SVG: a dot for the ratio of each round, in multiples of the floor; right is better."""
    rows = [(target, [_times(target.floor, ratio, smaller=target.smaller_is_better) for ratio in ratios])
            for target in TARGETS if (ratios := paired(record, target)) and min(ratios) > 0]  # fmt: skip
    aims = [_times(target.floor, target.aim, smaller=target.smaller_is_better) for target, _ in rows]
    every = [math.log(number) for number in (1.0, *aims, *(one for _, numbers in rows for one in numbers))]
    low, high = min(every), max(every)

    def x(number: float) -> float:
        return LEFT + WIDTH * (math.log(number) - low) / ((high - low) or 1)

    drawn = [f'<line x1="{x(1):.0f}" y1="0" x2="{x(1):.0f}" y2="{12 + STEP * len(rows)}" stroke="#c33"></line>']
    for i, ((target, numbers), aim) in enumerate(zip(rows, aims, strict=True)):
        y = 12 + i * STEP
        drawn.append(_text(0, y, f"{target.name} / {target.rival}"))
        drawn.append(f'<rect x="{x(aim) - 1:.0f}" y="{y - 4}" width="3" height="20" fill="#393"></rect>')
        drawn += [_dot(x(number), y) for number in numbers]
        drawn.append(_text(LEFT + WIDTH + 15, y, f"median {statistics.median(numbers):.3g} times the floor"))
    return _svg(drawn, len(rows)) if rows else ""


def _times(floor: float, ratio: float, *, smaller: bool) -> float:
    return floor / ratio if smaller else ratio / floor


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y + 10:.0f}">{html.escape(words)}</text>'


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.0f}" cy="{y + 6:.0f}" r="3" fill="#146" fill-opacity="0.6"></circle>'


def _svg(drawn: list[str], rows: int) -> str:
    return f'<svg width="{LEFT + WIDTH + 260}" height="{20 + STEP * rows}">{"".join(drawn)}</svg>'
