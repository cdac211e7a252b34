"""A KMS envelope says whose it is, and cannot be another's, another epoch's or an older one."""

from __future__ import annotations

import base64

import msgspec
import orjson
import pytest

from workers.crypto.info import Info
from workers.crypto.secret import random_secret
from workers.crypto.sign import SigningKey
from workers.errors import Damaged
from workers.keys.envelope import Envelope, commitment, open_envelope, sign_envelope

SIGNER = SigningKey.generate()
UID = bytes(range(16))


def envelope(**changes):
    values = {
        "index_uid": UID.hex(),
        "epoch": 3,
        "provider": "local",
        "key_id": "k",
        "wrap_version": "1",
        "wrapped": "AAAA",
        "commitment": commitment(random_secret(), UID, 3),
        "created_ms": 1,
        "version": 2,
        **changes,
    }
    return Envelope(**values)


def test_it_opens_for_its_index_epoch_and_version():
    made = envelope()
    for least in (0, 1, 2):
        assert (
            open_envelope(sign_envelope(made, SIGNER), UID, 3, SIGNER.public, least=least) == made
        )


@pytest.mark.parametrize(
    ("uid", "epoch", "least"), [(bytes(16), 3, 0), (UID, 0, 0), (UID, 4, 0), (UID, 3, 3)]
)
def test_it_does_not_for_another(uid, epoch, least):
    with pytest.raises(Damaged):
        open_envelope(sign_envelope(envelope(), SIGNER), uid, epoch, SIGNER.public, least=least)


def test_only_the_key_service_makes_one():
    with pytest.raises(Damaged):
        open_envelope(sign_envelope(envelope(), SigningKey.generate()), UID, 3, SIGNER.public)


def test_one_from_before_versions_is_of_version_0():
    members = msgspec.to_builtins(envelope(version=0))
    del members["version"]
    canonical = orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
    signature = SIGNER.sign(Info.ENVELOPE, canonical)
    data = orjson.dumps({**members, "signature": base64.b64encode(signature).decode()})
    assert open_envelope(data, UID, 3, SIGNER.public).version == 0
