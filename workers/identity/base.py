"""What the key service asks of whoever knows the callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from schemas.auth import Scope


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller who has proved who they are.

    Attributes:
        id: opaque and stable; stands in the audit.
        scopes: what they may do, whatever group a document is of.
        groups: ids (UUIDs) of their groups, `default_group` among them.
        default_group: the group that is on the access list of everything they create.
        group_scopes: what a group lets its members do, with documents of that group only.
    """

    id: str
    scopes: frozenset[Scope]
    groups: tuple[str, ...]
    default_group: str
    group_scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)


class IdentityProvider(Protocol):
    """Turns identity tokens into identities. Safe to call concurrently.

    Scopes and groups are looked up at every call, not read from the token: what was taken away is
    gone at once (but for decisions that workers reuse for at most 60 s).
    """

    async def authenticate(self, token: str) -> Identity:
        """Return the identity that `token` stands for.

        Raises:
            Reject: UNAUTHENTICATED, not a token of this provider; EXPIRED.
            Retry: the provider cannot be asked now.
        """
        ...
