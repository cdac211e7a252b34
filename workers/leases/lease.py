"""What a worker holds after a grant: the keys of one index, for its role, for a few minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.index import IndexConfig
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite, key_id
from workers.crypto.secret import SecretBytes
from workers.errors import Reject, Retry
from workers.leases.certificate import Role
from workers.leases.grant import LeasePayload

T = TypeVar("T")


# What a role leases: exactly the table of crypto.md. For the ingest worker OBJECT and UPDATE are
# public halves: it can seal to them and open neither.
ROLE_PURPOSES: Mapping[Role, frozenset[Purpose]] = {
    "ingest": frozenset({Purpose.TAG, Purpose.OBJECT, Purpose.UPDATE, Purpose.INGEST}),
    "index": frozenset({Purpose.UPDATE, Purpose.SEGMENT, Purpose.VECTOR}),
    "query": frozenset({Purpose.TAG, Purpose.SEGMENT, Purpose.VECTOR, Purpose.QUERY}),
}

# What a role may lease without a caller. The index worker never meets one. A *sealed* message
# holds its credential inside, so its worker needs the private half it was sealed to before a caller
# can be named: the intake key. That key opens what lies in the worker's own input topic and nothing
# that is stored: vocabulary words, sealed to `query`, lie in blocks under `segment`, which, like
# TAG, needs a caller.
INTAKE_PURPOSES: Mapping[Role, frozenset[Purpose]] = {
    "ingest": frozenset({Purpose.INGEST}),
    "index": ROLE_PURPOSES["index"],
    "query": frozenset({Purpose.QUERY}),
}


@dataclass(slots=True, eq=False)
class Lease:
    """The keys of one index for this worker's role. Do not keep it beyond one micro-batch or query.

    Renewal makes a new `Lease`; this one stays valid until `expires_s` and is wiped then. Keys that
    the new one has too stay the same objects: work that takes longer than a lease goes on as long
    as the lease is renewed, and no longer.

    Attributes:
        index, uid: name and 16-byte uid.
        config: settings of the index.
        generation: data-key generation to write with; older ones may still be readable.
        partitions: partition of index-update per shard.
        expires_s: end, seconds since 1970.
        full: has all purposes of the role; else only those that need no caller.
        directory_version: version of the index's directory entry when it was granted.
    """

    index: str
    uid: bytes
    config: IndexConfig
    role: Role
    generation: int
    partitions: tuple[int, ...]
    issued_s: float
    expires_s: float
    full: bool
    directory_version: int
    _secrets: dict[tuple[int, Purpose], SecretBytes] = field(repr=False)
    _publics: dict[tuple[int, Purpose], HpkePublicKey] = field(repr=False)
    _privates: dict[tuple[int, Purpose], HpkePrivateKey] = field(repr=False)
    _ingest: dict[bytes, HpkePrivateKey] = field(repr=False)
    _query_public: HpkePublicKey | None = field(repr=False)
    wiped: bool = False
    _handed_on: set[tuple[int, Purpose]] = field(repr=False, default_factory=set)

    def take_over(self, before: Lease) -> None:
        """Go on with the key objects of the lease that this one renews, where they are equal."""
        for name, secret in before._secrets.items():
            mine = self._secrets.get(name)
            if mine is not None and name not in before._handed_on and mine == secret:
                mine.wipe()
                self._secrets[name] = secret
                before._handed_on.add(name)

    @property
    def purposes(self) -> frozenset[Purpose]:
        """Return the purposes this lease carries keys for."""
        held = {purpose for _, purpose in (*self._secrets, *self._publics, *self._privates)}
        return frozenset(held | ({Purpose.INGEST} if self._ingest else set()))

    @property
    def generations(self) -> tuple[int, ...]:
        """Return the generations that can be read, ascending."""
        held = {g for g, _ in (*self._secrets, *self._publics, *self._privates)}
        return tuple(sorted(held - {0}))

    @property
    def tag(self) -> SecretBytes:
        """The index's tag key (ingest, query)."""
        return self._get(self._secrets, 0, Purpose.TAG)

    def keys(self, generation: int, purpose: Purpose) -> SecretBytes:
        """Return a symmetric subkey: `SEGMENT` or `VECTOR`.

        Raises:
            Retry: KEY_UNAVAILABLE, not in this lease (generation), or the lease has ended.
            Reject: FORBIDDEN, the role has no such key.
        """
        return self._get(self._secrets, generation, purpose)

    def private_key(self, generation: int, purpose: Purpose) -> HpkePrivateKey:
        """Return the private half of `UPDATE` (index) or `QUERY` (query). Raises as `keys`."""
        return self._get(self._privates, generation, purpose)

    @property
    def object_public(self) -> HpkePublicKey:
        """What access records are sealed to (ingest)."""
        return self._get(self._publics, self.generation, Purpose.OBJECT)

    @property
    def update_public(self) -> HpkePublicKey:
        """What index-update bodies are sealed to (ingest)."""
        return self._get(self._publics, self.generation, Purpose.UPDATE)

    @property
    def query_public(self) -> HpkePublicKey:
        """What vocabulary words are sealed to; public in key-directory."""
        if self._query_public is None:
            raise Reject(ErrorCode.FORBIDDEN, "this lease has no such key")
        return self._query_public

    def has_intake_key(self, wanted: bytes) -> bool:
        """Tell whether `intake_key` knows this 16-byte key id."""
        return self._find_intake_key(wanted) is not None

    def intake_key(self, wanted: bytes) -> HpkePrivateKey:
        """Return the private half that a sealed message names by its 16-byte key id.

        Raises:
            Reject: EXPIRED, no such key is kept.
            Retry: KEY_UNAVAILABLE, the lease has ended.
        """
        self._check_live()
        found = self._find_intake_key(wanted)
        if found is None:
            raise Reject(
                ErrorCode.EXPIRED,
                "sealed to a key that is not kept: read key-directory anew and seal again",
                field="key_id",
            )
        return found

    def wipe(self) -> None:
        """Overwrite the keys and forget them."""
        for name, secret in self._secrets.items():
            if name not in self._handed_on:
                secret.wipe()
        self._privates.clear()
        self._ingest.clear()
        self.wiped = True

    def _find_intake_key(self, wanted: bytes) -> HpkePrivateKey | None:
        queries = (k for (_, p), k in self._privates.items() if p is Purpose.QUERY)
        candidates = (*self._ingest.values(), *queries)
        return next((key for key in candidates if key_id(key.public) == wanted), None)

    def _check_live(self) -> None:
        if self.wiped:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the lease has ended: ask for it again")

    def _get(self, held: Mapping[tuple[int, Purpose], T], generation: int, purpose: Purpose) -> T:
        self._check_live()
        found = held.get((generation, purpose))
        if found is not None:
            return found
        if any(held_purpose is purpose for _, held_purpose in held):
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE, "this key generation is not in the lease: renew it"
            )
        raise Reject(ErrorCode.FORBIDDEN, "this lease has no such key")


