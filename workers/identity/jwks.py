"""The public keys of an OpenID Connect issuer: found, cached, renewed when it rotates them.

Keys come from the `jwks_uri` that the issuer's discovery document names, by HTTPS, without
redirects, within `TIMEOUT_S`. They are asked for again after `FRESH_S`, or when a token names a key
that is not known, at most once in `AGAIN_S`. While the issuer does not answer, known keys count for
`STALE_S`: who withdraws a key must let the issuer answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

from workers.identity.refusal import Refused, Unavailable, Why

TIMEOUT_S: Final = 5.0
FRESH_S: Final = 600.0
STALE_S: Final = 3600.0
AGAIN_S: Final = 10.0
MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048

PublicKey = RSAKey | ECKey | OKPKey
Fetch = Callable[[str], Awaitable[bytes]]
"""Reads a URL. Raises Unavailable."""

log = structlog.get_logger("identity.jwks")


class Jwks:
    """The signing keys of one issuer. Safe to use concurrently.

    Args:
        issuer: its URL, as tokens name it.
        fetch: reads a URL.
        clock: monotonic seconds.
    """

    def __init__(
        self, issuer: str, fetch: Fetch, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, tuple[PublicKey, str | None]] = {}
        self._read_s = self._tried_s = float("-inf")
        self._failure = ""
        self._lock = asyncio.Lock()

    async def look(self) -> None:
        """Read the keys before a token asks for them, and log whether that works."""
        # Not counted as a try: a token that comes now must not wait for the next one.
        with contextlib.suppress(Unavailable):
            await self._load()
            log.info("the OpenID Connect issuer says its keys", keys=len(self._keys))

    async def key(self, kid: str, algorithm: str) -> PublicKey:
        """Return the key that a token names.

        Args:
            kid: of the token's header.
            algorithm: of the token's header, one that is allowed here.

        Raises:
            Refused: the issuer has no such key for this algorithm.
            Unavailable: the issuer does not say its keys.
        """
        if not self._has(kid, FRESH_S):
            async with self._lock:
                if not self._has(kid, FRESH_S):
                    await self._renew(kid)
        key, only = self._keys.get(kid, (None, None))
        if key is None or only not in (None, algorithm):
            raise Refused(
                Why.UNKNOWN_SIGNER, "the token is signed with a key that its issuer does not name"
            )
        return key

    def _has(self, kid: str, life_s: float) -> bool:
        return kid in self._keys and self._clock() - self._read_s < life_s

    async def _renew(self, kid: str) -> None:
        """Read the keys again, unless that was just tried."""
        now = self._clock()
        if now - self._tried_s < AGAIN_S:
            if self._has(kid, STALE_S) or now - self._read_s < STALE_S:
                return
            raise Unavailable(self._failure)
        self._tried_s = now
        try:
            await self._load()
        except Unavailable:
            if not self._has(kid, STALE_S):
                raise

    async def _load(self) -> None:
        now = self._clock()
        try:
            self._keys = await self._read()
            self._read_s = now
        except Unavailable as error:
            self._failure = error.why
            log.warning("the OpenID Connect issuer does not say its keys", why=error.why)
            raise

    async def _read(self) -> dict[str, tuple[PublicKey, str | None]]:
        document = _json(
            await self._fetch(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        )
        if document.get("issuer") != self._issuer:
            raise Unavailable("its discovery document names another issuer than oidc_issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or not is_safe_url(uri):
            raise Unavailable("its discovery document has no jwks_uri that is HTTPS")
        listed = _json(await self._fetch(uri)).get("keys")
        if not isinstance(listed, list):
            raise Unavailable("what is at its jwks_uri has no list of keys")
        return dict(found for one in listed[:MAX_KEYS] if (found := _public_key(one)) is not None)


def is_safe_url(url: str) -> bool:
    """Tell whether a URL is HTTPS, or of this machine."""
    parts = urlsplit(url)
    own = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and own))


def _public_key(one: Any) -> tuple[str, tuple[PublicKey, str | None]] | None:
    """Return id, key and algorithm of an entry; None for what is no key that signs tokens."""
    if not isinstance(one, dict) or one.get("use", "sig") != "sig" or "d" in one:
        return None
    kid, kind, algorithm = one.get("kid"), one.get("kty"), one.get("alg")
    if not isinstance(kid, str) or kind not in ("RSA", "EC", "OKP"):
        return None
    try:
        with warnings.catch_warnings():
            # Of short keys, which are left out below.
            warnings.simplefilter("ignore")
            key = import_key(one)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
        return None
    if not isinstance(key, RSAKey | ECKey | OKPKey):
        return None
    return kid, (key, algorithm if isinstance(algorithm, str) else None)


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unavailable("it answers with no JSON object")
    return found
