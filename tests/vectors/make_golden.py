"""Write the golden vectors of our byte formats, from an implementation of its own.

    python tests/vectors/make_golden.py

Nothing of `workers` is imported: each format is written down a second time, straight from the
tables in the docstrings, so the vectors prove the tables too. The files are made once and then only
checked (`test_golden.py`): a changed file means that old data no longer opens.
"""

import hashlib
import hmac
import json
import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

HERE = Path(__file__).parent


def pattern(name, size):
    """Bytes that look random and can be made anywhere: SHA-256 of name and counter, repeated."""
    out = b""
    counter = 0
    while len(out) < size:
        out += hashlib.sha256(f"{name}/{counter}".encode()).digest()
        counter += 1
    return out[:size]


def lp(*parts):
    out = b""
    for part in parts:
        tag, raw = {
            bytes: lambda p: (b"b", p),
            str: lambda p: (b"s", p.encode("utf-8")),
            int: lambda p: (b"i", struct.pack(">q", p)),
        }[type(part)](part)
        out += tag + struct.pack(">I", len(raw)) + raw
    return out


def mac256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def mac512(key, *parts):
    return hmac.new(key, lp(*parts), hashlib.sha512).digest()


def hkdf_expand(prk, info, size):
    out = block = b""
    counter = 1
    while len(out) < size:
        block = mac256(prk, block + info + bytes([counter]))
        out += block
        counter += 1
    return out[:size]


def sealed_object(key, salt, plaintext, *, purpose, uid, oid, ad, key_id, generation):
    fixed = b"SST1" + bytes([1, 1, purpose, 0]) + key_id + struct.pack(">II", generation, 65536)
    info = b"sealstream/1 seal" + lp(fixed, purpose, uid, oid, ad)
    derived = hkdf_expand(mac256(salt, key), info, 64)
    header = fixed + salt + derived[32:]
    chunks = [plaintext[i : i + 65536] for i in range(0, len(plaintext), 65536)] or [b""]
    out = header
    for number, chunk in enumerate(chunks):
        nonce = bytes(7) + struct.pack(">IB", number, number == len(chunks) - 1)
        out += AESGCM(derived[:32]).encrypt(nonce, chunk, header if number == 0 else b"")
    return out


def lp_vectors():
    lists = [
        [],
        [""],
        [b""],
        [0],
        ["a", "b"],
        ["ab"],
        [b"ab", "ab"],
        [1, -1, 2**63 - 1, -(2**63)],
        ["Grüße 🦭", pattern("lp", 40), 300],
    ]
    cases = []
    for parts in lists:
        named = [{{str: "text", bytes: "bytes", int: "int"}[type(p)]: _json(p)} for p in parts]
        cases.append({"parts": named, "encoded": lp(*parts).hex()})
    return cases


def derive_vectors():
    tag, dek, uid = pattern("tag", 32), pattern("dek", 32), pattern("index uid", 16)
    subkeys = {
        purpose: hkdf_expand(dek, b"sealstream/1 subkey" + lp(purpose, uid), 32)
        for purpose in ("object", "update", "segment", "vector", "query")
    }
    segment = subkeys["segment"]
    token = mac512(tag, 2, "body", "seal")[:32]
    secret = mac512(segment, "node", token)[:32]
    segment_uid = pattern("segment uid", 16)
    node = mac512(secret, segment_uid, 2, 0)
    return {
        "tag": tag.hex(),
        "dek": dek.hex(),
        "index_uid": uid.hex(),
        "segment_uid": segment_uid.hex(),
        "subkeys": {name: key.hex() for name, key in subkeys.items()},
        "chain_tokens": [
            {
                "kind": kind,
                "field": field,
                "value": value,
                "token": mac512(tag, kind, field, value)[:32].hex(),
            }
            for kind, field, value in [
                (1, "", "keyword4"),
                (2, "body", "seal"),
                (3, "lang", "en"),
                (4, "", "4b2f6c1e-8d7a-4f0e-9f64-3f1f7d7a2c11"),
            ]
        ],
        "object_id": {"id": "doc-1", "value": mac512(tag, "object", "doc-1")[:16].hex()},
        "group_token": {"id": "group-1", "value": mac512(tag, "group", "group-1")[:16].hex()},
        "centroid": {
            "epoch": 3,
            "cluster": 77,
            "value": mac512(subkeys["vector"], "centroid", 3, 77)[:32].hex(),
        },
        "node": {
            "token": token.hex(),
            "kind": 2,
            "part": 0,
            "secret": secret.hex(),
            "label": node[:16].hex(),
            "key": node[16:48].hex(),
        },
        "block": {
            "kind": 1,
            "number": 9,
            "key": mac512(segment, "block", segment_uid, 1, 9)[:32].hex(),
        },
    }


