"""admin-request and admin-result. Requests are always sealed to the key service.

Each op has a type for its arguments (`ARGS`); `AdminRequest.arguments()` returns them checked.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from schemas import codec
from schemas.auth import Scope, Token, check_index_key
from schemas.errors import ErrorInfo, InvalidMessage
from schemas.ids import (
    DocIdField,
    GroupField,
    IndexField,
    Millis,
    UuidField,
    check_doc_id,
    check_name,
)
from schemas.index import (
    BM25_B,
    BM25_K1,
    Analyzer,
    Dimension,
    IndexConfig,
    Metric,
    Overwrite,
    Padding,
    Precision,
    Shards,
    Visibility,
    Weight,
)
from schemas.ingest import ReplyKey
from schemas.message import Answer, Part, Request
from schemas.values import Base64, Binary, decode_base64

Password = Annotated[str, Meta(min_length=1, max_length=1024)]
# As long as a kind, an issuer and a subject of another identity provider.
Principal = Annotated[str, Meta(min_length=1, max_length=1536)]
UserId = Annotated[str, Meta(min_length=1, max_length=256)]
Level = Literal["kms", "kek", "dek"]
Permission = Literal["read", "write"]
WorkerName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Glob = Annotated[str, Meta(min_length=1, max_length=128)]
Provider = Literal["none", "local", "vault", "aws", "gcp", "azure", "pkcs11"]

MAX_MEMBERS: Final = 1_000
MAX_GLOBS: Final = 64
MAX_TTL_S: Final = 10 * 365 * 86_400


class AdminOp(StrEnum):
    """What an administrator may ask for."""

    INDEX_CREATE = "index.create"
    INDEX_DESCRIBE = "index.describe"
    INDEX_LIST = "index.list"
    INDEX_DELETE = "index.delete"
    INDEX_SHRED = "index.shred"
    KMS_GET = "kms.get"
    KMS_PUSH = "kms.push"
    KMS_DELETE = "kms.delete"
    KEY_ROTATE = "key.rotate"
    KEY_STATUS = "key.status"
    KEY_REVOKE = "key.revoke"
    USER_KEY_CREATE = "user_key.create"
    USER_KEY_LIST = "user_key.list"
    USER_KEY_DELETE = "user_key.delete"
    USER_CREATE = "user.create"
    USER_LOGIN = "user.login"
    USER_CHANGE_PASSWORD = "user.change_password"  # noqa: S105 - the name of an op
    USER_DELETE = "user.delete"
    GROUP_CREATE = "group.create"
    GROUP_ADD_MEMBERS = "group.add_members"
    GROUP_REMOVE_MEMBERS = "group.remove_members"
    ACCESS_GET = "access.get"
    ACCESS_ADD = "access.add"
    ACCESS_REMOVE = "access.remove"
    TOKEN_CREATE = "token.create"  # noqa: S105 - the name of an op
    TOKEN_OPEN = "token.open"  # noqa: S105 - the name of an op
    WORKER_INVITE = "worker.invite"
    WORKER_ENROLL = "worker.enroll"
    WORKER_JOIN = "worker.join"


UNAUTHENTICATED_OPS: Final = frozenset(
    {AdminOp.USER_LOGIN, AdminOp.USER_CHANGE_PASSWORD, AdminOp.WORKER_JOIN}
)
"""Ops whose arguments authenticate by themselves."""


class NoArgs(Part, frozen=True, kw_only=True):
    """Of `index.list`."""


class IndexArgs(Part, frozen=True, kw_only=True):
    """Of ops on one index."""

    index: IndexField


class KmsChoice(Part, frozen=True, kw_only=True):
    """Where an index's KEK is wrapped. `none`: the caller keeps it, in `auth.index_key`.

    Addresses of KMS servers are settings of the key service, never a caller's.
    """

    provider: Provider
    key_id: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    region: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class IndexCreate(IndexArgs, frozen=True, kw_only=True):
    """Of `index.create`: the index's settings. `kms` absent: the deployment's own."""

    shards: Shards = 1
    dimension: Dimension | None = None
    metric: Metric = "cosine"
    storage_precision: Precision = "float16"
    fields: dict[str, Weight] = {}
    analyzer: Analyzer = "english"
    padding: Padding = "standard"
    visibility: Visibility = "members"
    overwrite: Overwrite = "members"
    bm25_k1: Annotated[float, Meta(ge=0.0, le=100.0)] = BM25_K1
    bm25_b: Annotated[float, Meta(ge=0.0, le=1.0)] = BM25_B
    kms: KmsChoice | None = None

    def __post_init__(self) -> None:
        for name in self.fields:
            check_name(name, "fields")

    def config(self) -> IndexConfig:
        """Return the settings alone."""
        return IndexConfig(**{n: getattr(self, n) for n in IndexConfig.__struct_fields__})


class KmsPush(IndexArgs, frozen=True, kw_only=True):
    """Of `kms.push`: the envelope as `kms.get` returned it."""

    envelope: Binary


class KeyRotate(IndexArgs, frozen=True, kw_only=True):
    """Of `key.rotate`.

    `new_index_key`: the next KEK, 32 bytes, for level `kek` of an index whose callers keep it.
    """

    level: Level
    new_index_key: str | None = None

    def __post_init__(self) -> None:
        if self.new_index_key is not None:
            check_index_key(self.new_index_key, "new_index_key")
            if self.level != "kek":
                raise InvalidMessage("only the level kek takes a key", "new_index_key")

    def new_index_key_bytes(self) -> bytes | None:
        """Return the next KEK that the caller brings, or None."""
        text = self.new_index_key
        return None if text is None else check_index_key(text, "new_index_key")


class KeyRevoke(Part, frozen=True, kw_only=True):
    """Of `key.revoke`: `worker/<id>` or `user/<id>`.

    `indexes`: those that the worker served, as globs (none: all); their data keys are changed.
    """

    principal: Principal
    indexes: Annotated[list[Glob], Meta(max_length=MAX_GLOBS)] = []

    def __post_init__(self) -> None:
        kind, _, name = self.principal.partition("/")
        if kind not in ("worker", "user") or not name:
            raise InvalidMessage("must be worker/<id> or user/<id>", "principal")


class WorkerTerms(Part, frozen=True, kw_only=True):
    """What a worker is certified for. `indexes`: names as globs, `*` crosses `/`."""

    worker_id: WorkerName
    role: Literal["ingest", "index", "query"]
    indexes: Annotated[list[Glob], Meta(min_length=1, max_length=MAX_GLOBS)]


class WorkerInvite(WorkerTerms, frozen=True, kw_only=True):
    """Of `worker.invite`. `ttl_s`: seconds within which the invitation may be used, once."""

    ttl_s: Annotated[int, Meta(ge=60, le=7 * 86_400)] = 3600


class WorkerEnroll(WorkerTerms, frozen=True, kw_only=True):
    """Of `worker.enroll`. `signature`: by the key of `sign_pub`, domain ENROLMENT."""

    sign_pub: Base64
    signature: Base64


class WorkerJoin(Part, frozen=True, kw_only=True):
    """Of `worker.join`: as `worker.enroll`, on the terms of an invitation."""

    invitation: Token
    sign_pub: Base64
    signature: Base64


class UserKeyCreate(IndexArgs, frozen=True, kw_only=True):
    """Of `user_key.create`."""

    user_id: UserId
    permissions: Annotated[list[Permission], Meta(min_length=1, max_length=2)]


class UserKeyDelete(IndexArgs, frozen=True, kw_only=True):
    """Of `user_key.delete`."""

    user_id: UserId


class ScopesArgs(Part, frozen=True, kw_only=True):
    """Of `user.create` and `group.create`."""

    scopes: list[Scope]


class UserLogin(Part, frozen=True, kw_only=True):
    """Of `user.login`."""

    user_id: UuidField
    password: Password


class UserChangePassword(Part, frozen=True, kw_only=True):
    """Of `user.change_password`: the key service draws the new one and returns it once."""

    user_id: UuidField
    password: Password


class UserDelete(Part, frozen=True, kw_only=True):
    """Of `user.delete`."""

    user_id: UuidField


class GroupMembers(Part, frozen=True, kw_only=True):
    """Of `group.add_members` and `group.remove_members`."""

    group_id: GroupField
    user_ids: Annotated[list[UuidField], Meta(min_length=1, max_length=MAX_MEMBERS)]


class AccessGet(IndexArgs, frozen=True, kw_only=True):
    """Of `access.get`."""

    id: DocIdField

    def __post_init__(self) -> None:
        check_doc_id(self.id)


class AccessChange(AccessGet, frozen=True, kw_only=True):
    """Of `access.add` and `access.remove`."""

    groups: Annotated[list[GroupField], Meta(min_length=1, max_length=MAX_MEMBERS)]


class TokenCreate(Part, frozen=True, kw_only=True):
    """Of `token.create`. `ttl_s`: seconds it lives."""

    data: str | Binary
    ttl_s: Annotated[int, Meta(ge=1, le=MAX_TTL_S)]


class TokenOpen(Part, frozen=True, kw_only=True):
    """Of `token.open`."""

    token: Token


ARGS: Final[dict[AdminOp, type[Part]]] = {
    AdminOp.INDEX_CREATE: IndexCreate,
    AdminOp.INDEX_DESCRIBE: IndexArgs,
    AdminOp.INDEX_LIST: NoArgs,
    AdminOp.INDEX_DELETE: IndexArgs,
    AdminOp.INDEX_SHRED: IndexArgs,
    AdminOp.KMS_GET: IndexArgs,
    AdminOp.KMS_PUSH: KmsPush,
    AdminOp.KMS_DELETE: IndexArgs,
    AdminOp.KEY_ROTATE: KeyRotate,
    AdminOp.KEY_STATUS: IndexArgs,
    AdminOp.KEY_REVOKE: KeyRevoke,
    AdminOp.USER_KEY_CREATE: UserKeyCreate,
    AdminOp.USER_KEY_LIST: IndexArgs,
    AdminOp.USER_KEY_DELETE: UserKeyDelete,
    AdminOp.USER_CREATE: ScopesArgs,
    AdminOp.USER_LOGIN: UserLogin,
    AdminOp.USER_CHANGE_PASSWORD: UserChangePassword,
    AdminOp.USER_DELETE: UserDelete,
    AdminOp.GROUP_CREATE: ScopesArgs,
    AdminOp.GROUP_ADD_MEMBERS: GroupMembers,
    AdminOp.GROUP_REMOVE_MEMBERS: GroupMembers,
    AdminOp.ACCESS_GET: AccessGet,
    AdminOp.ACCESS_ADD: AccessChange,
    AdminOp.ACCESS_REMOVE: AccessChange,
    AdminOp.TOKEN_CREATE: TokenCreate,
    AdminOp.TOKEN_OPEN: TokenOpen,
    AdminOp.WORKER_INVITE: WorkerInvite,
    AdminOp.WORKER_ENROLL: WorkerEnroll,
    AdminOp.WORKER_JOIN: WorkerJoin,
}


class AdminAuth(Part, frozen=True, kw_only=True):
    """A credential inside an admin-request, which is sealed as a whole.

    At most one of `sealed`, `token`, and `user_id` with `user_key` says who asks. `index_key`:
    the 32-byte key of an index whose KMS provider is `none`, beside it or alone.
    """

    sealed: Base64 | None = None
    token: Token | None = None
    user_id: UserId | None = None
    user_key: Base64 | None = None
    index_key: Base64 | None = None

    def __post_init__(self) -> None:
        who = sum(x is not None for x in (self.sealed, self.token, self.user_key))
        if who > 1 or (not who and self.index_key is None):
            raise InvalidMessage("exactly one of sealed, token and user_key is needed")
        if (self.user_id is None) != (self.user_key is None):
            raise InvalidMessage("user_id and user_key belong together", "user_id")
        for name in ("sealed", "user_key"):
            value = getattr(self, name)
            if value is not None:
                decode_base64(value, name)
        if self.index_key is not None:
            check_index_key(self.index_key, "index_key")

    def index_key_bytes(self) -> bytes | None:
        """Return the caller's own key of the index, 32 bytes, or None."""
        return None if self.index_key is None else check_index_key(self.index_key, "index_key")


