"""The keys of one index as the key service holds them: KEK, TAG, DEKs, INGEST pairs.

Memory only; `wipe` ends it. What a role may see of it is decided in `policy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.errors import ErrorCode
from workers.crypto.derive import Purpose, subkey
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite
from workers.crypto.secret import SecretBytes
from workers.errors import Retry


@dataclass(frozen=True, slots=True)
class DataKey:
    """A DEK generation. `suite`: HPKE suite of the pairs that are derived from it."""

    generation: int
    suite: HpkeSuite
    dek: SecretBytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IngestKey:
    """An INGEST pair. `day`: days since 1970; `seed`: 32 bytes."""

    day: int
    suite: HpkeSuite
    seed: SecretBytes = field(repr=False)

    @property
    def public(self) -> HpkePublicKey:
        """The half that producers seal to."""
        return HpkePrivateKey.from_seed(self.suite, self.seed).public


@dataclass(slots=True, eq=False)
class KeyRing:
    """All keys of an index.

    Attributes:
        proved_s: when the KMS or a caller last gave the KEK, seconds since 1970.
        data_keys: by generation.
        ingest_keys: by day.
        epoch: of the KEK.
    """

    uid: bytes
    kek: SecretBytes = field(repr=False)
    tag: SecretBytes = field(repr=False)
    data_keys: dict[int, DataKey]
    ingest_keys: dict[int, IngestKey]
    proved_s: float
    epoch: int = 0

    @property
    def wiped(self) -> bool:
        """Whether `wipe` has run."""
        return self.kek.wiped

    def check(self) -> None:
        """Refuse a ring that was wiped since it was opened. Raises Retry: KEY_UNAVAILABLE."""
        if self.wiped:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the keys were dropped meanwhile: ask again")

    def is_of(self, kek: SecretBytes) -> bool:
        """Tell whether `kek` is this ring's KEK; False once wiped."""
        return not self.wiped and self.kek == kek

    def subkey(self, generation: int, purpose: Purpose) -> SecretBytes:
        """Return a subkey of a generation. Raises KeyError."""
        return subkey(self.data_keys[generation].dek, purpose, self.uid)

    def pair(self, generation: int, purpose: Purpose) -> HpkePrivateKey:
        """Return the pair whose seed is a subkey: object, update or query. Raises KeyError."""
        with self.subkey(generation, purpose) as seed:
            return HpkePrivateKey.from_seed(self.data_keys[generation].suite, seed)

    def newest_ingest_first(self) -> list[IngestKey]:
        """Return the INGEST pairs, newest first."""
        return [self.ingest_keys[day] for day in sorted(self.ingest_keys, reverse=True)]

    def wipe(self) -> None:
        """Overwrite the keys."""
        self.kek.wipe()
        self.tag.wipe()
        for data_key in self.data_keys.values():
            data_key.dek.wipe()
        for ingest_key in self.ingest_keys.values():
            ingest_key.seed.wipe()
