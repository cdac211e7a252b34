"""A caller as the policy sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes
from workers.errors import Reject

Permission = Literal["read", "write"]
ALL_PERMISSIONS: frozenset[Permission] = frozenset({"read", "write"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what they may do.

    Attributes:
        id: for the audit.
        scopes: what they may do whatever group a document is of, cut down to what the credential
            asks for.
        groups: ids of their groups, `default_group` among them.
        cnf: session key that must have signed the message; None for a clear token.
        expires_s: end of the credential, seconds since 1970.
        group_scopes: what a group lets its members do with documents of that group, cut likewise.
        kind: what they authenticated with.
        permissions: of a user key; everything for others.
        index_key: the KEK they say the index has, or that a user key opened.
    """

    id: str
    scopes: frozenset[Scope]
    groups: tuple[str, ...]
    default_group: str
    cnf: bytes | None
    expires_s: float
    group_scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)
    kind: Literal["identity", "index-key", "user-key"] = "identity"
    permissions: frozenset[Permission] = ALL_PERMISSIONS
    index_key: SecretBytes | None = field(repr=False, default=None)

    @property
    def any_scopes(self) -> frozenset[Scope]:
        """Everything they may do with at least some documents."""
        return self.scopes.union(*self.group_scopes.values())

    def groups_with(self, scope: Scope) -> tuple[str, ...]:
        """Return the groups whose documents they may do this with."""
        if scope in self.scopes:
            return self.groups
        return tuple(g for g in self.groups if scope in self.group_scopes.get(g, ()))

    def require(self, scope: Scope) -> None:
        """Refuse who lacks a scope of their own. Raises Reject: FORBIDDEN."""
        if scope not in self.scopes:
            raise lacks(scope)

    def require_member(self, scope: Scope, groups: Collection[str]) -> None:
        """Refuse who may not do this with a document of these groups.

        Raises:
            Reject: FORBIDDEN.
        """
        if scope not in self.any_scopes:
            raise lacks(scope)
        if set(self.groups_with(scope)).isdisjoint(groups):
            raise Reject(
                ErrorCode.FORBIDDEN,
                "only members of a group of the access list may do this",
                field="auth",
            )


def lacks(scope: Scope) -> Reject:
    """Return the refusal for a scope that is missing."""
    return Reject(ErrorCode.FORBIDDEN, f"the caller lacks the scope {scope}", field="auth")


def cut(scopes: frozenset[Scope], asked: Iterable[Scope]) -> frozenset[Scope]:
    """Return the scopes that were asked for; all if none was named."""
    wanted = frozenset(asked)
    return scopes & wanted if wanted else scopes
