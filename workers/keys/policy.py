"""Who may what: worker role ∩ caller's scopes, and which keys that makes.

a lease      the certificate names the index; the purposes asked for are the role's; without a
caller only those that need none (`INTAKE_PURPOSES`)
a decision   ingest and query workers, for indexes in their certificate
object keys  query workers that hold a full lease; those of the caller's groups that let it decrypt
must meet the record's
a user key   only what its permissions say, and no administration
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.secret import SecretBytes
from workers.errors import Reject
from workers.keys.catalog import IndexRecord
from workers.keys.keyring import KeyRing
from workers.keys.principal import Permission, Principal, lacks
from workers.leases.certificate import Role, WorkerCertificate
from workers.leases.grant import KeyItem, LeasePayload
from workers.leases.lease import INTAKE_PURPOSES, ROLE_PURPOSES

# What a caller must be allowed, at least one of them, for a worker to be given an index's keys on
# their behalf.
_USES: dict[Role, frozenset[Scope]] = {
    "ingest": frozenset({Scope.ENCRYPT, Scope.UPDATE, Scope.DELETE, Scope.INDEX}),
    "query": frozenset({Scope.DECRYPT, Scope.INDEX}),
}
_NEEDS: dict[Role, Permission] = {"ingest": "write", "query": "read"}
_SCOPE_NAMES = frozenset(scope.value for scope in Scope)
_CODES = frozenset(code.value for code in ErrorCode)
_PAIRS = frozenset({Purpose.OBJECT, Purpose.UPDATE, Purpose.QUERY})


def check_index(certificate: WorkerCertificate, index: str) -> None:
    """Refuse an index that the worker's certificate does not name. Raises Reject: FORBIDDEN."""
    if not certificate.covers(index):
        raise Reject(
            ErrorCode.FORBIDDEN, "the worker's certificate is not for this index", field="index"
        )


def check_purposes(role: Role, purposes: Collection[str], *, with_caller: bool) -> None:
    """Refuse keys that the role may not have.

    Raises:
        Reject: FORBIDDEN.
    """
    allowed = ROLE_PURPOSES[role] if with_caller else INTAKE_PURPOSES[role]
    if not purposes or len(set(purposes)) != len(purposes) or not allowed.issuperset(purposes):
        why = "" if with_caller else " without a caller"
        raise Reject(
            ErrorCode.FORBIDDEN, f"a worker of the role {role} may not have these keys{why}"
        )


def check_use(role: Role, principal: Principal) -> None:
    """Refuse a caller with no scope that this role could serve. Raises Reject: FORBIDDEN."""
    needed = _NEEDS.get(role)
    if needed not in principal.permissions:
        raise Reject(ErrorCode.FORBIDDEN, f"this user key is not for: {needed}", field="auth")
    if not _USES.get(role, frozenset()) & principal.any_scopes:
        raise Reject(
            ErrorCode.FORBIDDEN, "the caller has no scope for what this worker does", field="auth"
        )


def check_scopes(principal: Principal, scopes: Iterable[str]) -> None:
    """Refuse a caller who lacks one of the scopes that a worker found missing.

    Raises:
        Reject: FORBIDDEN; INVALID_MESSAGE, no such scope.
    """
    for name in scopes:
        if name not in _SCOPE_NAMES:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the request names an unknown scope")
        if Scope(name) not in principal.any_scopes:
            raise lacks(Scope(name))


def noted_refusal(purposes: Collection[str]) -> Reject:
    """Return the refusal that a worker tells of: the first of its words is the code."""
    code = next(iter(purposes), "")
    if code not in _CODES:
        return Reject(ErrorCode.INVALID_MESSAGE, "the request names no error code")
    return Reject(ErrorCode(code), "refused by the worker")


def lease_payload(
    role: Role, record: IndexRecord, ring: KeyRing, purposes: Iterable[str]
) -> LeasePayload:
    """Return the keys of a lease; for an ingest worker OBJECT and UPDATE are public halves.

    Args:
        role: of the worker; `check_purposes` has passed.
        record: of the index.
        ring: its keys.
        purposes: what to put in.

    Raises:
        Retry: the ring was wiped meanwhile.
    """
    ring.check()
    wanted = {Purpose(purpose) for purpose in purposes}
    # Who writes needs the current generation only.
    generations = [record.generation] if role == "ingest" else sorted(ring.data_keys)
    keys = [
        _item(role, ring, generation, purpose)
        for generation in generations
        for purpose in sorted(wanted - {Purpose.TAG, Purpose.INGEST})
    ]
    if Purpose.TAG in wanted:
        keys.append(KeyItem(0, Purpose.TAG, "key", 0, bytearray(ring.tag.view())))
    ingest = [
        KeyItem(0, Purpose.INGEST, "seed", key.suite, bytearray(key.seed.view()))
        for key in ring.newest_ingest_first()
        if Purpose.INGEST in wanted
    ]
    return LeasePayload(
        index=record.index,
        uid=record.uid,
        config=msgspec.json.encode(record.config),
        partitions=record.partitions,
        keys=keys,
        ingest=ingest,
        query_public=record.query_key.decode().encode(),
        directory_version=record.version,
    )


def _item(role: Role, ring: KeyRing, generation: int, purpose: Purpose) -> KeyItem:
    suite = ring.data_keys[generation].suite
    with ring.subkey(generation, purpose) as key:
        if role == "ingest":
            public = HpkePrivateKey.from_seed(suite, key).public
            return KeyItem(generation, purpose, "public", 0, bytearray(public.encode()))
        if purpose in _PAIRS:
            return KeyItem(generation, purpose, "seed", suite, bytearray(key.view()))
        return KeyItem(generation, purpose, "key", 0, bytearray(key.view()))


def may_read(groups: Collection[str], record_groups: Iterable[str]) -> bool:
    """Tell whether one of the caller's groups is on a record's access list."""
    return not {group.lower() for group in groups}.isdisjoint(record_groups)


def check_owner(principal: Principal, record: IndexRecord, index_key: SecretBytes | None) -> None:
    """Refuse who may not administer an index.

    That is who belongs to the group of its creator, and who has the index's own key (already
    checked against the index).

    Raises:
        Reject: FORBIDDEN.
    """
    check_no_user_key(principal)
    if index_key is None and record.owner_group not in principal.groups:
        raise Reject(
            ErrorCode.FORBIDDEN, "only the group that created an index may do this", field="auth"
        )
    if Scope.INDEX not in principal.scopes | principal.group_scopes.get(
        record.owner_group, frozenset()
    ):
        raise lacks(Scope.INDEX)


def check_no_user_key(principal: Principal) -> None:
    """Refuse user keys, which administer nothing. Raises Reject: FORBIDDEN."""
    if principal.kind == "user-key":
        raise Reject(
            ErrorCode.FORBIDDEN, "a user key is for documents and searches only", field="auth"
        )


def check_administrator(principal: Principal, administrators: str) -> None:
    """Refuse who may not administer users.

    Args:
        principal: who asks.
        administrators: the group whose members may.

    Raises:
        Reject: FORBIDDEN.
    """
    if principal.kind != "identity" or administrators not in principal.groups:
        raise Reject(ErrorCode.FORBIDDEN, "only administrators may do this", field="auth")
    principal.require(Scope.MODIFY_ACCESS_GROUPS)
