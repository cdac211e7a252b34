"""One suite for every KMS: what a wrapped key promises, and how each failure is told.

Behind the clients are a real OpenBao, moto's AWS KMS, SoftHSM2, and small Google and Azure servers
that speak the wire API over TLS to the official libraries. What only one of them can answer stands
in `test_kms_<provider>.py`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_local_world
from kms_world import EXPECTED, PATIENCE_S, Fault, World
from kms_worlds import WORLDS

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Damaged, Reject
from workers.kms.base import Kms, context_bytes
from workers.kms.errors import KmsKeyDisabled, KmsKeyGone, KmsUnavailable

CONTEXT = {"index": "00" * 16, "purpose": "kek"}
# For servers that never give a good answer: a client may use up its deadline on trying again.
SHORT_S = 0.4


@pytest.fixture(scope="session", params=WORLDS)
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    async with WORLDS[request.param](tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture(scope="module")
async def kms(world: World) -> AsyncIterator[Kms]:
    """One client for all tests that leave the server whole, as a key service has one.

    Not for longer: a login to a PKCS#11 token is one of the whole process.
    """
    opened = world.open()
    yield opened
    await opened.aclose()


class Spy(logging.Handler):
    """Keeps every log record of a test, whatever its level, and the keys that it used."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.keys: list[SecretBytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.__dict__}")

    def key(self, size: int = 32) -> SecretBytes:
        """Draw a key that must not appear anywhere."""
        self.keys.append(random_secret(size))
        return self.keys[-1]

    def leaks(self, *shown: str, secrets: tuple[str, ...] = ()) -> list[str]:
        """Return the forms of keys and secrets that are in the log or in what was shown."""
        text = "\n".join([*self.lines, *shown])
        return [form for form in self._forms(secrets) if form in text]

    def _forms(self, secrets: tuple[str, ...]) -> Iterator[str]:
        yield from secrets
        for key in self.keys:
            if len(key) >= 16:
                data = key.copy()
                plain = base64.b64encode(data).decode().rstrip("=")
                yield from (data.hex(), plain, plain.replace("+", "-").replace("/", "_"))
                yield repr(data)[2:-1]


@pytest.fixture(autouse=True)
def spy(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Spy]:
    """Listen to everything that is logged, and fail the test if a secret is in it."""
    root, made = logging.getLogger(), Spy()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(made)
    root.setLevel(level)
    world = request.node.funcargs.get("world")
    printed = capsys.readouterr()
    assert not made.leaks(printed.out, printed.err, secrets=world.secrets if world else ())


async def ask_all(
    kms: Kms, key_id: str, wrapped: bytes, key: SecretBytes
) -> dict[str, BaseException]:
    """Ask for everything at once; return what each was refused with."""
    asked: dict[str, Awaitable[object]] = {
        "wrap": kms.wrap(key_id, key, CONTEXT),
        "unwrap": kms.unwrap(key_id, wrapped, CONTEXT),
        "rewrap": kms.rewrap(key_id, wrapped, CONTEXT),
        "describe": kms.describe(key_id),
    }
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    return {
        name: answer
        for name, answer in zip(asked, answers, strict=True)
        if isinstance(answer, BaseException)
    }


# What a wrapped key promises.


@pytest.mark.parametrize("size", [1, 32, 64])
async def test_a_wrapped_key_opens(world: World, kms: Kms, spy: Spy, size: int) -> None:
    key = spy.key(size)
    wrapped, version = await kms.wrap(world.one, key, CONTEXT)
    assert version
    assert size == 1 or key.copy() not in wrapped
    assert await kms.unwrap(world.one, wrapped, CONTEXT) == key


async def test_two_wrappings_differ(world: World, kms: Kms, spy: Spy) -> None:
    key = spy.key()
    one, two = [(await kms.wrap(world.one, key, CONTEXT)).data for _ in range(2)]
    assert one != two


async def test_the_order_of_the_context_does_not_matter(world: World, kms: Kms, spy: Spy) -> None:
    key = spy.key()
    wrapped = await kms.wrap(world.one, key, CONTEXT)
    assert await kms.unwrap(world.one, wrapped.data, dict(reversed(CONTEXT.items()))) == key


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"index": "00" * 16},
        {**CONTEXT, "purpose": "tag"},
        {**CONTEXT, "index": "01" + "00" * 15},
        {**CONTEXT, "more": ""},
        {"index": CONTEXT["purpose"], "purpose": CONTEXT["index"]},
    ],
)
async def test_another_context_does_not_open(
    world: World, kms: Kms, spy: Spy, context: dict[str, str]
) -> None:
    wrapped = await kms.wrap(world.one, spy.key(), CONTEXT)
    for use in (kms.unwrap, kms.rewrap):
        with pytest.raises(Damaged) as refused:
            await use(world.one, wrapped.data, context)
        assert refused.value.code is ErrorCode.DAMAGED