def seal_vectors():
    key = pattern("seal key", 32)
    context = {
        "purpose": 1,
        "uid": pattern("index uid", 16),
        "oid": pattern("object id", 16),
        "ad": b"associated",
        "key_id": pattern("key id", 16),
        "generation": 7,
    }
    cases = []
    for size in (0, 1, 100, 65535, 65536, 65537, 131072, 131073):
        salt = pattern(f"salt {size}", 32)
        blob = sealed_object(key, salt, pattern("plaintext", size), **context)
        # Long blobs are pinned by their digest: the plaintext is a pattern anyone can make.
        body = (
            {"sealed": blob.hex()} if size <= 100 else {"sha256": hashlib.sha256(blob).hexdigest()}
        )
        cases.append({"size": size, "salt": salt.hex(), **body})
    shown = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in context.items()
    }
    return {"key": key.hex(), **shown, "plaintext": "pattern('plaintext', size)", "cases": cases}


def node_vectors():
    key, uid, segment_uid = (
        pattern("node key", 32),
        pattern("index uid", 16),
        pattern("segment uid", 16),
    )
    label, payload = pattern("label", 16), pattern("payload", 70)
    node_aad, block_aad = lp(uid, 3, segment_uid, label, 2), lp(uid, 3, segment_uid, 1, 9)
    return {
        "key": key.hex(),
        "index_uid": uid.hex(),
        "shard": 3,
        "segment_uid": segment_uid.hex(),
        "payload": payload.hex(),
        "node": {
            "label": label.hex(),
            "codec": 2,
            "aad": node_aad.hex(),
            "sealed": AESGCM(key).encrypt(bytes(12), payload, node_aad).hex(),
        },
        "block": {
            "kind": 1,
            "number": 9,
            "aad": block_aad.hex(),
            "sealed": AESGCM(key).encrypt(bytes(12), payload, block_aad).hex(),
        },
    }


def hpke_vectors():
    seed, plaintext = pattern("hpke seed", 32), pattern("hpke plaintext", 32)
    info = lp("sealstream/1", "hpke", "pack", pattern("index uid", 16), 7)
    cases = []
    for suite, kem, size in ((1, KEM.X25519, 32), (2, KEM.MLKEM768_X25519, 96)):
        raw = hkdf_expand(seed, b"sealstream/1 hpke seed" + lp(suite, "label"), size)
        x25519 = X25519PrivateKey.from_private_bytes(raw[-32:])
        private, public = x25519, x25519.public_key().public_bytes_raw()
        if suite == 2:
            mlkem = MLKEM768PrivateKey.from_seed_bytes(raw[:64])
            private = MLKEM768X25519PrivateKey(mlkem, x25519)
            public = mlkem.public_key().public_bytes_raw() + public
        encoded = bytes([suite]) + public
        sealed = Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(
            plaintext, private.public_key(), info
        )
        cases.append(
            {
                "suite": suite,
                "private": raw.hex(),
                "public": encoded.hex(),
                "key_id": hashlib.sha256(encoded).digest()[:16].hex(),
                "sealed": sealed.hex(),
            }
        )
    return {
        "seed": seed.hex(),
        "label": "label",
        "info": info.hex(),
        "plaintext": plaintext.hex(),
        "cases": cases,
    }


def signature_vectors():
    seed = pattern("signing seed", 32)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    signed = lp("sealstream/1", "sign", "head", pattern("index uid", 16), 3, b"sealed head")
    return {
        "seed": seed.hex(),
        "public": public.hex(),
        "fingerprint": hashlib.sha256(public).hexdigest(),
        "domain": "head",
        "parts": [
            {"bytes": pattern("index uid", 16).hex()},
            {"int": 3},
            {"bytes": b"sealed head".hex()},
        ],
        "signed": signed.hex(),
        "signature": key.sign(signed).hex(),
    }


