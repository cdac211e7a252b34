"""Who stands behind a credential, and what they may do at most.

A sealed credential is opened with the key service's HPKE keys, checked for index and expiry, and
its proof turned into a principal:

    token        the identity provider says who; scopes and groups are the identity's
    index_key    for an index whose KEK its callers keep (provider `none`): whoever has the key owns
                 the index. All of them are one principal with one group, derived from the realm and
                 the index. Whether the key is right is found out where the keys are opened.
    user_key     made for one user of one index (`user_keys.py`), to read, to write, or both, in the
                 name of the group that owns the index.

A credential lives at most `MAX_LIFE_S`; one that can only write, shown by an ingest worker, as long
as the topic keeps messages (a backlog must not die).
"""

from __future__ import annotations

import dataclasses
import time
from typing import Final
from uuid import UUID

from schemas.admin import AdminAuth
from schemas.auth import Credential, Scope, check_index_key
from schemas.errors import ErrorCode, InvalidMessage
from schemas.topics import ALL_TOPICS, PLAINTEXT_INGEST
from schemas.values import decode_base64
from workers.crypto.derive import prf
from workers.crypto.secret import SecretBytes
from workers.errors import Reject
from workers.identity.base import IdentityProvider
from workers.keys.catalog import IndexRecord
from workers.keys.principal import Principal, cut
from workers.keys.realm import Realm, RealmPurpose
from workers.keys.service_keys import ServiceKeys
from workers.keys.user_keys import UserKeys
from workers.leases.certificate import CLOCK_SKEW_S, Clock, Role
from workers.leases.credential import open_credential
from workers.leases.request import Caller
from workers.leases.revocation import Revocations

MAX_LIFE_S: Final = 3600
INGEST_RETENTION_S: Final = next(
    (topic.retention_ms or 0) // 1000 for topic in ALL_TOPICS if topic.name == PLAINTEXT_INGEST
)
WRITE_SCOPES: Final = frozenset({Scope.ENCRYPT, Scope.UPDATE, Scope.DELETE, Scope.INDEX})
# An index key says nothing about tokens, which belong to the realm.
_INDEX_KEY_SCOPES: Final = frozenset(Scope) - {Scope.CREATE_TOKEN, Scope.GET_TOKEN_CONTENTS}
# Index is needed to search and to write keywords; the permission decides which.
_READ_SCOPES: Final = frozenset({Scope.DECRYPT, Scope.INDEX, Scope.GET_ACCESS_GROUPS})


