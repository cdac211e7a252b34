"""Strict decoding and encoding of JSON messages.

What comes in is hostile. `decode` refuses, with the path of the field and without quoting any
of the message: what is not UTF-8 JSON (lone surrogates, NaN, Infinity, numbers beyond a
double), what nests too deeply, names a key twice, is no object, lacks `"v": 1`, has a field
the contract does not know, or a value of a wrong type or out of range.

A path looks like `query.top_k` or `min_position[0].offset`; keys that the sender chose are
written `*` (`metadata.*`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import orjson

from schemas.errors import ErrorCode
from schemas.errors import InvalidMessage as InvalidMessage
from schemas.ids import PATTERN_WORDS
from schemas.index import MAX_MESSAGE_BYTES
from schemas.message import Answer, Request
from schemas.sealed import SealedValue as SealedValue
from schemas.values import BASE64_WORDS, Vector

T = TypeVar("T")

MAX_DEPTH: Final = 64
VERSION: Final = 1
_INT64: Final = 2**63
_TOO_DEEP: Final = "the message nests too deeply"


def decode(cls: type[T], value: bytes | None, *, max_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """Decode one message.

    Args:
        cls: the type of message that the topic carries.
        value: the record's value.
        max_bytes: largest accepted value, in bytes.

    Raises:
        InvalidMessage: the value breaks the contract (`TOO_LARGE` if only by its size).
    """
    return convert(cls, parse(value, max_bytes=max_bytes))


def parse(value: bytes | None, *, max_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Parse one JSON object, strictly, without looking at its fields.

    Raises:
        InvalidMessage: see the module.
    """
    if not value:
        raise InvalidMessage("the record has no value; a JSON object is expected")
    if len(value) > max_bytes:
        raise InvalidMessage(
            f"the message is larger than {max_bytes} bytes", code=ErrorCode.TOO_LARGE
        )
    parsed: Any = None
    problem = ""
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        # The exception holds the whole document, its text is the parser's own; where it
        # stands helps, so that is kept, and the exception is not.
        problem = f"not valid UTF-8 JSON, near byte {error.pos}"
    if problem:
        raise InvalidMessage(problem)
    if type(parsed) is not dict:
        raise InvalidMessage("a message is a JSON object")
    if _suspect(parsed, value):
        _examine(value)
    return parsed


