"""One Ed25519 signature for several messages: a tree of hashes, and for each message its way up.

    leaf    SHA-256(0x00 || lp(parts of the message))
    node    SHA-256(0x01 || left || right), 32 zero bytes for a leaf or node that is not there
    signed  ("together", root), in the domain of the messages

A message's signature is then

    offset  size  field
    0       64    Ed25519 signature, the same for all
    64      1     place of the message, from 0
    65      32 d  the hash beside its way up, on each of the d levels from below; 2^d > place

A message alone is signed as ever (`sign.py`): 64 bytes. Each message verifies by itself, in its own
record, with no knowledge of the others, and who verifies several pays for one: a signature takes
50 us and its verification 200, a way up of four levels 10. Nothing is said about messages that a
reader does not get.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.lp import Part, lp
from workers.crypto.sign import SIGNATURE_BYTES, SigningKey, VerifyKey

TOGETHER: Final = 16
"""Messages of one tree: more would make the ways longer than they save."""
MAX_LEVELS: Final = 8
_HASH_BYTES: Final = 32
_NOTHING: Final = bytes(_HASH_BYTES)
_MARK: Final = "together"


def sign_together(
    key: SigningKey, domain: Info, messages: Sequence[tuple[Part, ...]]
) -> list[bytes]:
    """Sign messages, `TOGETHER` at a time; return the signature of each.

    Args:
        key: of the signer.
        domain: of all of them.
        messages: the parts of each.
    """
    signatures: list[bytes] = []
    for first in range(0, len(messages), TOGETHER):
        signatures += _sign(key, domain, messages[first : first + TOGETHER])
    return signatures


def verify(key: VerifyKey, signature: bytes, domain: Info, *parts: Part) -> None:
    """Check the signature of one message, alone or together with others.

    Raises:
        BadSignature: it was not made by this key over exactly this.
    """
    if len(signature) == SIGNATURE_BYTES:
        key.verify(signature, domain, *parts)
        return
    if not is_signature(signature):
        raise BadSignature("the signature has no known form")
    place = signature[SIGNATURE_BYTES]
    node = _leaf(parts)
    for at in range(SIGNATURE_BYTES + 1, len(signature), _HASH_BYTES):
        beside = signature[at : at + _HASH_BYTES]
        node = _join(beside, node) if place & 1 else _join(node, beside)
        place >>= 1
    _verify_root(key, signature[:SIGNATURE_BYTES], domain, node)


def is_signature(data: bytes) -> bool:
    """Tell whether `data` has the form of a signature that `verify` takes."""
    if len(data) <= SIGNATURE_BYTES:
        return len(data) == SIGNATURE_BYTES
    levels, rest = divmod(len(data) - SIGNATURE_BYTES - 1, _HASH_BYTES)
    return not rest and 1 <= levels <= MAX_LEVELS and data[SIGNATURE_BYTES] < 1 << levels


def _sign(key: SigningKey, domain: Info, messages: Sequence[tuple[Part, ...]]) -> list[bytes]:
    if len(messages) == 1:
        return [key.sign(domain, *messages[0])]
    levels = [[_leaf(parts) for parts in messages]]
    for _ in range((len(messages) - 1).bit_length()):
        below = levels[-1]
        if len(below) % 2:
            below.append(_NOTHING)
        levels.append([_join(*below[i : i + 2]) for i in range(0, len(below), 2)])
    signature = key.sign(domain, _MARK, levels.pop()[0])
    return [
        b"".join(
            (signature, bytes((place,)), *(one[(place >> i) ^ 1] for i, one in enumerate(levels)))
        )
        for place in range(len(messages))
    ]


def _leaf(parts: tuple[Part, ...]) -> bytes:
    return hashlib.sha256(b"\x00" + lp(*parts)).digest()


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


@lru_cache(maxsize=1024)
def _verify_root(key: VerifyKey, signature: bytes, domain: Info, root: bytes) -> None:
    """Verify a root once: its messages come one after the other."""
    key.verify(signature, domain, _MARK, root)
