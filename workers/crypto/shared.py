"""Many messages under one encapsulation.

A hybrid encapsulation takes 250 us to make and 200 to open, far more than to seal a message. Who
sends many to one recipient encapsulates a random key, seals each message under that key, and sends
the encapsulation along with each: every message still opens by itself.

    shared    HPKE(recipient's key; info) of 32 random bytes
    message   SST1 (`seal.py`) under these, purpose MESSAGE, object id = what it is bound to

Claims: those of the two parts. As with HPKE's base mode nothing is said about the sender. Messages
that share an encapsulation show that they are from one sender.
"""

from __future__ import annotations

from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey
from workers.crypto.nodes import Buffer
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import KEY_BYTES, random_secret


class SharedSeal:
    """The sender's side: one encapsulation, for any number of messages.

    Attributes:
        public: the recipient.
        shared: the encapsulation.
    """

    __slots__ = ("_key", "public", "shared")

    def __init__(self, public: HpkePublicKey, info: bytes) -> None:
        """Encapsulate a new key.

        Args:
            public: the recipient.
            info: what the messages are: `info.info(...)`.
        """
        self.public = public
        self._key = random_secret()
        self.shared = public.seal(info, self._key)

    def seal(self, plaintext: Buffer, context: bytes) -> bytes:
        """Seal one message; it opens only with the same `context`."""
        return seal(
            self._key, plaintext, purpose=SealPurpose.MESSAGE, index_uid=b"", object_id=context
        )


def open_shared(
    private: HpkePrivateKey, info: bytes, shared: bytes, sealed: Buffer, context: bytes
) -> bytes:
    """Open a message of `SharedSeal`.

    Args:
        private: of the recipient; remembers what it opened.
        info: as encapsulated.
        shared: the encapsulation.
        sealed: the message.
        context: as sealed.

    Raises:
        OpenFailed: another key, `info` or `context`, or changed bytes.
    """
    key = private.open_again(info, shared)
    if len(key) != KEY_BYTES:
        raise OpenFailed("an encapsulated key has another length")
    return open_sealed(key, sealed, purpose=SealPurpose.MESSAGE, index_uid=b"", object_id=context)
