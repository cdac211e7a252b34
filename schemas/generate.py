"""Write JSON Schemas and the AsyncAPI document from the types, or check them for drift.

python -m schemas.generate            writes schemas/json/*.json and schemas/asyncapi.yaml
python -m schemas.generate --check    exit code 1, and names, if they are not up to date
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.admin import ARGS
from schemas.asyncapi import document, to_yaml
from schemas.query import QUERY_KINDS, QueryKind
from schemas.registry import MESSAGES
from schemas.rules import DEFINITIONS, MERGED, NAME, NAMED_KEYS, Json, ref
from schemas.values import Vector

FOLDER: Final = Path(__file__).parent
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
BASE: Final = "urn:sealstream:schema:1:"


def definitions() -> dict[str, Json]:
    """Return the definition of every struct and enum, with the rules merged in."""
    kinds = [*(m.kind for m in MESSAGES), *QUERY_KINDS, *set(ARGS.values())]
    _, found = msgspec.json.schema_components(
        kinds, schema_hook=_hook, ref_template="#/$defs/{name}"
    )
    clean: dict[str, Json] = {name: _clean(body) for name, body in found.items()}
    for name, rule in MERGED.items():
        clean[name] = _merge(clean[name], rule)
    return clean | DEFINITIONS


def schema(name: str, kind: type[msgspec.Struct], defs: dict[str, Json]) -> Json:
    """Return the JSON Schema of one message, with the definitions it needs."""
    root = defs[kind.__name__]
    needed: set[str] = set()
    waiting = [root]
    while waiting:
        for found in re.findall(r'"#/\$defs/(\w+)"', json.dumps(waiting.pop())):
            if found not in needed:
                needed.add(found)
                waiting.append(defs[found])
    body = {"$schema": DIALECT, "$id": f"{BASE}{name}", **root}
    if needed:
        body["$defs"] = {n: defs[n] for n in sorted(needed)}
    return body


def render() -> dict[Path, str]:
    """Return the text of every generated file by its path."""
    defs = definitions()
    files = {
        FOLDER / "json" / f"{m.name}.json": json.dumps(
            schema(m.name, m.kind, defs), indent=2, ensure_ascii=False
        )
        + "\n"
        for m in MESSAGES
    }
    files[FOLDER / "asyncapi.yaml"] = to_yaml(document())
    return files


def stale(files: dict[Path, str]) -> list[str]:
    """Return the names of files that are missing, different, or no longer generated."""
    wrong = [p for p, text in files.items() if not p.exists() or p.read_text("utf-8") != text]
    extra = [p for p in (FOLDER / "json").glob("*.json") if p not in files]
    return sorted(str(p.relative_to(FOLDER.parent)) for p in (*wrong, *extra))


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m schemas.generate [--check]\n")
        return 2
    files = render()
    if arguments:
        names = stale(files)
        for name in names:
            sys.stderr.write(f"{name} is not up to date: run python -m schemas.generate\n")
        return 1 if names else 0
    (FOLDER / "json").mkdir(exist_ok=True)
    for path in (FOLDER / "json").glob("*.json"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.write_text(text, "utf-8")
    return 0


def _hook(kind: type) -> Json:
    if kind is Vector:
        return ref("Vector")
    if kind is QueryKind:
        return ref("Query")
    raise NotImplementedError(kind.__name__)


def _clean(node: Any) -> Any:
    """Unindent descriptions, drop `"default": null`, bound keys that senders choose."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: Json = {}
    for key, value in node.items():
        if key == "default" and value is None:
            continue
        if key == "description" and isinstance(value, str):
            out[key] = inspect.cleandoc(value)
        elif key == "properties":
            out[key] = {
                n: _named(_clean(v)) if n in NAMED_KEYS else _clean(v) for n, v in value.items()
            }
        else:
            out[key] = _clean(value)
    return out


def _named(node: Json) -> Json:
    """Bound the names in an object whose keys the sender chooses."""
    if node.get("type") == "object":
        return {**node, "propertyNames": NAME}
    if "anyOf" in node:
        return {**node, "anyOf": [_named(choice) for choice in node["anyOf"]]}
    return node


def _merge(base: Json, rule: Json) -> Json:
    merged = dict(base)
    for key, value in rule.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
