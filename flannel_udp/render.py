"""Values as aligned plain text: tables for lists, columns for names and values. Knows no section by name.

The daemon's status is JSON that grows from version to version; what is shown follows the shape of the value alone, so
that the command shows whatever the daemon tells:

    a list of objects, or an object of several objects, of one shape     a table (of the latter with names in front)
    any other object                                                     name and value per line, then deeper parts
    a list of plain values                                               one per line
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

NOTHING = "(none)"


def document(value: dict[str, Any], now: float | None = None) -> str:
    """Show an object as titled sections, its own plain values first."""
    return "\n".join(_section("", value, time.time() if now is None else now)).strip("\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of equal width under upper-case heads; columns of numbers are set to the right."""
    body = [list(row) for row in rows]
    lines = [[head.replace("_", " ").upper() for head in heads], *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [_are_numbers(column[1:]) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(line, widths, right, strict=True)).rstrip() for line in lines)


def plain(key: str, value: object, now: float) -> str:
    """One value as a reader wants it; times (last_heard, expiry, ..._at) are told from `now`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_time(key):
        return f"{span(now - value)} ago" if value <= now else f"in {span(value - now)}"
    if isinstance(value, list):
        return ", ".join(plain("", item, now) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(name, item, now)}" for name, item in value.items()) or "-"
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).splitlines())


def span(seconds: float) -> str:
    """A length of time in its two largest units: 23h59m, 4m10s, 12s."""
    whole = int(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small}{small_unit}"
    return f"{whole}s"


def _section(title: str, value: object, now: float) -> list[str]:
    """Lines of one value under its title, an empty line before the title."""
    head = ["", title.upper()] if title else []
    if isinstance(value, dict):
        if len(value) > 1 and _are_records(list(value.values())):
            named = [{"": name, **row} for name, row in value.items()]  # as it is called in logs and JSON too
            return [*head, _records(named, now)]
        return _mapping(head, title, value, now)
    if isinstance(value, list):
        if _are_records(value):
            return [*head, _records(value, now)]
        return [*head, *([plain("", item, now) for item in value] or [NOTHING])]
    return [*head, plain("", value, now)]


def _mapping(head: list[str], title: str, value: dict[str, Any], now: float) -> list[str]:
    simple = {name: item for name, item in value.items() if not isinstance(item, dict | list)}
    width = max(map(len, simple), default=0)
    lines = [f"{name.replace('_', ' '):{width}}  {plain(name, item, now)}" for name, item in simple.items()]
    if not value:
        lines = [NOTHING]
    deeper: list[str] = []
    for name, item in value.items():
        if name not in simple:
            deeper += _section(f"{title}: {name}".removeprefix(": ").replace("_", " "), item, now)
    return [*(head if lines else []), *lines, *deeper]


def _are_records(values: list[Any]) -> TypeGuard[list[dict[str, Any]]]:
    """Whether these are objects of one shape, none of them deeper than a cell can show."""
    if not values or not all(isinstance(value, dict) and value and list(value) == list(values[0]) for value in values):
        return False
    return all(_fits_a_cell(item) for value in values for item in value.values())


def _fits_a_cell(value: object) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(isinstance(part, dict | list) for part in parts)


def _records(records: list[dict[str, Any]], now: float) -> str:
    heads = list(records[0])
    return table(heads, ([plain(head, record[head], now) for head in heads] for record in records))


def _is_time(key: str) -> bool:
    return key in {"last_heard", "expiry", "since"} or key.endswith("_at")


def _are_numbers(cells: Sequence[str]) -> bool:
    numbers = [cell.replace(".", "", 1).isdigit() for cell in cells if cell != "-"]
    return bool(numbers) and all(numbers)
