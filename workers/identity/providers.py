"""Several identity providers as one: by the form of the token. Here a refusal gets into the log."""

from __future__ import annotations

import structlog

from workers.errors import Reject, Retry
from workers.identity.base import Identity, IdentityProvider
from workers.identity.refusal import Refused, Unavailable
from workers.identity.token import PREFIX
from workers.telemetry import metrics

log = structlog.get_logger("identity")


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
        known = {"realm": own, "oidc": oidc, "saml": saml}
        self._providers = {name: one for name, one in known.items() if one is not None}

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        name = self._name(token)
        try:
            return await self._providers[name].authenticate(token)
        except Reject as error:
            reason = (error.why if isinstance(error, Refused) else error.code).lower()
            metrics.REFUSED_TOKENS.inc(provider=name, reason=reason)
            log.warning(
                "identity token refused",
                provider=name,
                reason=reason,
                code=error.code.value,
                why=error.message,
            )
            raise
        except Retry as error:
            log.warning(
                "identity token not looked at",
                provider=name,
                code=error.code.value,
                why=error.why if isinstance(error, Unavailable) else error.message,
            )
            raise

    def _name(self, token: str) -> str:
        """Return whose tokens look like this one."""
        if token.startswith(PREFIX):
            return "realm"
        wanted = ("oidc", "saml") if "." in token else ("saml", "oidc")
        return next((name for name in wanted if name in self._providers), "realm")
