"""Base classes of all messages.

A message is a frozen struct with the tag `"v": 1`: the tag is written first, is required when
reading, and is no attribute. Reading what users write refuses unknown fields (`Request`);
reading what workers write ignores them, so that fields may be added (`Reply`).

No `repr` shows a value: messages carry plaintext and credentials, and tracebacks and logs
print what they find.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Quiet(Struct, frozen=True, kw_only=True):
    """A struct whose `repr` names the fields that are set, and none of their values."""

    def __repr__(self) -> str:
        names = [n for n in self.__struct_fields__ if getattr(self, n) not in (None, (), [], {})]
        return f"{type(self).__name__}({', '.join(names)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Part(Quiet, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object inside a message that users write."""


class Request(
    Quiet,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="v",
    tag=1,
):
    """A message that users write: strict."""


class Answer(Quiet, frozen=True, kw_only=True, omit_defaults=True, tag_field="v", tag=1):
    """A message that workers write: unknown fields are ignored."""


class AnswerPart(Quiet, frozen=True, kw_only=True, omit_defaults=True):
    """An object inside a message that workers write."""
