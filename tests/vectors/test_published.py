"""Published test vectors (C2SP/wycheproof, RFC 9180), run through our own functions.

Where a vector uses what our functions refuse on purpose (other key sizes, nonces, associated data
of HPKE), the part that they share with us is checked and the count of such vectors is pinned.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from workers.crypto import kwp
from workers.crypto.derive import Prf
from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite
from workers.crypto.nodes import open_node, seal_node

Published = Callable[[str], Any]
unhex = bytes.fromhex


def cases(vectors: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (group, test); the number of tests is the file's own count."""
    found = [(group, test) for group in vectors["testGroups"] for test in group["tests"]]
    assert len(found) == vectors["numberOfTests"]
    yield from found


def test_aes_kwp(published: Published) -> None:
    through_ours = 0
    for group, test in cases(published("wycheproof_aes_kwp_test.json")):
        kek, key, wrapped = (unhex(test[name]) for name in ("key", "msg", "ct"))
        ours = group["keySize"] == 256
        through_ours += ours
        wrap, unwrap, refused = (
            (kwp.wrap, lambda a, b: kwp.unwrap(a, b).copy(), OpenFailed)
            if ours
            else (aes_key_wrap_with_padding, aes_key_unwrap_with_padding, InvalidUnwrap)
        )
        if test["result"] == "valid":
            assert wrap(kek, key) == wrapped, test["tcId"]
        # "acceptable" marks wrappings that a strict reader refuses: very short keys.
        if test["result"] != "invalid":
            assert unwrap(kek, wrapped) == key, test["tcId"]
        else:
            with pytest.raises(refused):
                unwrap(kek, wrapped)
    assert through_ours > 80


def test_hmac_sha512(published: Published) -> None:
    through_ours = 0
    for group, test in cases(published("wycheproof_hmac_sha512_test.json")):
        key, message, tag = (unhex(test[name]) for name in ("key", "msg", "tag"))
        size = group["tagSize"] // 8
        macs = [hmac.digest(key, message, "sha512")]
        if len(key) == 32:
            macs.append(Prf(key).digest(message))
            through_ours += 1
        else:
            with pytest.raises(InvalidKey):
                Prf(key)
        for mac in macs:
            assert (mac[:size] == tag) == (test["result"] == "valid"), test["tcId"]
    assert through_ours > 0


def test_hkdf_sha256(published: Published) -> None:
    for _, test in cases(published("wycheproof_hkdf_sha256_test.json")):
        ikm, salt, info, okm = (unhex(test[name]) for name in ("ikm", "salt", "info", "okm"))
        if test["result"] == "valid":
            derived = HKDF(SHA256(), test["size"], salt, info).derive(ikm)
            assert derived == okm, test["tcId"]
        else:
            with pytest.raises(ValueError, match=r"derive"):
                HKDF(SHA256(), test["size"], salt, info)


def test_aes_gcm(published: Published) -> None:
    through_ours = 0
    for group, test in cases(published("wycheproof_aes_gcm_test.json")):
        key, nonce, aad, message, ct, tag = (
            unhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
        )
        sealed = ct + tag
        if group["ivSize"] < 64 or group["ivSize"] > 1024:
            with pytest.raises(ValueError, match="Nonce"):
                AESGCM(key).encrypt(nonce, message, aad)
            continue
        if test["result"] == "valid":
            assert AESGCM(key).encrypt(nonce, message, aad) == sealed, test["tcId"]
            assert AESGCM(key).decrypt(nonce, sealed, aad) == message, test["tcId"]
            out = bytearray(len(message))
            AESGCM(key).decrypt_into(nonce, sealed, aad, out)
            assert out == message, test["tcId"]
        else:
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(nonce, sealed, aad)
        if len(key) == 32:
            # Nodes have a zero nonce: the vector's key, data and AAD go through ours and back.
            through_ours += 1
            assert open_node(key, seal_node(key, message, aad), aad) == message
            assert seal_node(key, message, aad) == AESGCM(key).encrypt(bytes(12), message, aad)
    assert through_ours > 80


def test_x25519(published: Published) -> None:
    for _, test in cases(published("wycheproof_x25519_test.json")):
        public, private, shared = (unhex(test[name]) for name in ("public", "private", "shared"))
        if len(private) != 32 or len(public) != 32:
            with pytest.raises(ValueError, match="32"):
                X25519PrivateKey.from_private_bytes(private).exchange(
                    X25519PublicKey.from_public_bytes(public)
                )
            continue
        peer = X25519PublicKey.from_public_bytes(public)
        if shared == bytes(32):
            # A point of low order gives no secret: nothing may be sealed to it.
            with pytest.raises(ValueError, match="shared key"):
                X25519PrivateKey.from_private_bytes(private).exchange(peer)
            with pytest.raises(InvalidKey):
                HpkePublicKey(HpkeSuite.X25519, public)
            continue
        HpkePublicKey(HpkeSuite.X25519, public)
        assert X25519PrivateKey.from_private_bytes(private).exchange(peer) == shared, test["tcId"]


def test_hpke_x25519_base(published: Published) -> None:
    through_ours = 0
    for vector in published("hpke_rfc9180_x25519_base.json"):
        private = HpkePrivateKey(HpkeSuite.X25519, unhex(vector["skRm"]))
        assert private.public.encode()[1:] == unhex(vector["pkRm"])
        if (vector["kdf_id"], vector["aead_id"]) != (1, 2):
            # Another suite, or export only: nothing of it opens under ours.
            first = "".join(step["ct"] for step in vector["encryptions"][:1])
            with pytest.raises(OpenFailed):
                private.open(unhex(vector["info"]), unhex(vector["enc"] + first))
            continue
        through_ours += 1
        cipher = AESGCM(unhex(vector["key"]))
        for sequence, step in enumerate(vector["encryptions"]):
            nonce = int.from_bytes(unhex(vector["base_nonce"]), "big") ^ sequence
            plaintext, aad = unhex(step["pt"]), unhex(step["aad"])
            assert cipher.encrypt(nonce.to_bytes(12, "big"), plaintext, aad) == unhex(step["ct"])
        # Ours is the one-shot form without associated data: sequence 0, the vector's key and nonce.
        sealed = unhex(vector["enc"]) + cipher.encrypt(unhex(vector["base_nonce"]), b"ours", b"")
        assert private.open(unhex(vector["info"]), sealed) == b"ours"
    assert through_ours > 0
