"""Open the identity providers that the settings name besides the realm's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.identity.claims import Source, parse_roles
from workers.settings import Settings

if TYPE_CHECKING:
    from workers.identity.oidc import HttpFetch, OidcProvider
    from workers.identity.saml import SamlProvider


def open_oidc(
    settings: Settings, administrators: str, *, clock: Callable[[], float] = time.time
) -> tuple[OidcProvider, HttpFetch]:
    """Return the OpenID Connect provider of the settings, and what must be closed with it.

    Args:
        settings: `oidc_issuer` and `oidc_audience` are set.
        administrators: the realm's group of administrators.
        clock: seconds since 1970.

    Raises:
        Fatal: the settings cannot work, or the extra is not installed.
    """
    try:
        from workers.identity.oidc import HttpFetch, OidcConfig, OidcProvider
    except ImportError as error:
        raise Fatal(
            ErrorCode.UNSUPPORTED, "OpenID Connect needs the extra: pip install sealstream[oidc]"
        ) from error
    config = OidcConfig(
        issuer=settings.oidc_issuer or "",
        audience=settings.oidc_audience or "",
        algorithms=frozenset(part.strip() for part in settings.oidc_algorithms.split(",")),
        roles_claim=settings.oidc_roles_claim,
        groups_claim=settings.oidc_groups_claim,
        roles=_roles("oidc_roles", settings.oidc_roles),
        administrators=settings.oidc_administrators,
        ca_file=settings.oidc_ca_file,
    )
    fetch = HttpFetch(config.ca_file)
    return OidcProvider(config, administrators, fetch, clock=clock), fetch


def open_saml(
    settings: Settings, administrators: str, *, clock: Callable[[], float] = time.time
) -> SamlProvider:
    """Return the SAML provider of the settings; close it.

    Args:
        settings: `saml_issuer` and what goes with it are set.
        administrators: the realm's group of administrators.
        clock: seconds since 1970.

    Raises:
        Fatal: the settings cannot work, or the extra or the program `xmlsec1` is not installed.
    """
    try:
        from workers.identity.saml import SamlProvider
        from workers.identity.saml_claims import Expected
        from workers.identity.saml_metadata import MetadataFile
        from workers.identity.saml_signature import Xmlsec
    except ImportError as error:
        raise Fatal(
            ErrorCode.UNSUPPORTED, "SAML needs the extra: pip install sealstream[saml]"
        ) from error
    issuer, metadata = settings.saml_issuer, settings.saml_metadata
    if issuer is None or metadata is None:
        raise Fatal(ErrorCode.UNSUPPORTED, "SAML needs saml_issuer and saml_metadata")
    return SamlProvider(
        Expected(
            issuer=issuer,
            audience=settings.saml_audience or "",
            recipient=settings.saml_recipient or "",
            subject_attribute=settings.saml_subject_attribute,
            roles_attribute=settings.saml_roles_attribute,
            groups_attribute=settings.saml_groups_attribute,
        ),
        Source(
            f"saml:{issuer}",
            _roles("saml_roles", settings.saml_roles),
            settings.saml_administrators,
            administrators,
        ),
        MetadataFile(metadata, issuer, clock=clock),
        Xmlsec(settings.saml_xmlsec1),
        clock=clock,
    )


def _roles(name: str, text: str) -> Mapping[str, frozenset[Scope]]:
    try:
        return parse_roles(text)
    except ValueError as error:
        raise Fatal(ErrorCode.UNAUTHENTICATED, f"{name}: {error}") from error
