from __future__ import annotations

import re
from pathlib import Path

from schemas import topics


def test_the_contract_names_each_topic_once() -> None:
    names = [spec.name for spec in topics.ALL_TOPICS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z.-]{1,249}", name) for name in names)


def test_groups_are_for_work_only() -> None:
    groups = {spec.name for spec in topics.ALL_TOPICS if spec.mode == "group"}
    assert groups == {
        "plaintext-ingest",
        "index-update",
        "query-request",
        "key-request",
        "admin-request",
    }
    assert set(topics.GROUP_TOPICS) == groups
    assert {topics.dead_letter(name) for name in groups} <= {t.name for t in topics.ALL_TOPICS}


def test_compacted_topics_have_no_retention() -> None:
    for spec in topics.ALL_TOPICS:
        assert spec.compacted is (spec.retention_ms is None)
    compacted = {spec.name for spec in topics.ALL_TOPICS if spec.compacted}
    assert compacted == {"index-event", "key-directory", "key-revocation"}


def test_prefix() -> None:
    assert topics.with_prefix("prod.", "key-grant") == "prod.key-grant"
    assert topics.with_prefix("", "key-grant") == "key-grant"


def test_schemas_import_nothing_of_the_workers() -> None:
    folder = Path(topics.__file__).parent
    imports = re.compile(r"^\s*(from|import) workers", re.MULTILINE)
    assert [p.name for p in folder.glob("*.py") if imports.search(p.read_text("utf-8"))] == []
