"""SAML 2: callers bring an assertion that another identity provider made.

A token is base64 of the assertion, or of the response that it came in (`saml_document.py`). What
must hold: signed itself by a key of the configured provider (`saml_signature.py`,
`saml_metadata.py`), and made for us, for whoever bears it, now (`saml_claims.py`). Then roles
become scopes and groups become ids as those of OpenID Connect do (`claims.py`).

An assertion counts as often as it is shown until it ends: it is a credential as an identity token
is, sealed to the key service and bound to a session key by the message that shows it.

What was verified is remembered by the token's hash, for as long as the provider's keys do not
change; its times are looked at whenever it is shown. Verifying runs in `WORKERS` threads of its
own, and no more than `MAX_WAITING` wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from schemas.errors import ErrorCode
from workers.errors import Retry
from workers.identity.base import Identity
from workers.identity.claims import Source
from workers.identity.saml_claims import Claims, Expected, read_claims
from workers.identity.saml_document import read_document
from workers.identity.saml_metadata import MetadataFile, Signers
from workers.identity.saml_signature import Xmlsec, verify_signature

WORKERS: Final = 2
MAX_WAITING: Final = 64
MAX_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class _Verified:
    identity: Identity
    claims: Claims
    signers: Signers


class SamlProvider:
    """Turns assertions of one identity provider into identities."""

    def __init__(
        self,
        expected: Expected,
        source: Source,
        metadata: MetadataFile,
        xmlsec: Xmlsec,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            expected: whose assertions count.
            source: what their roles and groups mean.
            metadata: with what the provider signs.
            xmlsec: verifies signatures.
            clock: seconds since 1970.
        """
        self._expected = expected
        self._source = source
        self._metadata = metadata
        self._xmlsec = xmlsec
        self._clock = clock
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="saml")
        self._waiting = 0
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        name = hashlib.sha256(token.encode()).digest()
        # Several workers show the same one at once.
        async with self._locks.setdefault(name, asyncio.Lock()):
            signers = self._metadata.signers()
            known = self._verified.get(name)
            if known is None or known.signers is not signers:
                self._verified.pop(name, None)
                known = await self._run(token, signers)
                self._keep(name, known)
        known.claims.check_time(self._clock())
        return known.identity

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False)

    def _keep(self, name: bytes, verified: _Verified) -> None:
        self._verified[name] = verified
        while len(self._verified) > MAX_CACHED:
            self._verified.popitem(last=False)

    async def _run(self, token: str, signers: Signers) -> _Verified:
        if self._waiting >= MAX_WAITING:
            raise Retry(ErrorCode.OVERLOADED, "too many assertions are being verified: try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._verify, token, signers
            )
        finally:
            self._waiting -= 1

    def _verify(self, token: str, signers: Signers) -> _Verified:
        document = read_document(token)
        # First what costs little.
        claims = read_claims(document.assertion, self._expected)
        claims.check_time(self._clock())
        verify_signature(document, signers.certificates, self._xmlsec)
        identity = self._source.identity(claims.subject, claims.roles, claims.groups)
        return _Verified(identity, claims, signers)
