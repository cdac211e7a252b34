"""Our byte formats stay what they are: every golden vector comes out, and opens, as written.

The files come from `make_golden.py`, which implements each format a second time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workers.crypto import derive, kwp, nodes, seal
from workers.crypto import hpke as hpke_module
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite, open_with
from workers.crypto.info import Info, info
from workers.crypto.lp import lp, unlp
from workers.crypto.seal import SealPurpose, open_sealed
from workers.crypto.shared import open_shared
from workers.crypto.sign import SigningKey, VerifyKey, fingerprint
from workers.crypto.together import sign_together, verify
from workers.kms.base import context_bytes
from workers.kms.binding import KeyVersion, open_bound, split
from workers.kms.local import LocalKms

Golden = Callable[[str], Any]
unhex = bytes.fromhex


def pattern(name: str, size: int) -> bytes:
    blocks = (hashlib.sha256(f"{name}/{n}".encode()).digest() for n in itertools.count())
    out = b""
    while len(out) < size:
        out += next(blocks)
    return out[:size]


def parts_of(named: list[dict[str, Any]]) -> list[bytes | str | int]:
    return [unhex(v) if k == "bytes" else v for part in named for k, v in part.items()]


def fixed_salt(monkeypatch: pytest.MonkeyPatch, salt: bytes) -> None:
    monkeypatch.setattr(seal.os, "urandom", lambda n: salt[:n])


def test_lp(golden: Golden) -> None:
    for case in golden("lp"):
        parts = parts_of(case["parts"])
        assert lp(*parts).hex() == case["encoded"]
        assert unlp(unhex(case["encoded"])) == parts


def test_derivations(golden: Golden) -> None:
    v = golden("derive")
    tag, dek, uid = unhex(v["tag"]), unhex(v["dek"]), unhex(v["index_uid"])
    for purpose, expected in v["subkeys"].items():
        assert derive.subkey(dek, derive.Purpose(purpose), uid).copy().hex() == expected
    for t in v["chain_tokens"]:
        kind = derive.TokenKind(t["kind"])
        assert derive.chain_token(tag, kind, t["field"], t["value"]).hex() == t["token"]
    assert derive.object_id(tag, v["object_id"]["id"]).hex() == v["object_id"]["value"]
    assert derive.group_token(tag, v["group_token"]["id"]).hex() == v["group_token"]["value"]
    vector, c = unhex(v["subkeys"]["vector"]), v["centroid"]
    assert derive.centroid_token(vector, c["epoch"], c["cluster"]).hex() == c["value"]
    segment, segment_uid, n = unhex(v["subkeys"]["segment"]), unhex(v["segment_uid"]), v["node"]
    secret = derive.node_secret(segment, unhex(n["token"]))
    assert secret.hex() == n["secret"]
    label, key = derive.node_label_and_key(secret, segment_uid, n["kind"], n["part"])
    assert (label.hex(), key.hex()) == (n["label"], n["key"])
    b = v["block"]
    assert derive.block_key(segment, segment_uid, b["kind"], b["number"]).hex() == b["key"]


def test_sealed_objects(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    v = golden("sealed_object")
    bound = {
        "purpose": SealPurpose(v["purpose"]),
        "index_uid": unhex(v["uid"]),
        "object_id": unhex(v["oid"]),
        "associated_data": unhex(v["ad"]),
    }
    for case in v["cases"]:
        plaintext = pattern("plaintext", case["size"])
        fixed_salt(monkeypatch, unhex(case["salt"]))
        blob = seal.seal(
            unhex(v["key"]),
            plaintext,
            key_id=unhex(v["key_id"]),
            generation=v["generation"],
            **bound,
        )
        if "sealed" in case:
            assert blob.hex() == case["sealed"]
        else:
            assert hashlib.sha256(blob).hexdigest() == case["sha256"]
        assert open_sealed(unhex(v["key"]), blob, **bound) == plaintext


def test_nodes_and_blocks(golden: Golden) -> None:
    v = golden("nodes")
    key, payload = unhex(v["key"]), unhex(v["payload"])
    place = (unhex(v["index_uid"]), v["shard"], unhex(v["segment_uid"]))
    n, b = v["node"], v["block"]
    node_aad = nodes.node_aad(*place, unhex(n["label"]), n["codec"])
    block_aad = nodes.block_aad(*place, b["kind"], b["number"])
    for aad, case in ((node_aad, n), (block_aad, b)):
        assert aad.hex() == case["aad"]
        assert nodes.seal_node(key, payload, aad).hex() == case["sealed"]
        assert nodes.open_block(key, unhex(case["sealed"]), aad) == payload


def test_hpke(golden: Golden) -> None:
    v = golden("hpke")
    assert info(Info.PACK, pattern("index uid", 16), 7).hex() == v["info"]
    for case in v["cases"]:
        suite = HpkeSuite(case["suite"])
        seeded = HpkePrivateKey.from_seed(suite, unhex(v["seed"]), v["label"])
        for private in (seeded, HpkePrivateKey(suite, unhex(case["private"]))):
            assert private.public.encode().hex() == case["public"]
            assert (
                open_with(private, unhex(v["info"]), unhex(case["sealed"])).hex() == v["plaintext"]
            )
        public = HpkePublicKey.decode(unhex(case["public"]))
        assert hpke_module.key_id(public).hex() == case["key_id"]


def test_signatures(golden: Golden) -> None:
    v = golden("signatures")
    key = SigningKey.from_seed(unhex(v["seed"]))
    assert key.public == VerifyKey(unhex(v["public"]))
    assert fingerprint(key.public) == v["fingerprint"]
    parts = parts_of(v["parts"])
    assert key.sign(Info(v["domain"]), *parts).hex() == v["signature"]
    key.public.verify(unhex(v["signature"]), Info(v["domain"]), *parts)


def test_signatures_together(golden: Golden) -> None:
    v = golden("together")
    key, domain = SigningKey.from_seed(unhex(v["seed"])), Info(v["domain"])
    messages = [tuple(parts_of(one["parts"])) for one in v["messages"]]
    made = sign_together(key, domain, messages)
    assert [one.hex() for one in made] == [one["signature"] for one in v["messages"]]
    key.public.verify(made[0][:64], domain, "together", unhex(v["root"]))
    for parts, signature in zip(messages, made, strict=True):
        verify(key.public, signature, domain, *parts)


def test_shared_encapsulation(golden: Golden) -> None:
    v = golden("shared")
    private = HpkePrivateKey(HpkeSuite(v["suite"]), unhex(v["private"]))
    key_id = unhex(v["key_id"])
    about, context = info(Info.VALUE_KEY, v["index"], key_id), lp(v["index"], key_id)
    for one in v["messages"]:
        sealed = unhex(one["sealed"])
        opened = open_shared(private, about, unhex(v["shared"]), sealed, context)
        assert opened.hex() == one["plaintext"]


def test_key_wrap(golden: Golden) -> None:
    v = golden("key_wrap")
    assert kwp.wrap(unhex(v["kek"]), unhex(v["key"])).hex() == v["wrapped"]
    assert kwp.unwrap(unhex(v["kek"]), unhex(v["wrapped"])).copy().hex() == v["key"]


def test_bound_kms(golden: Golden) -> None:
    v = golden("bound_kms")
    parts = split(unhex(v["wrapped"]))
    assert parts.version == v["version"]
    carrier = kwp.unwrap(unhex(v["kek"]), parts.carrier)
    key = KeyVersion(v["provider"], v["key_id"], v["version"])
    assert open_bound(key, carrier, parts.sealed, v["context"]).copy().hex() == v["plaintext"]


async def test_local_kms(golden: Golden, tmp_path: Path) -> None:
    v = golden("local_kms")
    assert context_bytes(v["context"]).hex() == v["context_bytes"]
    file = tmp_path / "kms.key"
    file.touch(mode=0o600)
    file.write_bytes(unhex(v["file"]))
    kms = LocalKms(file)
    opened = await kms.unwrap(v["key_id"], unhex(v["wrapped"]), v["context"])
    assert opened.copy().hex() == v["plaintext"]
    await kms.aclose()
