"""The realm: made once, opened by its KMS key alone, workers enrolled."""

from __future__ import annotations

import asyncio
import time

import pytest

from workers.crypto.sign import fingerprint
from workers.errors import Damaged, Fatal, Reject
from workers.identity.token import make_token, open_token
from workers.keys.realm import RealmPurpose, init_realm, open_realm
from workers.kms.local import LocalKms
from workers.leases.certificate import WorkerIdentity, verify_certificate
from workers.settings import Settings
from workers.storage.memory import MemoryStore


@pytest.fixture
def parts(tmp_path):
    kms = LocalKms(tmp_path / "kms.key", create=True)
    return Settings(home=tmp_path), {"store": MemoryStore(), "kms": kms}


async def test_a_second_init_finds_the_first(parts):
    settings, outside = parts
    first = await init_realm(settings, **outside)
    identity = WorkerIdentity.load(settings.home / "workers" / "ingest-1")
    second = await init_realm(settings, **outside)
    assert first.fingerprint == second.fingerprint
    assert first.token not in repr(first)
    same = WorkerIdentity.load(settings.home / "workers" / "ingest-1")
    assert same.certificate == identity.certificate
    realm = await open_realm(**outside)
    assert realm.fingerprint == first.fingerprint == fingerprint(realm.signing_key.public)
    key = realm.key(RealmPurpose.IDENTITY_TOKEN)
    one, two = [open_token(key, info.token, now_s=time.time()) for info in (first, second)]
    assert one.identity_id == two.identity_id == realm.administrator.id


async def test_two_inits_at_once_make_one_realm(parts):
    settings, outside = parts
    infos = await asyncio.gather(*(init_realm(settings, **outside) for _ in range(3)))
    assert len({info.fingerprint for info in infos}) == 1


async def test_workers_are_enrolled_for_a_week_and_renewed(parts):
    settings, outside = parts
    await init_realm(settings, **outside, workers={"ingest": 2, "query": 1}, clock=lambda: 1e9)
    issuer = (await open_realm(**outside)).signing_key.public
    folders = sorted(path.name for path in (settings.home / "workers").iterdir())
    assert folders == ["ingest-1", "ingest-2", "query-1"]
    folder = settings.home / "workers" / "ingest-2"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    before = WorkerIdentity.load(folder)
    certificate = verify_certificate(before.certificate.encoded, issuer, now_s=1e9)
    assert (certificate.role, certificate.indexes) == ("ingest", ("*",))
    assert certificate.expires_s - certificate.not_before_s == 7 * 86_400
    later = 1e9 + 4 * 86_400
    await init_realm(settings, **outside, workers={"ingest": 2}, clock=lambda: later)
    after = WorkerIdentity.load(folder)
    assert after.certificate.expires_s > before.certificate.expires_s
    assert after.certificate.sign_pub == before.certificate.sign_pub


async def test_an_unsafe_key_file_is_not_used(parts):
    settings, outside = parts
    await init_realm(settings, **outside)
    (settings.home / "workers" / "index-1" / "sign.key").chmod(0o644)
    with pytest.raises(Fatal, match="chmod"):
        await init_realm(settings, **outside)


async def test_a_realm_opens_only_with_its_kms_key(parts, tmp_path):
    settings, outside = parts
    with pytest.raises(Fatal, match="no realm"):
        await open_realm(**outside)
    await init_realm(settings, **outside)
    other = LocalKms(tmp_path / "other.key", create=True)
    with pytest.raises(Damaged):
        await open_realm(outside["store"], other)
    store = outside["store"]
    exchanged = (await store.get("realm/administrator")).data
    await store.put("realm/key-service", exchanged)
    with pytest.raises(Damaged):
        await open_realm(**outside)


async def test_identity_tokens_are_of_one_purpose_and_end(parts):
    settings, outside = parts
    await init_realm(settings, **outside)
    realm = await open_realm(**outside)
    key, app = realm.key(RealmPurpose.IDENTITY_TOKEN), realm.key(RealmPurpose.APP_TOKEN)
    token = make_token(key, "somebody", now_s=100, life_s=50)
    assert open_token(key, token, now_s=149).identity_id == "somebody"
    with pytest.raises(Reject, match="EXPIRED"):
        open_token(key, token, now_s=150)
    for bad in (make_token(app, "somebody", now_s=100, life_s=50), token[:-2], "", "slid1_", "é"):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            open_token(key, bad, now_s=101)
