"""HashiCorp Vault and OpenBao: the transit engine.

Keys must be made with `derived=true` (`bao write -f transit/keys/NAME derived=true`): transit then
derives the wrapping key from the context, which is how a wrapped key is bound to its index. With
`associated_data` instead, the server-side `rewrap` fails; and a key that is not derived ignores the
context silently, so `wrap` refuses it. `wrap` also refuses a key that does not exist, which transit
would create by itself. The token's policy: `deploy/vault/key-service.hcl`.

Transit takes keys as base64 text in JSON.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

import msgspec

from workers.crypto.secret import SecretBytes
from workers.kms.base import KeyInfo, Wrapped, check_key_id, context_bytes
from workers.kms.deadline import deadline
from workers.kms.errors import (
    KmsDenied,
    KmsKeyGone,
    foreign_answer,
    key_gone,
    key_unsuitable,
    misconfigured,
    unavailable,
    wrap_damaged,
)
from workers.kms.vault_http import Answer, VaultConfig, VaultHttp, VaultLogin, parse, refusal
from workers.kms.vault_token import VaultTokens

__all__ = ["VaultConfig", "VaultKms", "VaultLogin"]

_MOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}")
_WRAPPED = re.compile(rb"[a-z0-9]+:(v[1-9][0-9]{0,8}):[A-Za-z0-9+/=]+")
# Transit says 400 for all of these; only its text tells them apart.
_GONE = (b"key not found", b"(too old)", b"soft-deleted", b"soft deleted")


class _Key(msgspec.Struct):
    latest_version: int
    min_decryption_version: int
    derived: bool
    soft_deleted: bool = False


class _Ciphertext(msgspec.Struct):
    ciphertext: str


class _Plaintext(msgspec.Struct):
    # As `bytes` the base64 is decoded by the parser: no `str` of the key is made.
    plaintext: bytes


class _KeyAnswer(msgspec.Struct):
    data: _Key


class _CiphertextAnswer(msgspec.Struct):
    data: _Ciphertext


class _PlaintextAnswer(msgspec.Struct):
    data: _Plaintext


class VaultKms:
    """Wraps keys with the transit engine of Vault or OpenBao."""

    name = "vault"

    def __init__(self, config: VaultConfig, *, mount: str, default_key: str) -> None:
        """Check the configuration; connects on first use.

        Args:
            config: address, token, TLS.
            mount: where the transit engine is mounted.
            default_key: the key that the realm uses.

        Raises:
            Fatal: No way to a token, a bad address or mount, or TLS files that cannot be loaded.
            Reject: INVALID_MESSAGE: `default_key` is malformed.
        """
        mounts = [mount, *([config.login.mount] if config.login else [])]
        if not all(_MOUNT.fullmatch(one) and ".." not in one for one in mounts):
            raise misconfigured("the mount of the transit engine or of the login is malformed")
        self.default_key = check_key_id(default_key)
        self._timeout_s = config.timeout_s
        self._mount = mount.strip("/")
        self._http = VaultHttp(config)
        self._tokens = VaultTokens(config, self._http)
        self._bound: set[str] = set()

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        async with deadline(self._timeout_s):
            return await self._wrap(key_id, plaintext, context)

    async def _wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        if key_id not in self._bound:
            if not (await self.describe(key_id)).binds_context:
                raise key_unsuitable(
                    "this transit key does not bind a context: make one with derived=true"
                )
            self._bound.add(key_id)
        body = _body(context, b"plaintext", base64.b64encode(plaintext.view()))
        try:
            status, answer = await self._call("POST", "encrypt", key_id, body)
        except KmsDenied:
            # Asking for a key that is gone counts as making one, which no policy of ours allows.
            self._bound.discard(key_id)
            await self.describe(key_id)
            raise
        finally:
            body[:] = bytes(len(body))
        if status == 400:
            self._bound.discard(key_id)
            raise _gone(answer) or key_unsuitable()
        return _wrapped(answer)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        body = _body(context, b"ciphertext", _checked(wrapped))
        status, answer = await self._call("POST", "decrypt", key_id, body)
        if status == 400:
            raise _gone(answer) or wrap_damaged()
        try:
            return SecretBytes(parse(answer, _PlaintextAnswer).data.plaintext)
        finally:
            answer[:] = bytes(len(answer))

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Rewrap inside the server: see `Kms.rewrap`."""
        body = _body(context, b"ciphertext", _checked(wrapped))
        status, answer = await self._call("POST", "rewrap", key_id, body)
        if status == 400:
            raise _gone(answer) or wrap_damaged()
        return _wrapped(answer)

    async def describe(self, key_id: str) -> KeyInfo:
        """Read the key's versions: see `Kms.describe`."""
        status, answer = await self._call("GET", "keys", key_id)
        if status == 404:
            raise key_gone("the KMS has no such key (or no transit engine at this mount)")
        if status == 400:
            raise unavailable("the KMS does not describe this key")
        key = parse(answer, _KeyAnswer).data
        if key.soft_deleted:
            raise key_gone("the KMS key was deleted")
        return KeyInfo(
            self.name,
            key_id,
            f"v{key.latest_version}",
            f"v{key.min_decryption_version}",
            binds_context=key.derived,
        )

    async def aclose(self) -> None:
        """Forget the token and close the connections."""
        await self._tokens.aclose()
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"VaultKms({f'{self._http.root}/{self._mount}'!r})"

    async def _call(
        self, method: str, verb: str, key_id: str, body: bytearray | None = None
    ) -> Answer:
        """Return status (200, 400, or 404 of a GET) and body; everything else is raised."""
        path = f"{self._mount}/{verb}/{check_key_id(key_id)}"
        async with deadline(self._timeout_s):
            token = await self._tokens.get()
            answer = await self._http.ask(method, path, token=token, body=body)
            if answer.status == 403 and await self._tokens.refused(token):
                token = await self._tokens.get()
                answer = await self._http.ask(method, path, token=token, body=body)
        if answer.status in (200, 400) or (answer.status == 404 and method == "GET"):
            return answer
        raise refusal(answer.status)


def _body(context: Mapping[str, str], name: bytes, value: bytes) -> bytearray:
    bound = base64.b64encode(context_bytes(context))
    return bytearray(b'{"%b":"%b","context":"%b"}' % (name, value, bound))


def _checked(wrapped: bytes) -> bytes:
    if not _WRAPPED.fullmatch(wrapped):
        raise wrap_damaged()
    return wrapped


def _wrapped(answer: bytearray) -> Wrapped:
    data = parse(answer, _CiphertextAnswer).data.ciphertext.encode()
    found = _WRAPPED.fullmatch(data)
    if found is None:
        raise foreign_answer()
    return Wrapped(data, found[1].decode())


def _gone(answer: bytearray) -> KmsKeyGone | None:
    return key_gone() if any(text in answer for text in _GONE) else None