class Callers:
    """Resolves credentials."""

    def __init__(
        self,
        realm: Realm,
        keys: ServiceKeys,
        provider: IdentityProvider,
        user_keys: UserKeys,
        revocations: Revocations,
        *,
        allow_plain: bool,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            realm: names the group of an index key.
            keys: open sealed credentials.
            provider: knows identity tokens.
            user_keys: knows user keys.
            revocations: as published.
            allow_plain: whether a token in clear counts.
            clock: seconds since 1970.
        """
        self._realm = realm
        self._keys = keys
        self._provider = provider
        self._user_keys = user_keys
        self._revocations = revocations
        self._allow_plain = allow_plain
        self._clock = clock

    async def of_message(self, caller: Caller, record: IndexRecord, role: Role) -> Principal:
        """Resolve the credential of a message about an index.

        Args:
            caller: the credential.
            record: of the index.
            role: of the worker that shows it.

        Raises:
            Reject: UNAUTHENTICATED, EXPIRED, FORBIDDEN, INVALID_MESSAGE, UNSUPPORTED.
            Retry: the identity provider cannot be asked.
        """
        if caller.token is not None:
            if not self._allow_plain:
                raise Reject(
                    ErrorCode.UNAUTHENTICATED,
                    "tokens in clear are not accepted here: send auth.sealed",
                    field="auth.token",
                )
            return await self._of_token(caller.token, None, self._clock() + MAX_LIFE_S, [])
        try:
            sealed = decode_base64(caller.sealed or "", "auth.sealed")
        except InvalidMessage as error:
            raise Reject(error.code, error.message, field=error.field) from error
        return await self._of_sealed(sealed, record.index, record, role)

    async def of_admin(self, auth: AdminAuth, index: str, record: IndexRecord | None) -> Principal:
        """Resolve the credential of an admin-request, which was sealed as a whole.

        Args:
            auth: the credential.
            index: name of the index the operation is about; "" if about none.
            record: of that index, if it exists.

        Raises:
            Reject, Retry: as `of_message`.
        """
        index_key = _secret(auth.index_key)
        uid = None if record is None else record.uid
        expires_s = self._clock() + MAX_LIFE_S
        if auth.sealed is not None:
            principal = await self._of_sealed(
                decode_base64(auth.sealed, "auth.sealed"), index, record, None
            )
        elif auth.token is not None:
            principal = await self._of_token(auth.token, None, expires_s, [])
        elif auth.user_key is not None:
            principal = await self._of_user_key(
                record, auth.user_id, auth.user_key, None, expires_s, []
            )
        elif index_key is not None:
            return self._of_index_key(index_key, uid, None, expires_s, [])
        else:
            raise Reject(ErrorCode.UNAUTHENTICATED, "no credential", field="auth")
        if index_key is None:
            return principal
        return dataclasses.replace(principal, index_key=index_key)

    def check_revoked(self, principal: Principal) -> None:
        """Refuse who was revoked. Raises Reject: FORBIDDEN."""
        if self._revocations.find("user", principal.id):
            raise Reject(ErrorCode.FORBIDDEN, "the caller was revoked", field="auth")

    async def _of_sealed(
        self, sealed: bytes, index: str, record: IndexRecord | None, role: Role | None
    ) -> Principal:
        credential = open_credential(self._keys.privates, sealed, index)
        self._check_life(credential, role)
        cnf = decode_base64(credential.cnf, "auth.cnf")
        if credential.token is not None:
            return await self._of_token(credential.token, cnf, credential.exp, credential.scopes)
        index_key = _secret(credential.index_key)
        if index_key is None:
            return await self._of_user_key(
                record,
                credential.user_id,
                credential.user_key,
                cnf,
                credential.exp,
                credential.scopes,
            )
        uid = None if record is None else record.uid
        return self._of_index_key(index_key, uid, cnf, credential.exp, credential.scopes)

    def _check_life(self, credential: Credential, role: Role | None) -> None:
        left_s = credential.exp - self._clock()
        if left_s <= 0:
            raise Reject(
                ErrorCode.EXPIRED, "the credential has expired: make another", field="auth"
            )
        limit_s = MAX_LIFE_S
        if role == "ingest" and credential.scopes and WRITE_SCOPES.issuperset(credential.scopes):
            limit_s = INGEST_RETENTION_S
        if left_s > limit_s + CLOCK_SKEW_S:
            raise Reject(
                ErrorCode.UNAUTHENTICATED,
                f"this credential may live at most {limit_s} s: make another",
                field="auth",
            )

    async def _of_token(
        self, token: str, cnf: bytes | None, expires_s: float, asked: list[Scope]
    ) -> Principal:
        identity = await self._provider.authenticate(token)
        return Principal(
            id=identity.id,
            scopes=cut(identity.scopes, asked),
            groups=identity.groups,
            default_group=identity.default_group,
            cnf=cnf,
            expires_s=expires_s,
            group_scopes={g: cut(s, asked) for g, s in identity.group_scopes.items()},
        )

    async def _of_user_key(
        self,
        record: IndexRecord | None,
        user_id: str | None,
        user_key: str | None,
        cnf: bytes | None,
        expires_s: float,
        asked: list[Scope],
    ) -> Principal:
        if record is None:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "a user key is for an index: send a token", field="auth"
            )
        key = decode_base64(user_key or "", "auth.user_key")
        known = await self._user_keys.authenticate(record, user_id or "", key)
        scopes: frozenset[Scope] = frozenset()
        if "read" in known.permissions:
            scopes |= _READ_SCOPES
        if "write" in known.permissions:
            scopes |= WRITE_SCOPES
        return Principal(
            id=f"user-key:{record.uid.hex()}/{user_id}",
            scopes=cut(scopes, asked),
            groups=(record.owner_group,),
            default_group=record.owner_group,
            cnf=cnf,
            expires_s=expires_s,
            kind="user-key",
            permissions=known.permissions,
            index_key=known.index_key,
        )

    def _of_index_key(
        self,
        index_key: SecretBytes,
        uid: bytes | None,
        cnf: bytes | None,
        expires_s: float,
        asked: list[Scope],
    ) -> Principal:
        if uid is None:
            raise Reject(
                ErrorCode.UNAUTHENTICATED,
                "an index key says nothing about who asks: send a token with it",
                field="auth",
            )
        # Not secret, but not to be guessed from outside of the realm either.
        raw = prf(self._realm.key(RealmPurpose.GROUP), "index-key", uid)[:16]
        group = str(UUID(bytes=raw, version=4))
        return Principal(
            id=f"index-key:{group}",
            scopes=cut(_INDEX_KEY_SCOPES, asked),
            groups=(group,),
            default_group=group,
            cnf=cnf,
            expires_s=expires_s,
            kind="index-key",
            index_key=index_key,
        )


def _secret(text: str | None) -> SecretBytes | None:
    return None if text is None else SecretBytes(check_index_key(text, "auth.index_key"))