def build_lease(
    payload: LeasePayload,
    *,
    role: Role,
    generation: int,
    issued_s: float,
    expires_s: float,
    full: bool,
) -> Lease:
    """Make a lease from the opened payload of a grant.

    Raises:
        ValueError, msgspec.MsgspecError: the payload is malformed.
    """
    secrets: dict[tuple[int, Purpose], SecretBytes] = {}
    publics: dict[tuple[int, Purpose], HpkePublicKey] = {}
    privates: dict[tuple[int, Purpose], HpkePrivateKey] = {}
    for item in payload.keys:
        name = (item.generation, Purpose(item.purpose))
        if item.form == "public":
            publics[name] = HpkePublicKey.decode(bytes(item.key))
        elif item.form == "seed":
            privates[name] = HpkePrivateKey.from_seed(HpkeSuite(item.suite), item.key)
        else:
            secrets[name] = SecretBytes(item.key)
    ingest = [HpkePrivateKey.from_seed(HpkeSuite(i.suite), i.key) for i in payload.ingest]
    return Lease(
        index=payload.index,
        uid=payload.uid,
        config=decode_config(payload.config),
        role=role,
        generation=generation,
        partitions=tuple(payload.partitions),
        issued_s=issued_s,
        expires_s=expires_s,
        full=full,
        directory_version=payload.directory_version,
        _secrets=secrets,
        _publics=publics,
        _privates=privates,
        _ingest={key_id(key.public): key for key in ingest},
        _query_public=HpkePublicKey.decode(payload.query_public) if payload.query_public else None,
    )


def decode_config(raw: bytes) -> IndexConfig:
    """Read the JSON of an `IndexConfig`. Raises msgspec.MsgspecError, ValueError."""
    return msgspec.json.decode(raw, type=IndexConfig)


@dataclass(frozen=True, slots=True)
class Decision:
    """Who a caller is and what they may do with one index.

    Attributes:
        caller: id for the audit.
        groups: all group ids (UUIDs) of the caller, `default_group` among them.
        scopes: what the caller may do whatever group a document is of, cut down to what the
            credential asked for.
        cnf: Ed25519 public key that must have signed the message; None for a clear token.
        expires_s: until when it may be reused, seconds since 1970.
        group_scopes: what a group lets its members do with documents of that group only.
    """

    caller: str
    index: str
    groups: tuple[str, ...]
    default_group: str
    scopes: frozenset[Scope]
    cnf: bytes | None
    expires_s: float
    group_scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)

    @property
    def any_scopes(self) -> frozenset[Scope]:
        """Everything the caller may do with at least some documents."""
        return self.scopes.union(*self.group_scopes.values())

    def groups_with(self, scope: Scope) -> tuple[str, ...]:
        """Return the groups whose documents the caller may do this with."""
        if scope in self.scopes:
            return self.groups
        return tuple(g for g in self.groups if scope in self.group_scopes.get(g, ()))

    def require(self, *scopes: Scope) -> None:
        """Check that the caller has every one of `scopes`, if only for the documents of a group.

        Raises:
            Reject: FORBIDDEN.
        """
        missing = set(scopes) - self.any_scopes
        if missing:
            names = ", ".join(sorted(missing))
            raise Reject(ErrorCode.FORBIDDEN, f"the caller lacks the scope {names}", field="auth")


@dataclass(frozen=True, slots=True)
class ObjectRequest:
    """One object key to open.

    Attributes:
        object_id: 16 bytes.
        generation: data-key generation of the record's pack key.
        sealed_sha256: SHA-256 of the sealed object (32 bytes).
        record: sealed access record, `workers.objects.record`.
        pack_key: the pack's wrapped key, `workers.objects.record`.
    """

    object_id: bytes
    generation: int
    sealed_sha256: bytes
    record: bytes
    pack_key: bytes
