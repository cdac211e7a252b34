"""Several identity providers as one: by the form of the token."""

from __future__ import annotations

from workers.identity.base import Identity, IdentityProvider
from workers.identity.token import PREFIX


class Providers:
    """Gives each token to the provider whose tokens look like it.

    The realm's own begin with a prefix; a JWT has dots, which base64 of SAML has not.
    """

    def __init__(
        self,
        own: IdentityProvider,
        *,
        oidc: IdentityProvider | None = None,
        saml: IdentityProvider | None = None,
    ) -> None:
        """Prepare.

        Args:
            own: of the realm; gets what no other takes.
            oidc: gets JWTs, and whatever is not the realm's if there is no `saml`.
            saml: gets what has no dots, and whatever is not the realm's if there is no `oidc`.
        """
        self._own = own
        self._dotted = oidc or saml or own
        self._plain = saml or oidc or own

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        if token.startswith(PREFIX):
            return await self._own.authenticate(token)
        return await (self._dotted if "." in token else self._plain).authenticate(token)
