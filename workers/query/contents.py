"""Fetch and open the contents of hits.

Two things run at once: the sealed bytes come from the store, and the object keys from the key
service, which looks at each document's access list and hands out only what the caller may read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from schemas.auth import Auth
from workers.crypto.secret import SecretBytes
from workers.leases.credential import Proof
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Lease
from workers.objects.pack import (
    ObjectPointer,
    Place,
    decode_pointer,
    object_request,
    open_content,
    read_sealed,
)
from workers.storage.store import Store


@dataclass(frozen=True, slots=True)
class Stored:
    """What the document table says about one content: encoded pointer and wrapped pack key."""

    pointer: bytes
    pack: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """One content. `denied`: the key service refused; `content` is None then, and without one."""

    content: bytes | None
    content_type: str | None
    associated_data: bytes | None
    denied: bool = False


_NOTHING = Opened(None, None, None)


async def open_contents(
    store: Store,
    holder: LeaseHolder,
    lease: Lease,
    auth: Auth,
    stored: Sequence[Stored],
    *,
    proof: Proof | None = None,
) -> list[Opened]:
    """Open the contents of `stored`, in its order. `proof`: of the message that shows `auth`.

    Raises:
        NotFound: a pack is gone; the snapshot is too old.
        Damaged: something stored does not authenticate.
        Reject, Retry: as `LeaseHolder.open_objects` and the store.
    """
    pointers = [decode_pointer(item.pointer) if item.pointer else None for item in stored]
    wanted = [
        (number, pointer)
        for number, pointer in enumerate(pointers)
        if pointer is not None and pointer.place != Place.NONE
    ]
    opened = [_NOTHING] * len(stored)
    if not wanted:
        return opened
    requests = [object_request(pointer, stored[number].pack) for number, pointer in wanted]
    ask = holder.open_objects(lease, auth, requests, proof=proof)
    sealed, keys = await _both(store, lease, ask, [p for _, p in wanted])
    try:
        contents = await asyncio.to_thread(_open_all, lease.uid, wanted, sealed, keys)
    finally:
        _wipe(keys)
    for (number, _), content in zip(wanted, contents, strict=True):
        opened[number] = content
    return opened


async def _both(
    store: Store,
    lease: Lease,
    ask: Awaitable[list[SecretBytes | None]],
    pointers: Sequence[ObjectPointer],
) -> tuple[list[bytes], list[SecretBytes | None]]:
    """Fetch and ask at the same time; neither is left running when the other fails."""
    sealed, keys = await asyncio.gather(
        read_sealed(store, lease.uid, pointers),
        ask,
        return_exceptions=True,
    )
    if isinstance(keys, BaseException):
        raise keys
    if isinstance(sealed, BaseException):
        _wipe(keys)
        raise sealed
    return sealed, keys


def _wipe(keys: Sequence[SecretBytes | None]) -> None:
    for key in keys:
        if key is not None:
            key.wipe()


def _open_all(
    index_uid: bytes,
    wanted: Sequence[tuple[int, ObjectPointer]],
    sealed: Sequence[bytes],
    keys: Sequence[SecretBytes | None],
) -> list[Opened]:
    """Open contents; runs in a thread, AES-GCM of large ones releases the GIL."""
    opened = []
    for (_, pointer), blob, key in zip(wanted, sealed, keys, strict=True):
        if key is None:
            opened.append(Opened(None, None, None, denied=True))
            continue
        content = open_content(pointer, blob, key, index_uid=index_uid)
        opened.append(
            Opened(content, pointer.content_type or None, pointer.associated_data or None)
        )
    return opened
