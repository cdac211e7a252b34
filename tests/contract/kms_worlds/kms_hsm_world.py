"""SoftHSM2: a token in a folder, in the process of the tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from kms_world import PATIENCE_S, World, missing
from pkcs11 import Attribute, KeyType, ObjectClass

from workers.kms.pkcs11 import ModuleThread, Pkcs11Config, Pkcs11Kms

T = TypeVar("T")

TOKEN, PIN, OFFICER_PIN = "contract token", "user-pin-of-the-tests", "officer-pin"
_FOLDERS = (
    "/usr/lib/softhsm",
    "/usr/lib/x86_64-linux-gnu/softhsm",
    "/usr/lib/aarch64-linux-gnu/softhsm",
    "/usr/lib64/softhsm",
    "/usr/local/lib/softhsm",
    "/opt/homebrew/lib/softhsm",
)


class HsmWorld(World):
    provider = "pkcs11"
    one, two = "one", "two"
    secrets = (PIN,)
    has_versions = True

    def __init__(self, module: Path) -> None:
        self.module = module

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> Pkcs11Kms:
        config = Pkcs11Config(module=self.module, token=TOKEN, pin=PIN, timeout_s=timeout_s)
        return Pkcs11Kms(config, default_key=self.one)

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A session of the token's user, who may store keys."""
        token = pkcs11.lib(str(self.module)).get_token(token_label=TOKEN)
        try:
            opened = token.open(user_pin=PIN, rw=True)
        except pkcs11.UserAlreadyLoggedIn:
            # The client under test is: that counts for the whole process.
            opened = token.open(rw=True)
        with opened as session:
            yield session

    def _generate(self, name: str, number: int) -> None:
        with self.session() as session:
            session.generate_key(
                KeyType.AES,
                256,
                label=name,
                id=number.to_bytes(2, "big"),
                store=True,
                template={
                    Attribute.WRAP: True,
                    Attribute.UNWRAP: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                },
            )

    def _found(self, session: Any, name: str) -> list[Any]:
        wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: name}
        return list(session.get_objects(wanted))

    async def do(self, work: Callable[[], T]) -> T:
        """Use the module where the client under test does: in its thread."""
        return await asyncio.wrap_future(ModuleThread.of(self.module).submit(work))

    async def make_key(self) -> str:
        name = f"key-{os.urandom(4).hex()}"
        await self.do(lambda: self._generate(name, 1))
        return name

    async def rotate(self, key_id: str) -> None:
        def count() -> int:
            with self.session() as session:
                return len(self._found(session, key_id))

        number = await self.do(count) + 1
        await self.do(lambda: self._generate(key_id, number))

    async def lose(self, key_id: str) -> None:
        def destroy() -> None:
            with self.session() as session:
                for key in self._found(session, key_id):
                    key.destroy()

        await self.do(destroy)


def find_module() -> Path:
    """Return SoftHSM2's library."""
    found = [Path(folder) / "libsofthsm2.so" for folder in _FOLDERS]
    present = next((module for module in found if module.is_file()), None)
    return present or missing("SoftHSM2 (Debian: apt-get install softhsm2)")


def _make_token(folder: Path) -> HsmWorld:
    """Make the one token of this process: the library reads its configuration only once."""
    module, tool = find_module(), shutil.which("softhsm2-util")
    if tool is None:
        missing("softhsm2-util (Debian: apt-get install softhsm2)")
    (folder / "tokens").mkdir(parents=True)
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(config)
    subprocess.run(
        [tool, "--init-token", "--free", "--label", TOKEN, "--pin", PIN, "--so-pin", OFFICER_PIN],
        check=True,
        capture_output=True,
    )
    return HsmWorld(module)


_MADE: list[HsmWorld] = []


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[HsmWorld]:
    if not _MADE:
        world = await asyncio.to_thread(_make_token, folder / "softhsm")
        for name in (world.one, world.two):
            await world.do(partial(world._generate, name, 1))
        _MADE.append(world)
    yield _MADE[0]
