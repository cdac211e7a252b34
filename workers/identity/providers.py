"""Several identity providers as one: by the form of the token."""

from __future__ import annotations

from workers.identity.base import Identity, IdentityProvider
from workers.identity.token import PREFIX


class Providers:
    """Gives the realm's own tokens to the standalone provider, and all others to another one."""

    def __init__(self, own: IdentityProvider, other: IdentityProvider) -> None:
        self._own = own
        self._other = other

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        provider = self._own if token.startswith(PREFIX) else self._other
        return await provider.authenticate(token)