async def test_another_key_does_not_open(world: World, kms: Kms, spy: Spy) -> None:
    wrapped = await kms.wrap(world.one, spy.key(), CONTEXT)
    for use in (kms.unwrap, kms.rewrap):
        # Where the version stands in the wrapped key, the other key may not have it at all.
        with pytest.raises((Damaged, KmsKeyGone)):
            await use(world.two, wrapped.data, CONTEXT)


async def test_changed_bytes_do_not_open(world: World, kms: Kms, spy: Spy) -> None:
    data = (await kms.wrap(world.one, spy.key(), CONTEXT)).data
    middle = len(data) // 2
    other = b"A" if data[middle : middle + 1] != b"A" else b"B"
    flipped = data[:middle] + other + data[middle + 1 :]
    for blob in (flipped, data[:-4], data + b"AAAA", data[:20], b"", b"garbage", bytes(200)):
        with pytest.raises(Damaged):
            await kms.unwrap(world.one, blob, CONTEXT)
        with pytest.raises(Damaged):
            await kms.rewrap(world.one, blob, CONTEXT)


async def test_no_flipped_byte_opens(world: World, kms: Kms, spy: Spy) -> None:
    key = spy.key()
    data = (await kms.wrap(world.one, key, CONTEXT)).data
    # In steps: RSA takes its time.
    for place in range(0, len(data), max(1, len(data) // 48)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises((Damaged, KmsKeyGone)):
            await kms.unwrap(world.one, bytes(flipped), CONTEXT)


async def test_a_rewrapped_key_opens(world: World, kms: Kms, spy: Spy) -> None:
    key = spy.key()
    wrapped = await kms.wrap(world.one, key, CONTEXT)
    again = await kms.rewrap(world.one, wrapped.data, CONTEXT)
    assert again.data != wrapped.data
    assert await kms.unwrap(world.one, again.data, CONTEXT) == key
    assert await kms.unwrap(world.one, wrapped.data, CONTEXT) == key


async def test_another_client_opens(world: World, kms: Kms, spy: Spy) -> None:
    key = spy.key()
    wrapped = await kms.wrap(world.one, key, CONTEXT)
    other = world.open()
    assert await other.unwrap(world.one, wrapped.data, CONTEXT) == key
    await other.aclose()


async def test_a_key_is_described(world: World, kms: Kms, spy: Spy) -> None:
    described = await kms.describe(world.one)
    assert (described.provider, described.key_id) == (kms.name, world.one)
    assert kms.name == world.provider
    assert described.binds_context
    assert described.version == (await kms.wrap(world.one, spy.key(), CONTEXT)).version


@pytest.mark.parametrize(
    "key_id",
    [
        "",
        ".",
        "..",
        "../sys/seal",
        "a/b",
        "a b",
        "a?b",
        "a#b",
        "%2e",
        "x" * 129,
        "é",
        "arn:other:kms:eu-west-1:111122223333:key/x",
    ],
)
async def test_malformed_key_ids_are_refused(world: World, kms: Kms, spy: Spy, key_id: str) -> None:
    wrapped = await kms.wrap(world.one, spy.key(), CONTEXT)
    for ask in (
        kms.wrap(key_id, spy.key(), CONTEXT),
        kms.unwrap(key_id, wrapped.data, CONTEXT),
        kms.rewrap(key_id, wrapped.data, CONTEXT),
        kms.describe(key_id),
    ):
        with pytest.raises(Reject) as refused:
            await ask
        assert (refused.value.code, refused.value.field) == ("INVALID_MESSAGE", "kms.key_id")


async def test_calls_may_run_together(world: World, kms: Kms, spy: Spy) -> None:
    async def there_and_back(n: int) -> bool:
        key, context = spy.key(), {**CONTEXT, "index": f"{n:032x}"}
        wrapped = await kms.wrap(world.one, key, context)
        return await kms.unwrap(world.one, wrapped.data, context) == key

    assert all(await asyncio.gather(*(there_and_back(n) for n in range(8))))


async def test_closing_twice_is_harmless(world: World) -> None:
    unused = world.open()
    await unused.aclose()
    await unused.aclose()
    used = world.open()
    await used.describe(world.one)
    await used.aclose()
    await used.aclose()


# Versions, and keys that are switched off or gone.


async def test_a_rotation_keeps_what_was_wrapped(world: World, kms: Kms, spy: Spy) -> None:
    if not world.has_versions:
        return
    key_id, key = await world.make_key(), spy.key()
    old = await kms.wrap(key_id, key, CONTEXT)
    await world.rotate(key_id)
    assert await kms.unwrap(key_id, old.data, CONTEXT) == key
    new = await kms.rewrap(key_id, old.data, CONTEXT)
    assert new.version != old.version
    assert new.version == (await kms.describe(key_id)).version
    assert (await kms.wrap(key_id, key, CONTEXT)).version == new.version
    assert await kms.unwrap(key_id, new.data, CONTEXT) == key


async def test_a_disabled_key_stops_until_it_is_enabled(world: World, kms: Kms, spy: Spy) -> None:
    if not world.can_disable:
        return
    key_id, key = await world.make_key(), spy.key()
    wrapped = await kms.wrap(key_id, key, CONTEXT)
    await world.disable(key_id)
    refused = await ask_all(kms, key_id, wrapped.data, key)
    assert {name: type(error) for name, error in refused.items()} == dict.fromkeys(
        ("wrap", "unwrap", "rewrap", "describe"), KmsKeyDisabled
    )
    assert {error.code for error in refused.values()} == {ErrorCode.KEY_UNAVAILABLE}
    await world.enable(key_id)
    assert await kms.unwrap(key_id, wrapped.data, CONTEXT) == key


async def test_a_destroyed_key_opens_nothing(world: World, kms: Kms, spy: Spy) -> None:
    if world.provider == "local":
        return
    key_id, key = await world.make_key(), spy.key()
    wrapped = await kms.wrap(key_id, key, CONTEXT)
    await world.lose(key_id)
    refused = await ask_all(kms, key_id, wrapped.data, key)
    assert {name: type(error) for name, error in refused.items()} == dict.fromkeys(
        ("wrap", "unwrap", "rewrap", "describe"), KmsKeyGone
    )
    assert {error.code for error in refused.values()} == {ErrorCode.NOT_FOUND}


# Servers that fail.


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_failing_server_is_told_apart_and_recovered_from(
    world: World, spy: Spy, fault: Fault
) -> None:
    if fault not in world.faults:
        return
    key = spy.key()
    answers = fault in (Fault.FOREIGN, Fault.DENIED)
    kms = world.open(timeout_s=PATIENCE_S if answers else SHORT_S)
    ready = world.open()
    wrapped = await ready.wrap(world.one, key, CONTEXT)
    # The client under test is not connected yet the first time, and is the second time.
    for _ in range(2):
        async with world.fault(fault):
            refused = await ask_all(kms, world.one, wrapped.data, key)
        assert {name: type(error) for name, error in refused.items()} == dict.fromkeys(
            ("wrap", "unwrap", "rewrap", "describe"), EXPECTED[fault]
        )
        assert {error.code for error in refused.values()} == {ErrorCode.KEY_UNAVAILABLE}
        shown = [f"{e!s} {e!r} {e.__cause__!r}" for e in refused.values()]
        assert not spy.leaks(*shown, secrets=world.secrets)
        assert "words of the server" not in "".join(shown)
        # What a library raised stays out of tracebacks too.
        assert all(e.__suppress_context__ or e.__context__ is None for e in refused.values())
        await recovered(kms, world, wrapped.data, key)
    await ready.aclose()
    await kms.aclose()


async def recovered(kms: Kms, world: World, wrapped: bytes, key: SecretBytes) -> None:
    """Wait until the same client opens again; servers and libraries take a moment."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await kms.unwrap(world.one, wrapped, CONTEXT) == key
                return
            except KmsUnavailable:
                await asyncio.sleep(0.05)


async def test_a_frozen_server_leaves_other_clients_alone(
    world: World, spy: Spy, tmp_path: Path
) -> None:
    if Fault.FROZEN not in world.faults:
        return
    frozen = world.open(timeout_s=SHORT_S)
    async with kms_local_world.start(tmp_path) as elsewhere:
        other, key = elsewhere.open(), spy.key()
        async with world.fault(Fault.FROZEN), asyncio.timeout(PATIENCE_S):
            waiting = asyncio.ensure_future(frozen.describe(world.one))
            for _ in range(50):
                wrapped = await other.wrap("one", key, CONTEXT)
                assert await other.unwrap("one", wrapped.data, CONTEXT) == key
            with pytest.raises(KmsUnavailable, match=r"0\.4 s"):
                await waiting
        await other.aclose()
    await frozen.aclose()


async def test_the_servers_certificate_is_verified(world: World, spy: Spy) -> None:
    if not world.verifies_tls:
        return
    kms = world.open(timeout_s=SHORT_S, trusted=False)
    refused = await ask_all(kms, world.one, b"vault:v1:AAAA", spy.key())
    assert {type(error) for error in refused.values()} <= {KmsUnavailable, Damaged}
    assert isinstance(refused["wrap"], KmsUnavailable)
    assert isinstance(refused["describe"], KmsUnavailable)
    await kms.aclose()


# The suite itself.


def test_no_two_contexts_share_an_encoding() -> None:
    contexts = [
        {},
        {"a": ""},
        {"": "a"},
        {"a": "b"},
        {"ab": ""},
        {"a": "b", "c": "d"},
        {"a": "bcd"},
    ]
    assert len({context_bytes(context) for context in contexts}) == len(contexts)


def test_the_spy_would_notice() -> None:
    spy = Spy()
    key = spy.key()
    for form in (key.copy().hex(), base64.b64encode(key.copy()).decode(), repr(key.copy())):
        assert spy.leaks(f"request: {form}")
    assert spy.leaks("token: t0ken", secrets=("t0ken",))
    assert not spy.leaks("nothing", secrets=("t0ken",))
