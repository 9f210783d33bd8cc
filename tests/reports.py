"""Reports of benchmarks read again: their tables, and every figure in these compared with the samples."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

# By kind of load: the value of a sample that the first column of figures shows, and its factor.
SHOWN = {
    "tcp": ("gbps", 1), "udp": ("pps", 1e-3), "flows": ("pps", 1e-3), "rate": ("pps", 1e-3), "ask": ("p50", 1),
    "start": ("start", 1e3),
}  # fmt: skip


class Page(HTMLParser):
    """A page's tables by title; complains of any tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.references: list[str] = []
        self._open: list[str] = []
        self._title = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag != "meta":
            self._open.append(tag)
        if tag == "h2":
            self._title = ""
        if tag == "table":
            self.tables[self._title] = []
        if tag == "tr":
            self.tables[self._title].append([])
        if tag in {"td", "th"}:
            self.tables[self._title][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self._open:
            self._title += data
        elif "td" in self._open or "th" in self._open:
            self.tables[self._title][-1][-1] += data


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """A Markdown report's tables by title."""
    found = {}
    for title, body in re.findall(r"^## (.*)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in body.splitlines()]
        found[title] = [rows[0], *rows[2:]]
    return found


def numbers(cell: str) -> list[float]:
    """Median, lowest and highest of a cell that shows them."""
    return [float(word) for word in re.findall(r"[-\d.]+(?:e[+-]\d+)?", cell.replace(" - ", " "))]


def middle(values: list[float]) -> float:
    """The median, counted out."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def of(record: dict[str, Any], mode: str, load: str, contender: str, value: str) -> list[tuple[int, float]]:
    return [(one["round"], one[value]) for one in record["samples"]
            if one["mode"] == mode and one["load"] == load and one["contender"] == contender]  # fmt: skip


def compare(record: dict[str, Any], tables: dict[str, list[list[str]]]) -> int:
    """Compare the figures of the tables of loads with the samples; return how many cells that were."""
    compared = 0
    for title, (_, *rows) in tables.items():
        mode = re.search("link mode “(.*)”", title)
        for load, contender, shown, against, *_ in rows if mode else []:
            assert mode
            name, scale = SHOWN[load.partition("-")[0]]
            ours = of(record, mode[1], load, contender, name)
            if not ours:
                assert shown == "-"
                continue
            values = [value * scale for _, value in ours]
            assert numbers(shown) == pytest.approx([middle(values), min(values), max(values)], rel=0.006)
            like = "vxlan:family=6" if "family=6" in contender else "vxlan"
            rival = dict(of(record, mode[1], load, like, name))
            ratios = [value / rival[number] for number, value in ours if contender != like and number in rival]
            if ratios:
                assert numbers(against) == pytest.approx([middle(ratios), min(ratios), max(ratios)], rel=0.006)
            compared += 1
    return compared