def together_vectors():
    """Signatures of five messages together: a tree of three levels, with empty places."""
    key = Ed25519PrivateKey.from_private_bytes(pattern("signing seed", 32))
    messages = [[f"key {n}".encode(), f"value {n}", n] for n in range(5)]
    level = [hashlib.sha256(b"\x00" + lp(*parts)).digest() for parts in messages]
    ways = [b"" for _ in messages]
    for height in range(3):
        level += [bytes(32)] * (len(level) % 2)
        ways = [way + level[(place >> height) ^ 1] for place, way in enumerate(ways)]
        level = [
            hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest()
            for i in range(0, len(level), 2)
        ]
    signature = key.sign(lp("sealstream/1", "sign", "ingest-result", "together", level[0]))
    return {
        "seed": pattern("signing seed", 32).hex(),
        "domain": "ingest-result",
        "root": level[0].hex(),
        "messages": [
            {
                "parts": [{"bytes": parts[0].hex()}, {"text": parts[1]}, {"int": parts[2]}],
                "signature": (signature + bytes([place]) + way).hex(),
            }
            for place, (parts, way) in enumerate(zip(messages, ways, strict=True))
        ],
    }


def shared_vectors():
    """Two messages under one encapsulation."""
    raw = hkdf_expand(pattern("hpke seed", 32), b"sealstream/1 hpke seed" + lp(1, "label"), 32)
    private = X25519PrivateKey.from_private_bytes(raw)
    info = lp("sealstream/1", "hpke", "value-key", "acme/docs", pattern("key id", 16))
    key = pattern("shared key", 32)
    shared = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(
        key, private.public_key(), info
    )
    context = lp("acme/docs", pattern("key id", 16))
    messages = [
        (
            plaintext,
            sealed_object(
                key,
                pattern(f"shared salt {n}", 32),
                plaintext,
                purpose=11,
                uid=b"",
                oid=context,
                ad=b"",
                key_id=bytes(16),
                generation=0,
            ),
        )
        for n, plaintext in enumerate((b"", b"one message"))
    ]
    return {
        "suite": 1,
        "private": raw.hex(),
        "index": "acme/docs",
        "key_id": pattern("key id", 16).hex(),
        "shared": shared.hex(),
        "messages": [
            {"plaintext": plaintext.hex(), "sealed": sealed.hex()} for plaintext, sealed in messages
        ],
    }


def wrap_vectors():
    kek, key = pattern("kek", 32), pattern("wrapped key", 32)
    return {
        "kek": kek.hex(),
        "key": key.hex(),
        "wrapped": aes_key_wrap_with_padding(kek, key).hex(),
    }


def local_kms_vectors():
    file, key, salt = pattern("kms file", 32), pattern("kms plaintext", 32), pattern("kms salt", 32)
    context = {"purpose": "kek", "index": pattern("index uid", 16).hex()}
    encoded = lp("sealstream/1 kms", "index", context["index"], "purpose", "kek")
    blob = sealed_object(
        file,
        salt,
        key,
        purpose=60,
        uid=b"",
        oid=b"local",
        ad=encoded,
        key_id=bytes(16),
        generation=0,
    )
    return {
        "file": file.hex(),
        "key_id": "local",
        "context": context,
        "context_bytes": encoded.hex(),
        "plaintext": key.hex(),
        "salt": salt.hex(),
        "wrapped": blob.hex(),
    }


def bound_kms_vectors():
    """A wrapped key of a KMS that authenticates no context, here a module with AES-KWP."""
    kek, carrier = pattern("hsm key", 32), pattern("carrier", 32)
    key, salt = pattern("bound plaintext", 32), pattern("bound salt", 32)
    context = {"purpose": "kek", "index": pattern("index uid", 16).hex()}
    encoded = lp("sealstream/1 kms", "index", context["index"], "purpose", "kek")
    sealed = sealed_object(
        carrier,
        salt,
        key,
        purpose=61,
        uid=b"",
        oid=lp("pkcs11", "realm", "0001"),
        ad=encoded,
        key_id=bytes(16),
        generation=0,
    )
    wrapped = aes_key_wrap_with_padding(kek, carrier)
    blob = b"SKB1" + bytes([4]) + b"0001" + struct.pack(">H", len(wrapped)) + wrapped + sealed
    return {
        "kek": kek.hex(),
        "provider": "pkcs11",
        "key_id": "realm",
        "version": "0001",
        "context": context,
        "plaintext": key.hex(),
        "wrapped": blob.hex(),
    }


def _json(part):
    return part.hex() if isinstance(part, bytes) else part


GOLDEN = {
    "lp": lp_vectors,
    "derive": derive_vectors,
    "sealed_object": seal_vectors,
    "nodes": node_vectors,
    "hpke": hpke_vectors,
    "signatures": signature_vectors,
    "together": together_vectors,
    "shared": shared_vectors,
    "key_wrap": wrap_vectors,
    "local_kms": local_kms_vectors,
    "bound_kms": bound_kms_vectors,
}

if __name__ == "__main__":
    for name, make in GOLDEN.items():
        text = json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
        (HERE / f"golden_{name}.json").write_text(text, encoding="utf-8")
