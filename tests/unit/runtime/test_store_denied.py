"""A worker waits for a store that denies it something; whoever asks for its health is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.runtime import alive
from workers.runtime.health import Health
from workers.storage.counting import denied
from workers.telemetry import metrics


def test_a_worker_whose_store_denies_it_is_not_ready_but_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied("key of a worker before this one")
    health = Health("index-1")
    assert "store_denied_ms" not in health.status()
    denials = metrics.STORE_DENIED.value()
    denied("key")
    assert metrics.STORE_DENIED.value() == denials + 1
    status = health.status() | {"ready": True}
    (tmp_path / "index-1.json").write_text(json.dumps(status))

    def problem(later_s: float, *, ready: bool = True) -> str | None:
        now_s = status["store_denied_ms"] / 1000 + later_s
        monkeypatch.setattr(alive, "time", SimpleNamespace(time=lambda: now_s))
        [found] = alive.look(tmp_path, max_age_s=3600.0, ready=ready)
        return found.problem

    for later_s in (0.0, 15.0):
        assert "denied by the object store" in (problem(later_s) or "")
        # What restarts workers is not told: it would not help.
        assert problem(later_s, ready=False) is None
    assert problem(60.0) is None
