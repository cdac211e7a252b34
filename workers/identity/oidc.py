"""OpenID Connect: callers bring a token (JWT) that another identity provider made.

What must hold: signed by a key of the configured issuer, with one of the configured algorithms, all
asymmetric; `iss` is the issuer, `aud` has the configured audience; not expired, not from the
future; `sub` is there. Then roles become scopes by the configured table, groups become ids:
`claims.py` says how, the source is the issuer.
"""

from __future__ import annotations

import ssl
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from joserfc import jwt
from joserfc.errors import BadSignatureError, JoseError

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.identity.base import Identity
from workers.identity.claims import MAX_TEXT, Source
from workers.identity.jwks import MAX_BYTES, TIMEOUT_S, Fetch, Jwks, is_safe_url
from workers.identity.refusal import Refused, Unavailable, Why

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
SKEW_S: Final = 60
# Others, such as logout tokens, are signed by the same keys.
_TYPES: Final = frozenset({None, "jwt", "at+jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """Whose tokens count, and what their claims mean.

    Attributes:
        issuer: URL, exactly as tokens name it.
        audience: what tokens must be made for.
        algorithms: signatures that count.
        roles_claim, groups_claim: names of claims; a dot goes into an object.
        roles: scopes of each role.
        administrators: role whose bearers administer users; None: nobody by this provider.
        ca_file: PEM of the authority of the issuer's certificate; None: those of the system.
    """

    issuer: str
    audience: str
    algorithms: frozenset[str] = frozenset({"RS256", "ES256"})
    roles_claim: str = "roles"
    groups_claim: str = "groups"
    roles: Mapping[str, frozenset[Scope]] = field(default_factory=dict)
    administrators: str | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not is_safe_url(self.issuer):
            raise Fatal(ErrorCode.UNAUTHENTICATED, "oidc_issuer must be an https URL")
        if not self.algorithms or not self.algorithms <= ALGORITHMS:
            raise Fatal(
                ErrorCode.UNAUTHENTICATED,
                f"oidc_algorithms: of {', '.join(sorted(ALGORITHMS))}",
            )


class OidcProvider:
    """Turns tokens of one issuer into identities."""

    def __init__(
        self,
        config: OidcConfig,
        administrators: str,
        fetch: Fetch,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is asked before `look` or the first token.

        Args:
            config: whose tokens count.
            administrators: the realm's group of administrators.
            fetch: reads a URL.
            clock: seconds since 1970.
        """
        self._config = config
        self._source = Source(
            config.issuer, config.roles, config.administrators, administrators=administrators
        )
        self._clock = clock
        self._jwks = Jwks(config.issuer, fetch)

    async def look(self) -> None:
        """Ask the issuer for its keys, and log whether it says them."""
        await self._jwks.look()

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        header = _part(token, 0)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._config.algorithms or not isinstance(kid, str):
            raise _refused(Why.ALGORITHM, "is not signed as is accepted here")
        try:
            key = await self._jwks.key(kid, algorithm)
        except Refused:
            # Not verified: it tells the wrong issuer from a key that was rotated, no more.
            if _part(token, 1).get("iss") != self._config.issuer:
                raise _refused(Why.ISSUER, "is of another issuer") from None
            raise
        try:
            decoded = jwt.decode(token, key, algorithms=[algorithm])
        except BadSignatureError:
            raise _refused(Why.SIGNATURE, "does not verify") from None
        except (JoseError, ValueError, TypeError):
            # Not chained: the cause may hold the token.
            raise _refused(Why.MALFORMED, "does not verify") from None
        self._check(decoded.header, decoded.claims)
        return self._identity(decoded.claims)

    def _check(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
        kind = header.get("typ")
        if (kind.lower() if isinstance(kind, str) else kind) not in _TYPES or "crit" in header:
            raise _refused(Why.TYPE, "is of another type")
        if claims.get("iss") != self._config.issuer:
            raise _refused(Why.ISSUER, "is of another issuer")
        audience = claims.get("aud")
        if self._config.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused(Why.AUDIENCE, "is not for this audience")
        now = self._clock()
        if now >= _time(claims, "exp", 0.0):
            raise Refused(Why.EXPIRED, "the identity token has expired", ErrorCode.EXPIRED)
        if max(_time(claims, "nbf", now), _time(claims, "iat", now)) > now + SKEW_S:
            raise _refused(Why.FUTURE, "is from the future: set the clock")

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_TEXT:
            raise _refused(Why.SUBJECT, "names nobody")
        return self._source.identity(
            subject,
            _texts(claims, self._config.roles_claim),
            _texts(claims, self._config.groups_claim),
        )


class HttpFetch:
    """Reads URLs with aiohttp: no redirects, no cookies, bounded in time and size."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Prepare; connects on first use.

        Raises:
            Fatal: the CA file cannot be loaded.
        """
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Fatal(ErrorCode.UNSUPPORTED, "oidc_ca_file cannot be loaded") from error
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, url: str) -> bytes:
        """Return what a URL holds. Raises Unavailable."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                connector=aiohttp.TCPConnector(ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                data = await response.content.read(MAX_BYTES + 1)
                while len(data) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES)):
                    data += more
        except aiohttp.ClientConnectorCertificateError:
            raise Unavailable("its certificate is not trusted: set oidc_ca_file") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"it does not answer ({type(error).__name__})") from error
        if response.status != 200:
            raise Unavailable(f"it answers with status {response.status}")
        if len(data) > MAX_BYTES:
            raise Unavailable(f"it answers with more than {MAX_BYTES} bytes")
        return data

    async def aclose(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()


def _part(token: str, number: int) -> dict[str, Any]:
    """Return the header (0) or the claims (1) of a token, of which nothing is believed yet."""
    parts = token.split(".")
    try:
        text = parts[number]
        found = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (IndexError, ValueError):
        found = None
    if len(parts) == 1 or not isinstance(found, dict):
        raise _refused(Why.MALFORMED, "is none that this realm knows")
    return found


def _texts(claims: Mapping[str, Any], name: str) -> list[str]:
    """Return a claim as a list of texts: a list, or words; others count for nothing."""
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, str) and 0 < len(one) <= MAX_TEXT]


def _time(claims: Mapping[str, Any], name: str, absent: float) -> float:
    """Return a moment, seconds since 1970. Raises Reject: UNAUTHENTICATED, it is none."""
    value = claims.get(name, absent)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise _refused(Why.MALFORMED, f"has a malformed {name}")
    return float(value)


def _refused(why: Why, text: str) -> Refused:
    return Refused(why, f"the identity token {text}")
