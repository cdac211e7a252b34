"""Hardware security modules over PKCS#11: AES-256 keys that wrap with AES-KWP (RFC 5649).

AES-KWP authenticates no context: `binding` does that, under a carrier key that the module wraps. A
key id is the label of AES keys in one token. Keys of the same label are versions of one key, in the
order of their ids (CKA_ID, read as a number): the highest wraps, and the one that wrapped opens.
Make one with CKA_WRAP, CKA_UNWRAP, CKA_SENSITIVE, CKA_TOKEN and without CKA_EXTRACTABLE.

A module is a library in our own process that blocks, that knows one user, and that two threads at
once may crash: everything that touches it runs in one thread, also the end of its objects. A module
that hangs makes calls fail at their deadline, and those that wait behind it too; it does not keep
the process from ending.

A PIN that was refused is not tried again until it changes: tokens lock themselves after a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as p11

from workers.crypto.secret import KEY_BYTES, SecretBytes, random_secret
from workers.errors import SealstreamError
from workers.kms.base import DEADLINE_S, KeyInfo, Wrapped, check_key_id
from workers.kms.binding import KeyVersion, join, open_bound, split
from workers.kms.deadline import deadline
from workers.kms.errors import (
    KmsUnavailable,
    denied,
    key_gone,
    key_unsuitable,
    misconfigured,
    unavailable,
    wrap_damaged,
)

_TOKEN = re.compile(r"[^/]{1,32}")
# RFC 5649 makes 40 bytes of 32; an AES_KEY_WRAP_PAD of another kind (PKCS#7) would make 48.
_WRAPPED_BYTES = KEY_BYTES + 8

_DENIED = (
    p11.PinIncorrect,
    p11.PinLocked,
    p11.PinExpired,
    p11.PinInvalid,
    p11.PinLenRange,
    p11.UserPinNotInitialized,
    p11.FunctionRejected,
)
# The session or the token behind it is gone: open a new one and try again, once.
_LOST = (
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.TokenNotPresent,
    p11.DeviceRemoved,
    p11.DeviceError,
    p11.ObjectHandleInvalid,
    p11.KeyHandleInvalid,
    # Another session of this process logged out, and with it all of them.
    p11.UserNotLoggedIn,
)
_UNSUITABLE = (
    p11.KeyTypeInconsistent,
    p11.KeySizeRange,
    p11.WrappingKeyTypeInconsistent,
    p11.WrappingKeySizeRange,
    p11.WrappingKeyHandleInvalid,
    p11.MechanismInvalid,
    p11.MechanismParamInvalid,
    p11.KeyNotWrappable,
    p11.KeyUnextractable,
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pkcs11Config:
    """How to reach a token.

    Attributes:
        module: the vendor's PKCS#11 library.
        token: label of the token.
        pin: the user's PIN; `pin_file` outranks it.
        pin_file: file with the PIN, read at every login.
        timeout_s: seconds one call may take.
    """

    module: Path
    token: str
    pin: str | None = field(default=None, repr=False)
    pin_file: Path | None = None
    timeout_s: float = DEADLINE_S


def parse_location(rest: str) -> tuple[str, str] | None:
    """Split `TOKEN/KEY` into the label of the token and the key id; None: it is neither."""
    token, _, key = rest.rpartition("/")
    return (token, key) if _TOKEN.fullmatch(token) and key else None


class ModuleThread:
    """The one thread that calls a module; a daemon, since `ThreadPoolExecutor` waits at exit."""

    _all: ClassVar[dict[Path, ModuleThread]] = {}

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]
        self._work = queue.SimpleQueue()
        threading.Thread(target=self._run, name="pkcs11", daemon=True).start()

    @classmethod
    def of(cls, module: Path) -> ModuleThread:
        """Return the thread of a module in this process."""
        if module not in cls._all:
            cls._all[module] = cls()
        return cls._all[module]

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Have something done, after what was submitted before."""
        future: Future[_T] = Future()
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            # Whoever waited for it may have met the deadline.
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    _drop_locals(error)
                    # Raised where it is awaited.
                    future.set_exception(error)
            del future, work


