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
    """

    index: IndexField | None = None
    key_id: Hex16Field
    suite: Annotated[int, Meta(ge=1, le=255)]
    sealed: Base64

    def __post_init__(self) -> None:
        decode_base64(self.sealed, "sealed")

    @classmethod
    def of(
        cls, sealed: bytes, *, key_id: bytes, suite: int, index: str | None = None
    ) -> SealedValue:
        """Wrap a ciphertext; `key_id` is 16 bytes."""
        return cls(
            index=None if index is None else IndexName(index),
            key_id=key_id.hex(),
            suite=suite,
            sealed=encode_base64(sealed),
        )

    def ciphertext(self) -> bytes:
        """Return the HPKE ciphertext (encapsulated key and sealed message)."""
        return decode_base64(self.sealed, "sealed")

    def key_id_bytes(self) -> bytes:
        """Return the 16 bytes of the key id."""
        return bytes.fromhex(self.key_id)