class AdminRequest(Request, frozen=True, kw_only=True):
    """One administrative operation. The result is sealed to `reply.public_key`."""

    request_id: UuidField
    auth: AdminAuth | None = None
    op: AdminOp
    args: dict[str, Any] = {}
    reply: ReplyKey
    message_id: UuidField | None = None
    issued_ms: Millis | None = None

    def __post_init__(self) -> None:
        if self.auth is None and self.op not in UNAUTHENTICATED_OPS:
            raise InvalidMessage("is required", "auth")
        if self.auth is not None and self.auth.sealed is not None and self.issued_ms is None:
            raise InvalidMessage("is required with auth.sealed", "issued_ms")
        if self.reply.public_key is None:
            raise InvalidMessage("is required: results may hold secrets", "reply.public_key")
        self.arguments()

    def arguments(self) -> Part:
        """Return the arguments as the type that `ARGS` names for the op.

        Raises:
            InvalidMessage: they are not of that type.
        """
        try:
            return codec.convert(ARGS[self.op], self.args)
        except InvalidMessage as error:
            refusal = InvalidMessage(error.message, codec.join("args", error.field), error.code)
        raise refusal


class AdminResult(Answer, frozen=True, kw_only=True):
    """Answer to one admin-request."""

    request_id: str
    status: Literal["ok", "error"]
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None
