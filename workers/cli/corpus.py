"""The demo's documents: docstrings of the standard library, which every machine with Python has.

They are read from the source files, never imported, so nothing runs and nothing is fetched.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED_PACKAGES = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo"}
)
_SHORTEST_CHARS = 80
_LONGEST_CHARS = 1500


@dataclass(frozen=True, slots=True)
class Docstring:
    """One documented module, class or function.

    Attributes:
        id: dotted name, `json.decoder.JSONDecoder.decode`.
        module: top-level module, `json`.
        kind: `module`, `class` or `function`.
        lines: number of lines of the docstring.
        text: the docstring, cleaned and cut to 1,500 characters.
    """

    id: str
    module: str
    kind: str
    lines: int
    text: str


def stdlib_docstrings(limit: int) -> list[Docstring]:
    """Return up to `limit` docstrings, the same ones in the same order for one Python version.

    They are taken evenly over the modules, so that a small limit still covers many subjects.
    """
    every = list(_walk(Path(sysconfig.get_path("stdlib"))))
    if len(every) <= limit:
        return every
    step = len(every) / limit
    return [every[int(index * step)] for index in range(limit)]


def _walk(root: Path) -> Iterator[Docstring]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_PACKAGES.intersection(relative.parts) or path.name.startswith("_"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        dotted = ".".join(relative.with_suffix("").parts)
        yield from _documented(tree, dotted, "module")


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str
) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text is not None and len(text) >= _SHORTEST_CHARS:
        yield Docstring(
            id=name,
            module=name.partition(".")[0],
            kind=kind,
            lines=text.count("\n") + 1,
            text=text[:_LONGEST_CHARS],
        )
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}", "class")
        elif isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            yield from _documented(child, f"{name}.{child.name}", "function")
