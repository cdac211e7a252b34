"""Who stands behind a credential, and what they may do at most.

A sealed credential is opened with the key service's HPKE keys, checked for index and expiry, and
its proof turned into a principal:

    token        the identity provider says who; scopes and groups are the identity's
    index_key    for an index whose KEK its callers keep (provider `none`): whoever has the key owns
                 the index. All of them are one principal with one group, derived from the realm and
                 the index. Whether the key is right is found out where the keys are opened.

A credential lives at most `MAX_LIFE_S`; one that can only write, shown by an ingest worker, as long
as the topic keeps messages (a backlog must not die).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
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
from workers.keys.realm import Realm, RealmPurpose
from workers.keys.service_keys import ServiceKeys
from workers.leases.certificate import CLOCK_SKEW_S, Clock, Role
from workers.leases.credential import open_credential
from workers.leases.request import Caller

MAX_LIFE_S: Final = 3600
INGEST_RETENTION_S: Final = next(
    (topic.retention_ms or 0) // 1000 for topic in ALL_TOPICS if topic.name == PLAINTEXT_INGEST
)
WRITE_SCOPES: Final = frozenset({Scope.ENCRYPT, Scope.UPDATE, Scope.DELETE, Scope.INDEX})
# An index key says nothing about tokens, which belong to the realm.
_INDEX_KEY_SCOPES: Final = frozenset(Scope) - {Scope.CREATE_TOKEN, Scope.GET_TOKEN_CONTENTS}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller as the policy sees them.

    Attributes:
        id: for the audit.
        scopes: the identity's, cut down to what the credential asks for.
        groups: ids of their groups, `default_group` among them.
        cnf: session key that must have signed the message; None for a clear token.
        expires_s: end of the credential, seconds since 1970.
        index_key: the KEK they say the index has.
    """

    id: str
    scopes: frozenset[Scope]
    groups: tuple[str, ...]
    default_group: str
    cnf: bytes | None
    expires_s: float
    index_key: SecretBytes | None = field(repr=False, default=None)


class Callers:
    """Resolves credentials."""

    def __init__(
        self,
        realm: Realm,
        keys: ServiceKeys,
        provider: IdentityProvider,
        *,
        allow_plain: bool,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            realm: names the group of an index key.
            keys: open sealed credentials.
            provider: knows identity tokens.
            allow_plain: whether a token in clear counts.
            clock: seconds since 1970.
        """
        self._realm = realm
        self._keys = keys
        self._provider = provider
        self._allow_plain = allow_plain
        self._clock = clock

    async def of_message(self, caller: Caller, index: str, uid: bytes, role: Role) -> Principal:
        """Resolve the credential of a message about an index.

        Args:
            caller: the credential.
            index: name of the index.
            uid: its uid.
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
        return await self._of_sealed(sealed, index, uid, role)

    async def of_admin(self, auth: AdminAuth, index: str, uid: bytes | None) -> Principal:
        """Resolve the credential of an admin-request, which was sealed as a whole.

        Args:
            auth: the credential.
            index: name of the index the operation is about; "" if about none.
            uid: its uid, if it exists.

        Raises:
            Reject, Retry: as `of_message`.
        """
        index_key = _secret(auth.index_key)
        expires_s = self._clock() + MAX_LIFE_S
        if auth.sealed is not None:
            principal = await self._of_sealed(
                decode_base64(auth.sealed, "auth.sealed"), index, uid, None
            )
        elif auth.token is not None:
            principal = await self._of_token(auth.token, None, expires_s, [])
        elif auth.user_key is not None:
            raise _no_user_keys()
        elif index_key is not None:
            return self._of_index_key(index_key, uid, None, expires_s, [])
        else:
            raise Reject(ErrorCode.UNAUTHENTICATED, "no credential", field="auth")
        if index_key is None:
            return principal
        return Principal(
            id=principal.id,
            scopes=principal.scopes,
            groups=principal.groups,
            default_group=principal.default_group,
            cnf=principal.cnf,
            expires_s=principal.expires_s,
            index_key=index_key,
        )

    async def _of_sealed(
        self, sealed: bytes, index: str, uid: bytes | None, role: Role | None
    ) -> Principal:
        credential = open_credential(self._keys.privates, sealed, index)
        self._check_life(credential, role)
        cnf = decode_base64(credential.cnf, "auth.cnf")
        if credential.token is not None:
            return await self._of_token(credential.token, cnf, credential.exp, credential.scopes)
        index_key = _secret(credential.index_key)
        if index_key is None:
            raise _no_user_keys()
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
            scopes=_cut(identity.scopes, asked),
            groups=identity.groups,
            default_group=identity.default_group,
            cnf=cnf,
            expires_s=expires_s,
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
            scopes=_cut(_INDEX_KEY_SCOPES, asked),
            groups=(group,),
            default_group=group,
            cnf=cnf,
            expires_s=expires_s,
            index_key=index_key,
        )


def _cut(scopes: frozenset[Scope], asked: list[Scope]) -> frozenset[Scope]:
    return scopes.intersection(asked) if asked else scopes


def _secret(text: str | None) -> SecretBytes | None:
    return None if text is None else SecretBytes(check_index_key(text, "auth.index_key"))


def _no_user_keys() -> Reject:
    return Reject(ErrorCode.UNSUPPORTED, "user keys are not offered by this version", field="auth")
