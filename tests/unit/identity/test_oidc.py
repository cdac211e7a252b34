"""Tokens of an OpenID Connect issuer: which count, and what they say."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from saml_kit import signer
from structlog.testing import capture_logs

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.errors import Fatal, Reject, Retry
from workers.identity import jwks
from workers.identity.claims import group_id, parse_roles
from workers.identity.jwks import Jwks
from workers.identity.oidc import HttpFetch, OidcConfig, OidcProvider
from workers.identity.open import open_oidc
from workers.identity.providers import Providers
from workers.identity.refusal import Unavailable
from workers.settings import Settings

ISSUER = "https://id.example.org/realm"
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
OTHER = RSAKey.generate_key(2048, {"kid": "rsa"})
SHORT = base64.urlsafe_b64encode(b"\xc5" + bytes(126) + b"\x01").rstrip(b"=").decode()
ADMINISTRATORS = "5a0b7e0e-0000-4000-8000-000000000000"


class Issuer:
    """Answers as an issuer, counts requests, can be away."""

    def __init__(self, *keys: Any) -> None:
        self.keys = list(keys or (RSA, EC))
        self.document: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks"}
        self.listed: Any = None
        self.away = False
        self.asked: list[str] = []

    async def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        if self.away:
            raise Unavailable("away")
        if url.endswith("openid-configuration"):
            return json.dumps(self.document).encode()
        listed = [key.as_dict(private=False) for key in self.keys]
        return json.dumps({"keys": listed if self.listed is None else self.listed}).encode()


def provider(issuer: Issuer, **changes: Any) -> OidcProvider:
    options: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": "sealstream",
        "roles": parse_roles("reader=Index+Decrypt, boss=*"),
        "administrators": "boss",
        **changes,
    }
    return OidcProvider(OidcConfig(**options), ADMINISTRATORS, issuer)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    body = {
        "iss": ISSUER,
        "aud": ["other", "sealstream"],
        "sub": "alice",
        "iat": now,
        "exp": now + 600,
        "roles": ["reader", "unknown"],
        "groups": ["staff", "staff", "board"],
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def token(key: Any = RSA, alg: str = "RS256", header: Any = None, **changes: Any) -> str:
    return jwt.encode(
        {"alg": alg, "kid": key.kid, **(header or {})}, claims(**changes), key, algorithms=[alg]
    )


async def test_claims_become_scopes_and_groups():
    who = await provider(Issuer()).authenticate(token())
    assert who.id == f"{ISSUER}#alice"
    assert who.scopes == {Scope.INDEX, Scope.DECRYPT}
    assert who.groups == (
        who.default_group,
        group_id(ISSUER, "staff"),
        group_id(ISSUER, "board"),
    )
    again = await provider(Issuer()).authenticate(token(EC, "ES256"))
    assert again == who
    other = await provider(Issuer()).authenticate(token(sub="bob", roles=None, groups=None))
    assert other.default_group != who.default_group
    assert (other.scopes, other.groups) == (frozenset(), (other.default_group,))
    boss = await provider(Issuer()).authenticate(token(roles="boss words"))
    assert boss.scopes == frozenset(Scope)
    assert ADMINISTRATORS in boss.groups
    inside = provider(Issuer(), roles_claim="realm_access.roles", groups_claim="a.b.c")
    nested = await inside.authenticate(token(realm_access={"roles": ["reader", 7]}))
    assert nested.scopes == {Scope.INDEX, Scope.DECRYPT}
    assert nested.groups == (nested.default_group,)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://id.example.org/realm/"}, "UNAUTHENTICATED"),
        ({"iss": None}, "UNAUTHENTICATED"),
        ({"aud": "other"}, "UNAUTHENTICATED"),
        ({"aud": None}, "UNAUTHENTICATED"),
        ({"exp": None}, "EXPIRED"),
        ({"exp": lambda: int(time.time()) - 1}, "EXPIRED"),
        ({"exp": "tomorrow"}, "UNAUTHENTICATED"),
        ({"exp": True}, "UNAUTHENTICATED"),
        ({"nbf": lambda: int(time.time()) + 120}, "UNAUTHENTICATED"),
        ({"iat": lambda: int(time.time()) + 120}, "UNAUTHENTICATED"),
        ({"sub": None}, "UNAUTHENTICATED"),
        ({"sub": ""}, "UNAUTHENTICATED"),
        ({"sub": "x" * 257}, "UNAUTHENTICATED"),
        ({"header": {"typ": "logout+jwt"}}, "UNAUTHENTICATED"),
        ({"header": {"kid": "unknown"}}, "UNAUTHENTICATED"),
        ({"key": OTHER}, "UNAUTHENTICATED"),
        ({"alg": "PS256"}, "UNAUTHENTICATED"),
    ],
)
async def test_tokens_that_do_not_count(changes, code):
    # Times count from now: the tests may have been collected long ago.
    now = {name: value() if callable(value) else value for name, value in changes.items()}
    with pytest.raises(Reject) as refused:
        await provider(Issuer()).authenticate(token(**now))
    assert refused.value.code == code


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_algorithms_are_pinned():
    known = provider(Issuer())
    # The public key as a shared secret, and no signature at all.
    head, body = (_part(one) for one in ({"alg": "HS256", "kid": "rsa"}, claims()))
    mac = hmac.digest(RSA.as_pem(private=False), f"{head}.{body}".encode(), "sha256")
    forged = f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    none = f"{_part({'alg': 'none', 'kid': 'rsa'})}.{body}."
    good = token()
    # The middle of the signature: the last digit of base64 has bits that do not count.
    changed = good[:-100] + ("B" if good[-100] == "A" else "A") + good[-99:]
    for bad in (forged, none, "", "a.b.c", "slap1_AAAA", changed):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await known.authenticate(bad)
    for algorithms in ({"HS256"}, {"none"}, set()):
        with pytest.raises(Fatal):
            provider(Issuer(), algorithms=frozenset(algorithms))
    with pytest.raises(Fatal, match="https"):
        OidcConfig(issuer="http://id.example.org", audience="a")
    # An EC key of the issuer does not verify what names another algorithm.
    pinned = provider(Issuer(), algorithms=frozenset({"RS256"}))
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        await pinned.authenticate(token(EC, "ES256"))


async def test_keys_that_sign_nothing_are_left_out():
    issuer = Issuer()
    okp = OKPKey.generate_key("Ed25519", {"kid": "okp"})
    listed = [
        RSA.as_dict(private=True),
        {**RSA.as_dict(private=False), "kid": "enc", "use": "enc"},
        {"kty": "RSA", "kid": "short", "n": SHORT, "e": "AQAB"},
        OctKey.generate_key(256, {"kid": "oct"}).as_dict(),
        {"kty": "RSA", "kid": "broken", "n": "!", "e": 3},
        {"kid": "nothing"},
        "no object",
        {**okp.as_dict(private=False), "alg": "EdDSA"},
    ]
    issuer.listed = listed
    keys = Jwks(ISSUER, issuer)
    assert (await keys.key("okp", "EdDSA")).kid == "okp"
    for kid in ("rsa", "enc", "short", "oct", "broken"):
        with pytest.raises(Reject):
            await keys.key(kid, "RS256")
    with pytest.raises(Reject):
        await keys.key("okp", "ES256")


async def test_keys_are_cached_rotated_and_survive_an_absence():
    now = [1000.0]
    issuer = Issuer(RSA)
    keys = Jwks(ISSUER, issuer, clock=lambda: now[0])
    for _ in range(5):
        await keys.key("rsa", "RS256")
    assert len(issuer.asked) == 2
    # Unknown keys do not make us ask again and again.
    for _ in range(5):
        with pytest.raises(Reject):
            await keys.key("new", "RS256")
    assert len(issuer.asked) == 2
    new = RSAKey.generate_key(2048, {"kid": "new"})
    issuer.keys = [new]
    now[0] += jwks.AGAIN_S
    assert (await keys.key("new", "RS256")).kid == "new"
    # The key that was withdrawn counts no more.
    with pytest.raises(Reject):
        await keys.key("rsa", "RS256")
    issuer.away = True
    now[0] += jwks.FRESH_S
    assert (await keys.key("new", "RS256")).kid == "new"
    now[0] += jwks.STALE_S
    with pytest.raises(Retry):
        await keys.key("new", "RS256")
    asked = len(issuer.asked)
    with pytest.raises(Retry):
        await keys.key("new", "RS256")
    assert len(issuer.asked) == asked
    issuer.away = False
    now[0] += jwks.AGAIN_S
    assert (await keys.key("new", "RS256")).kid == "new"


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example.org", "jwks_uri": f"{ISSUER}/jwks"},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": "http://id.example.org/jwks"},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        [],
    ],
)
async def test_discovery_that_is_not_the_issuers(document):
    issuer = Issuer()
    issuer.document = document
    with pytest.raises(Retry):
        await provider(issuer).authenticate(token())


async def test_no_token_stands_in_an_error():
    bad = token(key=OTHER)
    with pytest.raises(Reject) as refused:
        await provider(Issuer()).authenticate(bad)
    assert bad not in str(refused.value)
    assert refused.value.__cause__ is None


OTHERS = "https://alice.example.org"
IS_AWAY = "the identity provider is unavailable: its tokens cannot be checked now, try again"
REASONS = {
    "expired": lambda: token(exp=int(time.time()) - 1),
    "issuer": lambda: token(iss=OTHERS),
    # Its keys are not known here, but that is not what is wrong.
    "issuer with keys of its own": lambda: token(iss=OTHERS, header={"kid": "theirs"}),
    "unknown-signer": lambda: token(header={"kid": "rotated"}),
    "signature": lambda: token(key=OTHER),
    "audience": lambda: token(aud="alice"),
    "algorithm": lambda: token(alg="PS256"),
    "type": lambda: token(header={"typ": "logout+jwt"}),
    "future": lambda: token(iat=int(time.time()) + 120),
    "subject": lambda: token(sub=""),
    "malformed": lambda: "a.lice.c",
    "malformed end": lambda: token(exp="alice"),
}


@pytest.mark.parametrize("reason", REASONS)
async def test_the_log_says_why_and_nothing_of_the_token(says_why, reason):
    providers = Providers(SimpleNamespace(), oidc=provider(Issuer()))
    await says_why(providers, REASONS[reason](), "oidc", reason)


@asynccontextmanager
async def server(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Answer everything with the same; yields the address of this server."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(say, "localhost", 0, ssl=tls)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http{'s' if tls else ''}://localhost:{port}"


@pytest.fixture
def untrusted(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that no authority made."""
    file = tmp_path / "server.pem"
    key = signer("other").key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + signer("other").pem.encode())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    return tls


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "it does not answer (ClientConnectorError)"),
        ("404 Not Found\r\nContent-Length: 0\r\n\r\n", "it answers with status 404"),
        ("302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "with status 302"),
        ("200 OK\r\nContent-Length: 5\r\n\r\n<html", "no JSON object"),
        ('200 OK\r\nContent-Length: 14\r\n\r\n{"issuer":"x"}', "another issuer"),
        ("TLS", "not trusted: set oidc_ca_file"),
    ],
)
async def test_the_log_says_why_an_issuer_does_not_say_its_keys(
    answer, why, untrusted, monkeypatch
):
    # However long the machine takes: neither is it too late, nor is it time to ask once more.
    monkeypatch.setattr("workers.identity.oidc.TIMEOUT_S", 60.0)
    monkeypatch.setattr(jwks, "AGAIN_S", 3600.0)
    if answer:
        async with server(answer.encode(), untrusted if answer == "TLS" else None) as address:
            await _finds_no_keys(address, why)
    else:
        with socket.socket() as taken:
            # Bound but not listening: connecting to it is refused.
            taken.bind(("127.0.0.1", 0))
            await _finds_no_keys(f"http://127.0.0.1:{taken.getsockname()[1]}", why)


