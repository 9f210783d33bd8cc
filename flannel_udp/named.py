"""typing.NamedTuple for what the CNI plugin imports: `typing` itself would cost each container five milliseconds.

To type checkers it is typing's own. Modules that use it say TYPE_CHECKING = False, which checkers know by its name.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Meta(type):
        """Makes of a class's annotations the fields of a tuple, and keeps the rest of its body."""

        def __new__(cls, name, bases, body):  # noqa: ANN001, ANN204 - never seen by type checkers
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = list(body.get("__annotations__", ()))
            base = namedtuple(name, fields, defaults=[body[field] for field in fields if field in body])
            return type(name, (base,), {"__slots__": (), **{key: body[key] for key in body.keys() - set(fields)}})

    class NamedTuple(metaclass=_Meta):
        """See typing.NamedTuple."""