def convert(cls: type[T], parsed: dict[str, Any]) -> T:
    """Convert a parsed object to a message.

    Raises:
        InvalidMessage: see the module.
    """
    if issubclass(cls, (Request, Answer)):
        version = parsed.get("v")
        if type(version) is not int or version != VERSION:
            raise InvalidMessage(f"must be {VERSION}", "v")
    try:
        return msgspec.convert(parsed, cls, dec_hook=_dec_hook)
    except msgspec.ValidationError as error:
        refusal = _explain(error, cls)
    raise refusal


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message as JSON: the tag `v` first, fields at their default left out."""
    return _encoder.encode(message)


def to_plain(message: msgspec.Struct) -> dict[str, Any]:
    """Return a message as plain JSON values, e.g. for printing."""
    plain: dict[str, Any] = msgspec.to_builtins(message, enc_hook=_enc_hook)
    return plain


_hooks: dict[Any, Callable[[Any], Any]] = {Vector: Vector.from_json}


def register(kind: type, read: Callable[[Any], Any]) -> None:
    """Let `read` convert the JSON of fields annotated with `kind`, which is no struct."""
    _hooks[kind] = read


def _dec_hook(kind: type, value: Any) -> Any:
    return _hooks[kind](value)


def _enc_hook(value: Any) -> Any:
    if isinstance(value, Vector):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder: Final = msgspec.json.Encoder(enc_hook=_enc_hook)


# --- what the parser lets pass ---------------------------------------------------------------
#
# orjson keeps the last of two equal keys and reads integers beyond 64 bits as floats. Both let
# two readers of one message see different things. Only a second parse in Python finds them, at
# ten times the cost of the first, so two cheaper proofs of their absence come before it.
#
# 1. Written again, the parsed object gives the same bytes (1 us for a mail from a producer that
#    writes compact JSON). Not tried where vectors are likely: floats are slow to write.
# 2. Every key adds one ':' to the text, and so does every ':' in a string. If the text has
#    exactly as many as the parsed keys and strings, no key was dropped. `\\u003a` is the one
#    other way to write ':'.


def _suspect(parsed: dict[str, Any], value: bytes) -> bool:
    if "vector" not in parsed and "query" not in parsed:
        try:
            if orjson.dumps(parsed) == value:
                return False
        except TypeError:
            raise InvalidMessage(_TOO_DEEP) from None
    return (
        _colons(parsed, MAX_DEPTH) != value.count(b":")
        # One byte first: it is found, or missed, much faster.
        or (b"\\" in value and b"\\u003" in value)
    )


def _colons(node: dict[str, Any] | list[Any], depth: int) -> int:
    """Count the ':' that `node` needs as text; a negative number if a float may hide an int."""
    if not depth:
        raise InvalidMessage(_TOO_DEEP)
    if isinstance(node, dict):
        total = len(node)
        items: Any = node.values()
        for key in node:
            if ":" in key:
                total += key.count(":")
    else:
        items = node
        if len(node) > 64 and type(node[0]) is float:
            # A vector. If anything but numbers follows, it is refused where it is converted.
            return 0
        total = 0
    for item in items:
        kind = type(item)
        if kind is str:
            total += item.count(":")
        elif kind is dict or kind is list:
            total += _colons(item, depth - 1)
        elif kind is float and not -_INT64 < item < _INT64:
            total -= 1 << 40
    return total


def _examine(value: bytes) -> None:
    """Parse again, slowly, and refuse doubled keys and integers beyond 64 bits."""
    refusal: InvalidMessage | None = None
    try:
        json.loads(value, object_pairs_hook=_unique, parse_int=_int64)
    except InvalidMessage as error:
        refusal = error
    except (ValueError, RecursionError):
        refusal = InvalidMessage("not valid JSON")
    if refusal:
        raise InvalidMessage(refusal.message, refusal.field)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            known = key if key in field_names() else None
            raise InvalidMessage("an object names a key twice", known)
        seen.add(key)


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -_INT64 <= int(digits) < 2 * _INT64:
        raise InvalidMessage("an integer does not fit 64 bits")
    return 0


# --- errors ----------------------------------------------------------------------------------

_PATH: Final = re.compile(r" - at (?:`key` in )?`\$((?:\.\w+|\[\d+\]|\[\.\.\.\])*)`$")
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING: Final = re.compile(r"^Object missing required field `(\w+)`")
_TYPES: Final = {
    "object": "an object",
    "array": "a list",
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "bytes": BASE64_WORDS,
    "null": "null",
}


def _explain(error: msgspec.ValidationError, cls: type) -> InvalidMessage:
    """Turn the library's error into ours, keeping nothing that the sender wrote."""
    text = str(error)
    path = _path(text)
    cause = error.__cause__
    if isinstance(cause, InvalidMessage):
        return InvalidMessage(cause.message, join(path, cause.field), cause.code)
    if missing := _MISSING.match(text):
        return InvalidMessage("is required", join(path, missing[1]))
    if text.startswith("Object contains unknown field"):
        known = ", ".join(_fields_at(cls, path))
        hint = f"; known here: {known}" if known else ""
        return InvalidMessage(f"has a field that the contract does not know{hint}", path or None)
    return InvalidMessage(_expectation(text), path or None)


def _path(text: str) -> str:
    """Return the path in `text`, if each of its names is one of ours.

    An unknown key can be made to look like a path; names of our own fields are all that it
    could smuggle in.
    """
    found = _PATH.search(text)
    if not found:
        return ""
    path = ""
    for name, index, _key in _STEP.findall(found[1]):
        if name and name not in field_names():
            return ""
        path = join(path, f"[{index}]" if index else name or "*")
    return path


def join(path: str | None, step: str | None) -> str:
    """Join two parts of a path."""
    if not path or not step:
        return path or step or ""
    return path + step if step[0] == "[" else f"{path}.{step}"


def _expectation(text: str) -> str:
    for pattern, words in PATTERN_WORDS.items():
        if f"regex {pattern!r}" in text:
            return f"must be {words}"
    if text.startswith("Expected `"):
        wanted = text[len("Expected `") :].split("`", 1)[0]
        kinds = [_TYPES[k] for k in wanted.split(" | ") if k in _TYPES]
        rule = text.partition("` ")[2].partition(" - at ")[0]
        if kinds and rule.startswith(("of length", ">=", "<=", "<", ">")):
            return f"must be {' or '.join(kinds)} {rule}"
        if kinds:
            return f"must be {' or '.join(kinds)}"
    if text.startswith("Invalid base64"):
        return f"must be {BASE64_WORDS}"
    if text.startswith("Invalid enum value"):
        return "is not one of the values the contract names"
    return "is not valid"


def field_names() -> frozenset[str]:
    """Return the name of every field of every message: what a path may say."""
    names = {"v"}
    waiting: list[type[msgspec.Struct]] = [msgspec.Struct]
    while waiting:
        kind: type[msgspec.Struct]
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("schemas."):
                names.update(kind.__struct_encode_fields__)
    return frozenset(names)


def _fields_at(cls: type, path: str) -> tuple[str, ...]:
    """Return the fields that the contract knows at `path`, if that is one plain object."""
    if path:
        return ()
    names: tuple[str, ...] = getattr(cls, "__struct_encode_fields__", ())
    return ("v", *names) if issubclass(cls, (Request, Answer)) else names