async def _finds_no_keys(address: str, why: str) -> None:
    fetch = HttpFetch()
    config = OidcConfig(issuer=address, audience="a")
    known = OidcProvider(config, ADMINISTRATORS, fetch)
    providers, told = Providers(SimpleNamespace(), oidc=known), []
    try:
        with capture_logs() as lines:
            await known.look()
            # Asked again at once, and then not: the reason is logged all the same.
            for _ in range(2):
                with pytest.raises(Retry) as error:
                    await providers.authenticate(token(iss=address))
                told.append(error.value.info())
    finally:
        await fetch.aclose()
    assert [line["event"] for line in lines] == [
        "the OpenID Connect issuer does not say its keys",
        "the OpenID Connect issuer does not say its keys",
        "identity token not looked at",
        "identity token not looked at",
    ]
    assert all(why in line["why"] for line in lines)
    # Callers learn that they may try again, whatever it is.
    assert [one.message for one in told] == [IS_AWAY, IS_AWAY]
    assert all(one.retryable and one.code is ErrorCode.KEY_UNAVAILABLE for one in told)


async def test_keys_are_known_before_the_first_token():
    issuer = Issuer()
    known = provider(issuer)
    with capture_logs() as lines:
        await known.look()
    assert lines == [
        {"event": "the OpenID Connect issuer says its keys", "log_level": "info", "keys": 2}
    ]
    issuer.away = True
    assert await known.authenticate(token())


def test_settings(tmp_path: Path):
    def settings(**changes: Any) -> Settings:
        options = {"oidc_issuer": ISSUER, "oidc_audience": "sealstream", **changes}
        return Settings(home=tmp_path, **options)

    opened, _ = open_oidc(settings(oidc_roles="a=index, b=*"), ADMINISTRATORS)
    assert opened._config.roles["a"] == {Scope.INDEX}
    for changes in (
        {"oidc_roles": "a=Everything"},
        {"oidc_roles": "a"},
        {"oidc_algorithms": "HS256"},
        {"oidc_issuer": "ftp://x"},
        {"oidc_ca_file": tmp_path / "none"},
    ):
        with pytest.raises(Fatal):
            open_oidc(settings(**changes), ADMINISTRATORS)
    with pytest.raises(ValueError, match="go together"):
        Settings(home=tmp_path, oidc_issuer=ISSUER)
    assert parse_roles("") == {}
