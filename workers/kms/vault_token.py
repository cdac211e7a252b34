"""The token that Vault or OpenBao is asked with: given, read from a file, or got by logging in.

A token that is given or got by a login is renewed after two thirds of its life, in a task that ends
with `aclose`; its policy must allow `auth/token/renew-self` (and `lookup-self` for a given one),
as Vault's `default` policy does. A token whose life cannot be prolonged is replaced by a new login,
when it has ended or was refused. A token in a file is somebody else's to renew.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import structlog

from workers.errors import Retry
from workers.kms.errors import denied, misconfigured
from workers.kms.vault_http import VaultConfig, VaultHttp, VaultLogin, parse, refusal

_RENEW_AFTER = 2 / 3
_RETRY_S = 5.0
# A token as young as this is not refused because it ended: its policy is in question.
_SETTLE_S = 1.0

log = structlog.get_logger(__name__)


class _Lease(msgspec.Struct):
    lease_duration: int
    renewable: bool
    client_token: str = ""


class _LeaseAnswer(msgspec.Struct):
    auth: _Lease


class _Life(msgspec.Struct):
    ttl: int
    renewable: bool = False


class _LifeAnswer(msgspec.Struct):
    data: _Life


class VaultTokens:
    """Holds the one token of a client, and keeps it alive."""

    def __init__(self, config: VaultConfig, http: VaultHttp) -> None:
        """Check that there is a way to a token.

        Raises:
            Fatal: Neither token, file nor login.
        """
        if not config.token and not config.token_file and config.login is None:
            raise misconfigured("Vault needs a token: set VAULT_TOKEN or VAULT_TOKEN_FILE")
        self._config = config
        self._http = http
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._token: str | None = None
        self._since_s = 0.0
        self._ends_s = 0.0

    async def get(self) -> str:
        """Return a token, logging in first where there is none.

        Raises:
            KmsDenied: A file cannot be read, the token is malformed, or the login is refused.
            KmsUnavailable: The server that we log in to cannot be asked.
        """
        if self._config.login is not None:
            return await self._logged_in(self._config.login)
        if self._config.token_file is not None:
            return _read(self._config.token_file, "the KMS token")
        if self._token is None:
            self._token = _checked(self._config.token or "", "the KMS token")
            self._keeper = asyncio.create_task(self._keep(self._token, None))
        return self._token

    async def refused(self, token: str) -> bool:
        """Say whether there is another token to try, after the server refused this one.

        Raises:
            KmsDenied: The file cannot be read.
        """
        if self._config.login is not None:
            async with self._lock:
                if self._token == token:
                    if time.monotonic() < self._since_s + _SETTLE_S:
                        return False
                    self._drop()
                return True
        if self._config.token_file is not None:
            return _read(self._config.token_file, "the KMS token") != token
        return False

    async def aclose(self) -> None:
        """Forget the token and end the task that renews it."""
        keeper = self._keeper
        self._drop()
        if keeper is not None:
            await asyncio.gather(keeper, return_exceptions=True)

    def _drop(self) -> None:
        self._token = None
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    async def _logged_in(self, login: VaultLogin) -> str:
        async with self._lock:
            if self._token is None or time.monotonic() >= self._ends_s:
                self._drop()
                lease = await self._log_in(login)
                self._token = _checked(lease.client_token, "the KMS token")
                self._lives(lease.lease_duration)
                self._since_s = time.monotonic()
                if lease.renewable and lease.lease_duration:
                    self._keeper = asyncio.create_task(self._keep(self._token, lease))
            return self._token

    def _lives(self, seconds: int) -> None:
        # 0: for ever. A little early, so that it does not end on its way.
        self._ends_s = time.monotonic() + 0.95 * seconds if seconds else float("inf")

    async def _log_in(self, login: VaultLogin) -> _Lease:
        approle = login.method == "approle"
        what = "the AppRole secret id" if approle else "the JWT for the KMS"
        if login.secret_file is not None:
            secret = _read(login.secret_file, what)
        else:
            secret = _checked(login.secret or "", what)
        names = ("role_id", "secret_id") if approle else ("role", "jwt")
        body = msgspec.json.encode(dict(zip(names, (login.role, secret), strict=True)))
        status, answer = await self._http.ask(
            "POST", f"auth/{login.mount}/login", token=None, body=body
        )
        if status in (400, 401, 403, 404):
            raise denied(f"the KMS refuses our login ({status}): check role, secret and mount")
        if status != 200:
            raise refusal(status)
        return parse(answer, _LeaseAnswer).auth

    async def _keep(self, token: str, lease: _Lease | None) -> None:
        """Renew `token` as long as that prolongs its life."""
        try:
            if lease is None:
                lease = await self._until_answered(token, first=True)
            full_s = lease.lease_duration
            while lease.renewable and lease.lease_duration and 2 * lease.lease_duration > full_s:
                await asyncio.sleep(_RENEW_AFTER * lease.lease_duration)
                lease = await self._until_answered(token, first=False)
                self._lives(lease.lease_duration)
        except Retry as error:
            log.warning("the Vault token cannot be renewed", error=str(error))
            return
        if lease.lease_duration:
            log.warning("the Vault token ends soon for good", seconds=lease.lease_duration)

    async def _until_answered(self, token: str, *, first: bool) -> _Lease:
        """Look the token up (`first`), or renew it; a server that is away is asked again."""
        while True:
            try:
                if first:
                    status, answer = await self._http.ask(
                        "GET", "auth/token/lookup-self", token=token
                    )
                else:
                    status, answer = await self._http.ask(
                        "POST", "auth/token/renew-self", token=token, body=b"{}"
                    )
            except Retry:
                status, answer = 503, bytearray()
            if status == 200 and first:
                life = parse(answer, _LifeAnswer).data
                return _Lease(life.ttl, life.renewable)
            if status == 200:
                return parse(answer, _LeaseAnswer).auth
            if status < 500 and status != 429:
                raise refusal(403)
            await asyncio.sleep(_RETRY_S)


def _read(file: Path, what: str) -> str:
    try:
        return _checked(file.read_text(encoding="ascii"), what)
    except (OSError, UnicodeDecodeError):
        raise denied(f"the file with {what} cannot be read") from None


def _checked(text: str, what: str) -> str:
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable():
        raise denied(f"{what} is empty or malformed")
    return text
