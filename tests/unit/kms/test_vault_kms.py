"""What Vault may answer that a healthy server does not: a small server says it on demand."""

from __future__ import annotations

import asyncio
import base64
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Fatal, Reject, Retry
from workers.kms.errors import KmsDenied, KmsKeyGone, KmsUnavailable
from workers.kms.vault import VaultConfig, VaultKms

TOKEN = "s.very-secret-token"
KEY = SecretBytes(b"plaintext-key-of-32-bytes-in-all")
CONTEXT = {"purpose": "kek"}
WRAPPED = b"vault:v1:AAAA"
KEY_ANSWER = {"data": {"latest_version": 1, "min_decryption_version": 1, "derived": True}}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Answers:
    """A server that answers everything the same way, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.handler: Handler = self.status(200)
        self.server: TestServer

    def status(self, status: int, body: str = '{"errors":["leaked body"]}') -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return web.Response(status=status, text=body, headers={"Location": "http://evil/"})

        return handle

    def json(self, body: object) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return web.json_response(body)

        return handle

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/auth/token/lookup-self"):
            # Asked in the background: the token never ends.
            return web.json_response({"data": {"ttl": 0, "renewable": False}})
        body = await request.read()
        self.requests.append((request.method, request.path, body, dict(request.headers)))
        return await self.handler(request)

    def kms(self, timeout_s: float = 60.0) -> VaultKms:
        config = VaultConfig(
            address=str(self.server.make_url("")),
            token=TOKEN,
            namespace="team",
            timeout_s=timeout_s,
        )
        return VaultKms(config, mount="transit", default_key="one")


@pytest.fixture
async def answers() -> AsyncIterator[Answers]:
    made = Answers()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    made.server = TestServer(app)
    await made.server.start_server()
    yield made
    await made.server.close()


async def refusal(kms: VaultKms) -> Retry | Reject:
    """Return the error of an unwrapping, after checking that its text is clean."""
    try:
        with pytest.raises((Retry, Reject)) as refused:
            await kms.unwrap("one", WRAPPED, CONTEXT)
    finally:
        await kms.aclose()
    error = refused.value
    shown = f"{error!s} {error!r} {error.__cause__!r}"
    for secret in (TOKEN, "leaked", "plaintext-key", "AAAA"):
        assert secret not in shown
    # What is raised "from None" stays out of tracebacks too.
    assert error.__suppress_context__ or error.__context__ is None
    return error


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (301, KmsUnavailable, "301"),
        (307, KmsUnavailable, "307"),
        (401, KmsDenied, "token"),
        (403, KmsDenied, "policy"),
        (404, KmsUnavailable, "mount"),
        (405, KmsUnavailable, "405"),
        (412, KmsUnavailable, "412"),
        (429, KmsUnavailable, "429"),
        (472, KmsUnavailable, "472"),
        (473, KmsUnavailable, "473"),
        (500, KmsUnavailable, "500"),
        (502, KmsUnavailable, "502"),
        (503, KmsUnavailable, "sealed"),
        (200, KmsUnavailable, "not its own"),
        (204, KmsUnavailable, "204"),
        (400, Damaged, "does not open"),
    ],
)
async def test_statuses_become_typed_errors(
    answers: Answers, status: int, kind: type[Exception], says: str
) -> None:
    answers.handler = answers.status(status)
    error = await refusal(answers.kms())
    assert type(error) is kind
    assert says in error.message
    assert error.info().retryable == isinstance(error, Retry)
    assert len(answers.requests) == 1, "a redirect was followed: it would carry the token away"


@pytest.mark.parametrize(
    "text",
    [
        "encryption key not found",
        "ciphertext or signature version is disallowed by policy (too old)",
        "key is soft-deleted",
    ],
)
async def test_a_version_that_is_gone_is_not_damage(answers: Answers, text: str) -> None:
    answers.handler = answers.status(400, f'{{"errors":["{text}"]}}')
    error = await refusal(answers.kms())
    assert isinstance(error, KmsKeyGone)
    assert error.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"data":null}',
        '{"data":{"plaintext":7}}',
        '{"data":{"plaintext":"!"}}',
        "x" * 300_000,
    ],
)
async def test_an_answer_that_is_not_transits_is_unavailable(answers: Answers, body: str) -> None:
    answers.handler = answers.status(200, body)
    assert isinstance(await refusal(answers.kms()), KmsUnavailable)


async def test_a_slow_server_meets_the_deadline(answers: Answers) -> None:
    release = asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    answers.handler = never
    error = await refusal(answers.kms(timeout_s=0.05))
    release.set()
    assert isinstance(error, KmsUnavailable)
    assert "within 0.05 s" in error.message


def test_the_deadline_is_two_seconds() -> None:
    assert VaultConfig(address="https://vault").timeout_s == 2.0


async def test_a_refused_connection_is_unavailable() -> None:
    with socket.socket() as taken:
        # Bound but not listening: connecting to it is refused.
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = VaultConfig(address=address, token=TOKEN, timeout_s=60.0)
        error = await refusal(VaultKms(config, mount="transit", default_key="one"))
    assert isinstance(error, KmsUnavailable)
    assert "cannot be reached" in error.message


async def test_a_dropped_connection_is_unavailable(answers: Answers) -> None:
    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    answers.handler = drop
    assert isinstance(await refusal(answers.kms()), KmsUnavailable)


async def test_what_is_sent(answers: Answers) -> None:
    kms = answers.kms()
    answers.handler = answers.json(
        KEY_ANSWER | {"data": KEY_ANSWER["data"] | {"ciphertext": "vault:v1:AAAA"}}
    )
    wrapped = await kms.wrap("one", KEY, CONTEXT)
    await kms.wrap("one", KEY, CONTEXT)
    await kms.aclose()
    assert wrapped == (WRAPPED, "v1")
    # The key is looked at once, not before every wrapping.
    paths = [(method, path) for method, path, _, _ in answers.requests]
    assert paths == [
        ("GET", "/v1/transit/keys/one"),
        ("POST", "/v1/transit/encrypt/one"),
        ("POST", "/v1/transit/encrypt/one"),
    ]
    _, _, body, headers = answers.requests[1]
    assert base64.b64encode(KEY.copy()) in body
    assert headers["X-Vault-Token"] == TOKEN
    assert headers["X-Vault-Namespace"] == "team"


async def test_an_unusable_ciphertext_is_not_accepted(answers: Answers) -> None:
    kms = answers.kms()
    for ciphertext in ("", "AAAA", "vault:1:AAAA", "vault:v0:AAAA", 'vault:v1:A","x":"'):
        answers.handler = answers.json({"data": KEY_ANSWER["data"] | {"ciphertext": ciphertext}})
        with pytest.raises(KmsUnavailable):
            await kms.wrap("one", KEY, CONTEXT)
    await kms.aclose()


async def test_a_stored_ciphertext_cannot_inject_into_the_request(answers: Answers) -> None:
    kms = answers.kms()
    with pytest.raises(Damaged):
        await kms.unwrap("one", b'vault:v1:AA","context":"AA', CONTEXT)
    await kms.aclose()
    assert answers.requests == []


async def test_a_key_that_was_deleted_softly_is_gone(answers: Answers) -> None:
    answers.handler = answers.json({"data": KEY_ANSWER["data"] | {"soft_deleted": True}})
    kms = answers.kms()
    with pytest.raises(KmsKeyGone):
        await kms.describe("one")
    await kms.aclose()


@pytest.mark.parametrize("token", ["", " \n", "a\nX-Evil: 1", "tökén"])
async def test_a_malformed_token_is_not_sent(tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    config = VaultConfig(address="http://localhost:1", token_file=file)
    kms = VaultKms(config, mount="transit", default_key="one")
    with pytest.raises(KmsDenied):
        await kms.describe("one")
    await kms.aclose()


@pytest.mark.parametrize(
    "address",
    [
        "vault:8200",
        "ftp://vault",
        "https://",
        "http://vault:8200",
        "http://10.0.0.1:8200",
        "https://user:password@vault",
        "https://vault/?a=b",
    ],
)
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(Fatal, match=r"https") as refused:
        VaultKms(VaultConfig(address=address, token=TOKEN), mount="transit", default_key="one")
    assert "password" not in str(refused.value)


def test_other_bad_settings_are_refused(tmp_path: Path) -> None:
    good = VaultConfig(address="https://vault", token=TOKEN)
    for mount in ("", "../sys", "a b", "/transit"):
        with pytest.raises(Fatal, match="mount"):
            VaultKms(good, mount=mount, default_key="one")
    with pytest.raises(Fatal, match="VAULT_TOKEN_FILE"):
        VaultKms(VaultConfig(address="https://vault"), mount="transit", default_key="one")
    with pytest.raises(Reject):
        VaultKms(good, mount="transit", default_key="../one")
    for missing in ({"ca_file": tmp_path / "none.pem"}, {"client_cert": tmp_path / "none.pem"}):
        config = VaultConfig(address="https://vault", token=TOKEN, **missing)
        with pytest.raises(Fatal, match="TLS files"):
            VaultKms(config, mount="transit", default_key="one")


def test_no_repr_shows_the_token() -> None:
    config = VaultConfig(address="https://vault", token=TOKEN)
    assert TOKEN not in f"{config!r} {VaultKms(config, mount='transit', default_key='one')!r}"


def test_errors_survive_pickling() -> None:
    for kind in (KmsUnavailable, KmsDenied, KmsKeyGone):
        error = pickle.loads(pickle.dumps(kind(ErrorCode.KEY_UNAVAILABLE, "text")))
        assert (type(error), error.message) == (kind, "text")