class Pkcs11Kms:
    """Wraps keys with a hardware security module."""

    name = "pkcs11"

    def __init__(self, config: Pkcs11Config, *, default_key: str) -> None:
        """Check the configuration; loads the module on first use.

        Raises:
            Fatal: The module does not exist, or there is no PIN.
            Reject: INVALID_MESSAGE: `default_key` is malformed.
        """
        self.default_key = check_key_id(default_key)
        if not config.module.is_file():
            raise misconfigured("the PKCS#11 module does not exist")
        if config.pin is None and config.pin_file is None:
            raise misconfigured("PKCS#11 needs a PIN: set kms_pkcs11_pin_file or kms_pkcs11_pin")
        self._config = config
        self._thread: ModuleThread | None = None
        self._session: Any = None
        self._refused_pin: str | None = None
        self._mechanism = Mechanism.AES_KEY_WRAP_KWP

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        check_key_id(key_id)
        return await self._call(lambda: self._wrap(key_id, plaintext, context))

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        check_key_id(key_id)
        return await self._call(lambda: self._unwrap(key_id, wrapped, context))

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Open, and wrap under the highest version: see `Kms.rewrap`."""
        check_key_id(key_id)

        def again() -> Wrapped:
            with self._unwrap(key_id, wrapped, context) as plaintext:
                return self._wrap(key_id, plaintext, context)

        return await self._call(again)

    async def describe(self, key_id: str) -> KeyInfo:
        """List the key's versions: see `Kms.describe`."""
        check_key_id(key_id)
        versions = await self._call(lambda: sorted(self._versions(key_id), key=_number))
        return KeyInfo(self.name, key_id, versions[-1].hex(), versions[0].hex(), binds_context=True)

    async def aclose(self) -> None:
        """Log out. A call that hangs is left behind after its deadline."""
        thread, self._thread = self._thread, None
        if thread is not None:
            closed = thread.submit(self._close)
            with contextlib.suppress(KmsUnavailable):
                async with deadline(self._config.timeout_s):
                    await asyncio.wrap_future(closed)

    def __repr__(self) -> str:
        return f"Pkcs11Kms({self._config.token!r})"

    async def _call(self, work: Callable[[], _T]) -> _T:
        if self._thread is None:
            self._thread = ModuleThread.of(self._config.module)
        async with deadline(self._config.timeout_s):
            return await asyncio.wrap_future(self._thread.submit(lambda: self._guarded(work)))

    # From here on everything runs in the module's thread.

    def _guarded(self, work: Callable[[], _T]) -> _T:
        for last in (False, True):
            try:
                return work()
            except SealstreamError:
                raise
            except _LOST as exc:
                self._close()
                if last:
                    raise _refusal(exc) from None
            except (p11.PKCS11Error, OSError, RuntimeError) as exc:
                raise _refusal(exc) from None
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _wrap(self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]) -> Wrapped:
        versions = self._versions(key_id)
        newest = max(versions, key=_number)
        with random_secret() as carrier:
            made = self._opened().create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
                    Attribute.VALUE: carrier.copy(),
                    Attribute.TOKEN: False,
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: False,
                    Attribute.EXTRACTABLE: True,
                }
            )
            try:
                blob = versions[newest].wrap_key(made, mechanism=self._mechanism)
            finally:
                made.destroy()
            if len(blob) != _WRAPPED_BYTES:
                raise key_unsuitable("this module's AES_KEY_WRAP_PAD is not that of RFC 5649")
            key = KeyVersion(self.name, key_id, newest.hex())
            return Wrapped(join(key, carrier, blob, plaintext, context), newest.hex())

    def _unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        parts = split(wrapped)
        if len(parts.carrier) != _WRAPPED_BYTES:
            raise wrap_damaged()
        versions = self._versions(key_id)
        wrapping = next((k for v, k in versions.items() if v.hex() == parts.version), None)
        if wrapping is None:
            raise key_gone("the token has no longer the version of the key that wrapped this")
        try:
            opened = wrapping.unwrap_key(
                ObjectClass.SECRET_KEY,
                KeyType.GENERIC_SECRET,
                parts.carrier,
                mechanism=self._mechanism,
                store=False,
                template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
            )
        except (
            p11.WrappedKeyInvalid,
            p11.WrappedKeyLenRange,
            p11.EncryptedDataInvalid,
            p11.EncryptedDataLenRange,
            p11.UnwrappingKeyTypeInconsistent,
            p11.GeneralError,
            p11.FunctionFailed,
        ):
            # Modules do not agree on how they say it; some only that it failed.
            raise wrap_damaged() from None
        try:
            with SecretBytes(opened[Attribute.VALUE]) as carrier:
                key = KeyVersion(self.name, key_id, parts.version)
                return open_bound(key, carrier, parts.sealed, context)
        finally:
            opened.destroy()

    def _versions(self, key_id: str) -> dict[bytes, Any]:
        versions = self._search(key_id)
        if not versions:
            # A session that was logged out sees no keys: a missing one must be missing for sure.
            self._close()
            versions = self._search(key_id)
        if not versions:
            raise key_gone("the token has no AES key with this label and an id that may wrap")
        return versions

    def _search(self, key_id: str) -> dict[bytes, Any]:
        found = self._opened().get_objects(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.LABEL: key_id,
                Attribute.WRAP: True,
                Attribute.UNWRAP: True,
            }
        )
        return {bytes(key.id): key for key in found if key.id}

    def _opened(self) -> Any:
        if self._session is None:
            module = pkcs11.lib(str(self._config.module))
            token = module.get_token(token_label=self._config.token)
            mechanisms = token.slot.get_mechanisms()
            for mechanism in (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD):
                if mechanism in mechanisms:
                    self._mechanism = mechanism
                    break
            else:
                raise key_unsuitable("this token has no AES-KWP")
            self._session = self._logged_in(token)
        return self._session

    def _logged_in(self, token: Any) -> Any:
        pin = self._pin()
        if pin == self._refused_pin:
            raise denied("the token refused this PIN before: change it")
        try:
            return token.open(user_pin=pin)
        except p11.UserAlreadyLoggedIn:
            # By another session of this process: that counts for all of them.
            return token.open()
        except _DENIED:
            self._refused_pin = pin
            raise

    def _pin(self) -> str:
        if self._config.pin_file is None:
            return self._config.pin or ""
        try:
            return self._config.pin_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise denied("the file with the PIN cannot be read") from None

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except p11.PKCS11Error:
                return


def _drop_locals(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: objects of the module end in its thread."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _number(version: bytes) -> tuple[int, bytes]:
    return int.from_bytes(version, "big"), version


def _refusal(error: Exception) -> SealstreamError:
    name = type(error).__name__
    if isinstance(error, _DENIED):
        return denied(f"the token refuses us ({name}): check the PIN")
    if isinstance(error, _UNSUITABLE):
        return key_unsuitable(f"the token cannot wrap with this key ({name})")
    return unavailable(f"the token is not available ({name})")
