"""JSON that strangers wrote, read so that whoever handles the value later cannot stumble over its depth."""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing costs the CNI plugin too much, see named.py
if TYPE_CHECKING:
    from typing import Any, Final

DEPTH_MAX: Final = 100  # our choice: far above any configuration, far below what Python can compare or write back


def read_json(text: str | bytes, **hooks: Any) -> Any:  # noqa: ANN401 - JSON holds anything
    """Decode a JSON text, with json.loads' own hooks; ValueError whatever is wrong with it."""
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
