"""Open the identity provider that the settings name besides the realm's own."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.settings import Settings

try:
    from workers.identity.oidc import HttpFetch, OidcConfig, OidcProvider, parse_roles
except ImportError as error:
    raise Fatal(
        ErrorCode.UNSUPPORTED, "OpenID Connect needs the extra: pip install sealstream[oidc]"
    ) from error


def open_oidc(
    settings: Settings, administrators: str, *, clock: Callable[[], float] = time.time
) -> tuple[OidcProvider, HttpFetch]:
    """Return the OpenID Connect provider of the settings, and what must be closed with it.

    Args:
        settings: `oidc_issuer` and `oidc_audience` are set.
        administrators: the realm's group of administrators.
        clock: seconds since 1970.

    Raises:
        Fatal: the settings cannot work.
    """
    try:
        roles = parse_roles(settings.oidc_roles)
    except ValueError as error:
        raise Fatal(ErrorCode.UNAUTHENTICATED, f"oidc_roles: {error}") from error
    config = OidcConfig(
        issuer=settings.oidc_issuer or "",
        audience=settings.oidc_audience or "",
        algorithms=frozenset(part.strip() for part in settings.oidc_algorithms.split(",")),
        roles_claim=settings.oidc_roles_claim,
        groups_claim=settings.oidc_groups_claim,
        roles=roles,
        administrators=settings.oidc_administrators,
        ca_file=settings.oidc_ca_file,
    )
    fetch = HttpFetch(config.ca_file)
    return OidcProvider(config, administrators, fetch, clock=clock), fetch
