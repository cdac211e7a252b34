"""`sealstream bench`: the benchmarks, which live with the tests of a checkout."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from workers.cli.common import (
    COMMON,
    OK,
    USAGE,
    AsJson,
    Common,
    fail,
    say,
    say_json,
    say_table,
)
from workers.cli.connect import quiet_logs

_TESTS = Path(__file__).resolve().parents[2] / "tests"


def bench(
    name: Literal["seal", "keys", "chain", "ingest", "query", "quality"],
    /,
    *,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Run one benchmark and print its figures, each beside a baseline measured in the same run.

    With --home it runs on the stack of that folder, which is started if need be; without, on one
    of its own that is removed afterwards. Needs a checkout and the extras `local` and `bench`.

    Parameters
    ----------
    name
        seal: sealing against bare AES-GCM. keys: what the key service grants in a second. chain:
        the keyword index against one object per node. ingest: mails and vectors through the
        topics. query: latency and throughput, warm and cold. quality: ranking against plaintext
        search.
    """
    if not (_TESTS / "bench" / "report.py").is_file():
        fail("the benchmarks are in tests/bench of a checkout: run this from one", USAGE)
    home = None if common.home is None else common.home.absolute()
    # Parts of workers run in this process: what they log is neither a figure nor JSON of ours.
    quiet_logs()
    sys.path.insert(0, str(_TESTS))
    try:
        module: Any = import_module(f"bench.{name}")
        report: Any = asyncio.run(module.run(home))
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing: pip install 'sealstream[local,bench]'", USAGE)
    finally:
        sys.path.remove(str(_TESTS))
    if json:
        say_json(report.to_json())
    else:
        _show(report)
    return OK


def _show(report: Any) -> None:
    titles = import_module("bench.report").TITLES
    whole = report.to_json()
    for data in report.data:
        say(f"data      {data}")
    say(f"settings  {_pairs(report.settings)}")
    say(f"machine   {_pairs(whole['machine'])}")
    say(f"versions  {_pairs(whole['versions'])}")
    say("")
    say_table(titles, report.rows())
    for note in report.notes:
        say(f"note: {note}")


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
