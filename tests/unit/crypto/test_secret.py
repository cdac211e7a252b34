from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest

from workers.crypto.errors import InvalidKey, KeyWiped
from workers.crypto.secret import SecretBytes, key_view, overwrite, random_secret

RAW = bytes(range(32))


def test_it_gives_its_bytes_and_compares() -> None:
    secret = SecretBytes(RAW)
    assert secret.copy() == RAW
    assert bytes(secret.view()) == RAW
    assert len(secret) == 32
    assert secret == SecretBytes(RAW)
    assert secret != SecretBytes(bytes(32))
    assert secret != RAW


def test_a_view_is_read_only_and_reads_zeros_after_wiping() -> None:
    secret = SecretBytes(RAW)
    view = secret.view()
    assert view.readonly
    secret.wipe()
    assert secret.wiped
    assert bytes(view) == bytes(32)


def test_a_wiped_secret_gives_nothing() -> None:
    with SecretBytes(RAW) as secret:
        assert not secret.wiped
    for use in (secret.view, secret.copy, lambda: key_view(secret), lambda: secret == secret):
        with pytest.raises(KeyWiped, match="wiped"):
            use()
    secret.wipe()


def test_it_copies_what_it_is_given() -> None:
    given = bytearray(RAW)
    secret = SecretBytes(given)
    given[:] = bytes(32)
    assert secret.copy() == RAW


def test_it_is_wiped_when_dropped() -> None:
    secret = SecretBytes(RAW)
    view = secret.view()
    del secret
    assert bytes(view) == bytes(32)


def test_it_has_no_text_form() -> None:
    secret = SecretBytes(RAW)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{[secret]}"):
        assert "SecretBytes(32)" in text
    with pytest.raises(TypeError):
        bytes(secret)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_it_cannot_be_pickled_copied_or_hashed() -> None:
    secret = SecretBytes(RAW)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leave(secret)


def test_random_secrets_differ() -> None:
    assert random_secret() != random_secret()
    assert len(random_secret(16)) == 16


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_have_exactly_32_bytes(size: int) -> None:
    with pytest.raises(InvalidKey, match="32 bytes"):
        key_view(bytes(size))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux only")
def test_hardening_turns_core_dumps_and_ptrace_off() -> None:
    # In a process of its own: it cannot be undone.
    code = (
        "import ctypes, resource; from workers.crypto.secret import harden_process;"
        "done = harden_process();"
        "assert done == (True, True), done;"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0);"
        "assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0"  # PR_GET_DUMPABLE
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("size", [2, 32, 5000])
def test_what_a_library_returned_is_overwritten(size: int) -> None:
    for made in (bytes, bytearray):
        data = made(os.urandom(size))
        overwrite(data)
        assert data == bytes(size)


def test_bytes_that_python_shares_stay() -> None:
    for data in (b"", b"k"):
        overwrite(data)
    assert bytes([107]) == b"k"


def test_nothing_beside_the_bytes_is_overwritten() -> None:
    others = [os.urandom(32) for _ in range(64)]
    before = [bytearray(one) for one in others]
    overwrite(others.pop(31))
    del before[31]
    assert others == before
