"""A message under HPKE."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.ids import Hex16Field, IndexField, IndexName
from schemas.message import Request
from schemas.values import Base64, decode_base64, encode_base64


class SealedValue(Request, frozen=True, kw_only=True):
    """The value of a record of type `application/vnd.sealstream.sealed`.

    `key_id`: which of the recipient's keys. `suite`: 1 X25519, 2 MLKEM768-X25519. `index` is
    absent where the recipient is not an index's key (the key service, a caller's reply key).
    `sealed`: the HPKE ciphertext; or, with `shared`, a message sealed under the key that `shared`
    is the HPKE ciphertext of, and that other messages may share.
    """

    index: IndexField | None = None
    key_id: Hex16Field
    suite: Annotated[int, Meta(ge=1, le=255)]
    sealed: Base64
    shared: Base64 | None = None

    def __post_init__(self) -> None:
        decode_base64(self.sealed, "sealed")
        if self.shared is not None:
            decode_base64(self.shared, "shared")

    @classmethod
    def of(
        cls,
        sealed: bytes,
        *,
        key_id: bytes,
        suite: int,
        index: str | None = None,
        shared: bytes | None = None,
    ) -> SealedValue:
        """Wrap a ciphertext; `key_id` is 16 bytes."""
        return cls(
            index=None if index is None else IndexName(index),
            key_id=key_id.hex(),
            suite=suite,
            sealed=encode_base64(sealed),
            shared=None if shared is None else encode_base64(shared),
        )

    def ciphertext(self) -> bytes:
        """Return the bytes of `sealed`."""
        return decode_base64(self.sealed, "sealed")

    def shared_bytes(self) -> bytes | None:
        """Return the bytes of `shared`, None without it."""
        return None if self.shared is None else decode_base64(self.shared, "shared")

    def key_id_bytes(self) -> bytes:
        """Return the 16 bytes of the key id."""
        return bytes.fromhex(self.key_id)
