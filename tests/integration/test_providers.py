"""People of an identity provider on the running stack, by OpenID Connect and by SAML.

One key service trusts both, besides its own users. The provider is real (nanoidp), all processes
are, and people use the client and the command line. What each part of a token decides is told where
it costs less: `unit/identity`, `simulation/test_keys_oidc.py`, `simulation/test_keys_saml.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jwt
from joserfc.jwk import RSAKey
from nanoidp_kit import AUDIENCE, RECIPIENT, Provider
from people_kit import NAMES, ROLES, makers, refused, share_by_groups
from saml_kit import (
    Signer,
    assertion,
    attribute,
    encoded,
    moment,
    needs_xmlsec1,
    response,
    signer,
)
from stack_kit import QUERY_S, Shell, Stack, bare, connect, new_name, of_token

from schemas.errors import ErrorCode
from workers.identity.claims import group_id


class Oidc:
    """Signing in by OpenID Connect; tokens that the provider never made."""

    name = "oidc"

    def __init__(self, idp: Provider) -> None:
        self._idp = idp
        self.source = idp.issuer
        self.sign_in = idp.token

    def caller(self, name: str) -> str:
        return f"{self.source}#{name}"

    def expired(self) -> str:
        return self._made(exp=int(time.time()) - 1)

    def by_another(self) -> str:
        return self._made(RSAKey.generate_key(2048, {"kid": "another"}))

    def of_another(self) -> str:
        return self._made(iss="https://other.example.org")

    def _made(self, key: RSAKey | None = None, **changes: Any) -> str:
        key = key or RSAKey.import_key(self._idp.private_key, {"kid": self._idp.kid})
        now = int(time.time())
        claims = {
            "iss": self._idp.issuer,
            "aud": AUDIENCE,
            "sub": "root",
            "roles": ["boss"],
            "iat": now,
            "exp": now + 600,
            **changes,
        }
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)


class Saml:
    """Signing in by SAML; assertions that the provider never made."""

    name = "saml"

    def __init__(self, idp: Provider) -> None:
        self._idp = idp
        self._issuer = f"{idp.issuer}/saml"
        self.source = f"saml:{self._issuer}"
        self.sign_in = idp.assertion

    def caller(self, name: str) -> str:
        return f"{self.source}#u-{name}"

    def expired(self) -> str:
        return self._made(window=f'NotOnOrAfter="{moment(-1)}"')

    def by_another(self) -> str:
        return self._made(signer("other"))

    def of_another(self) -> str:
        return self._made(issuer="<s:Issuer>https://other.example.org</s:Issuer>")

    def _made(self, by: Signer | None = None, **changes: str) -> str:
        by = by or Signer(load_pem_private_key(self._idp.private_key, None))
        audience = f"<s:Audience>{AUDIENCE}</s:Audience>"
        said = {
            "issuer": f"<s:Issuer>{self._issuer}</s:Issuer>",
            "recipient": RECIPIENT,
            "audience": f"<s:AudienceRestriction>{audience}</s:AudienceRestriction>",
            "roles": attribute("uid", "u-root") + attribute("roles", "boss"),
            **changes,
        }
        return encoded(response(by.sign(assertion(**said))))


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    needs_xmlsec1()
    provider = Provider(tmp_path_factory.mktemp("idp") / "nanoidp")
    with provider.running():
        yield provider


@pytest.fixture(scope="module")
def stack(
    start_stack: Any, idp: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    metadata = idp.home / "metadata.xml"
    metadata.write_text(idp.metadata())
    environ = {
        "SEALSTREAM_OIDC_ISSUER": idp.issuer,
        "SEALSTREAM_OIDC_AUDIENCE": AUDIENCE,
        "SEALSTREAM_OIDC_ROLES": ROLES,
        "SEALSTREAM_OIDC_ADMINISTRATORS": "boss",
        "SEALSTREAM_SAML_ISSUER": f"{idp.issuer}/saml",
        "SEALSTREAM_SAML_METADATA": str(metadata),
        "SEALSTREAM_SAML_AUDIENCE": AUDIENCE,
        "SEALSTREAM_SAML_RECIPIENT": RECIPIENT,
        "SEALSTREAM_SAML_SUBJECT_ATTRIBUTE": "uid",
        "SEALSTREAM_SAML_ROLES": ROLES,
        "SEALSTREAM_SAML_ADMINISTRATORS": "boss",
    }
    with start_stack(tmp_path_factory.mktemp("stack"), environ=environ) as running:
        yield running


def told(stack: Stack) -> set[tuple[str, str]]:
    """Return what the key service's log says of refused tokens: provider, reason."""
    lines = map(json.loads, (stack.home / "logs" / "keys-1.log").read_text().splitlines())
    return {
        (line["provider"], line["reason"])
        for line in lines
        if line["event"] == "identity token refused"
    }


async def use(stack: Stack, way: Oidc | Saml) -> list[str]:
    """Let people of the provider do what they may, and others what they may not.

    Returns every token that was shown.
    """
    index, staff = new_name("team"), group_id(way.source, "STAFF")
    tokens = {name: await asyncio.to_thread(way.sign_in, name) for name in NAMES}
    as_alice, as_bob = (Shell(stack, tokens[name]) for name in ("alice", "bob"))
    await asyncio.to_thread(as_alice.run, "index", "create", index)
    await share_by_groups(partial(of_token, stack), index, tokens, staff)
    found = await asyncio.to_thread(
        as_bob.json, "search", index, "hello", "--timeout", f"{QUERY_S:g}"
    )
    assert [hit["id"] for hit in found["hits"]] == ["doc"]

    expired = way.expired()
    others = [way.by_another(), way.of_another()]
    for shown in (expired, *others):
        code = ErrorCode.EXPIRED if shown is expired else ErrorCode.UNAUTHENTICATED
        async with of_token(stack, shown) as nobody:
            await refused(nobody.count(index, timeout_s=QUERY_S), code)
            await refused(nobody.list_indexes(), code)
    # The realm's own users are there as ever.
    async with connect(stack) as admin:
        assert index in [one["index"] for one in await admin.list_indexes()]
    return [*tokens.values(), expired, *others]


async def test_people_of_both_at_once(stack: Stack, idp: Provider) -> None:
    ways = (Oidc(idp), Saml(idp))
    async with bare(stack) as kafka, kafka.listen("key-audit") as audit:
        async with asyncio.TaskGroup() as both:
            uses = [both.create_task(use(stack, way)) for way in ways]
        wanted = {way.caller(name) for way in ways for name in ("root", "alice")}
        await audit.until(lambda: makers(r.value for r in audit.records) == wanted, "the audit")
    reasons = ("expired", "unknown-signer", "issuer")
    assert told(stack) == {(way.name, reason) for way in ways for reason in reasons}
    logs = b"".join(path.read_bytes() for path in (stack.home / "logs").iterdir())
    for shown in (token for done in uses for token in done.result()):
        assert shown.encode() not in logs
