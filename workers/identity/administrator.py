"""The identity provider of a realm without users: one local administrator."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.crypto.secret import Key
from workers.errors import Reject
from workers.identity.base import Identity
from workers.identity.token import open_token


@dataclass(frozen=True, slots=True)
class Administrator:
    """The administrator's record: id and default group, both UUIDs."""

    id: str
    default_group: str


class LocalAdministrator:
    """Knows one identity, with all scopes and one group."""

    def __init__(
        self,
        administrator: Administrator,
        token_key: Key,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve one administrator; `token_key` is the realm's `identity-token` key."""
        self._administrator = administrator
        self._token_key = token_key
        self._clock = clock

    async def authenticate(self, token: str) -> Identity:
        """Return the administrator: see `IdentityProvider.authenticate`."""
        body = open_token(self._token_key, token, now_s=self._clock())
        known = self._administrator
        if not hmac.compare_digest(body.identity_id, known.id):
            raise Reject(ErrorCode.UNAUTHENTICATED, "this identity does not exist", field="auth")
        return Identity(known.id, frozenset(Scope), (known.default_group,), known.default_group)
