"""The audit shows what was dropped, changed or exchanged, to whoever has the public key."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from schemas.audit import AuditRecord
from schemas.auth import Auth
from schemas.codec import convert, to_plain
from schemas.topics import KEY_AUDIT
from schemas.values import encode_base64
from workers.cli.audit import read_all
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.keys.audit import chain_hash
from workers.keys.audit_chain import check_audit

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import World

DAY_MS = 86_400_000


@pytest.fixture
async def audited(tmp_path):
    """Two instances' records; the first one ended well, the second one still runs."""
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    await holder.lease("acme/docs")
    query = await world.holder("query-1")
    await query.decide("acme/docs", Auth(token=world.token))
    await world.running.end()
    await world.start_service("keys-2")
    await world.create("other")
    records = await read_all(world.broker, KEY_AUDIT)
    yield world, records
    await world.aclose()


def check(world, records, **changes):
    terms = {
        "now_ms": int(world.clock() * 1000),
        "retention_ms": 90 * DAY_MS,
        **changes,
    }
    return check_audit(records, world.directory.key_service.sign_pub, **terms)


def problems(world, records):
    return [problem for chain in check(world, records) for problem in chain.problems]


def place(records, event):
    return next(i for i, r in enumerate(records) if orjson.loads(r.value)["event"] == event)


def changed(record, **members):
    return replace(record, value=orjson.dumps({**orjson.loads(record.value), **members}))


async def test_an_honest_audit_is_whole(audited):
    world, records = audited
    first, second = check(world, records)
    assert not first.problems
    assert not second.problems
    assert first.ended
    assert first.unsigned == 0
    assert first.checkpoints >= 1
    assert not second.ended
    assert second.unsigned >= 1
    assert first.records + second.records == len(records)


async def test_what_was_dropped_changed_or_exchanged_is_told(audited):
    world, records = audited
    lease = place(records, "lease")
    assert problems(world, records[:lease] + records[lease + 1 :])
    assert problems(world, records[1:])
    swapped = [*records[: lease - 1], records[lease], records[lease - 1], *records[lease + 1 :]]
    assert problems(world, swapped)
    assert problems(world, [*records[: lease + 1], records[lease], *records[lease + 1 :]])
    for members in (
        {"worker": "index-2"},
        {"decision": "deny"},
        {"ts_ms": 1},
        {"policy_epoch": 7},
        {"hash": "00" * 32},
        {"prev": "00" * 32},
        {"seq": 99},
    ):
        edited = [*records[:lease], changed(records[lease], **members), *records[lease + 1 :]]
        assert problems(world, edited), members
    assert problems(world, [*records[:lease], replace(records[lease], value=b"junk")])
    assert problems(world, [*records[:lease], replace(records[lease], key=b"keys-9")])


async def test_a_chain_that_was_made_anew_is_not_signed(audited):
    """Who owns the broker can hash as well as we do; but not sign."""
    world, records = audited
    key = records[0].key
    mine = [r for r in records if r.key == key]
    forger = SigningKey.generate()
    for signer in (None, forger):
        rewritten, prev, seq = [], bytes(32), 0
        for record in mine:
            members = orjson.loads(record.value)
            if members["event"] == "lease":
                continue
            members |= {"prev": prev.hex(), "seq": seq, "hash": "00" * 32}
            signature = members.pop("signature", None)
            digest = chain_hash(prev, to_plain(convert(AuditRecord, members)))
            members["hash"] = digest.hex()
            if signature and signer:
                signed = signer.sign(Info.AUDIT, members["instance"], seq, digest)
                signature = encode_base64(signed)
            if signature:
                members["signature"] = signature
            rewritten.append(replace(record, value=orjson.dumps(members)))
            prev, seq = digest, seq + 1
        told = problems(world, rewritten)
        assert told
        assert all("not signed" in problem for problem in told)


async def test_a_cut_end_shows_where_the_instance_had_ended_well(audited):
    world, records = audited
    key = records[0].key
    mine = [r for r in records if r.key == key]
    [chain] = check(world, mine[:-1])
    assert not chain.ended


async def test_what_is_too_old_to_be_kept_may_be_missing(audited):
    world, records = audited
    assert problems(world, records[2:])
    later = int(world.clock() * 1000) + 85 * DAY_MS
    first, *_ = check(world, records[2:], now_ms=later)
    assert not first.problems
