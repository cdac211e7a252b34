"""Who is the first to write an object that is written once."""

from __future__ import annotations

from workers.storage.errors import AlreadyExists, NotFound, OutcomeUnknown
from workers.storage.store import Store


async def create_first(store: Store, key: str, data: bytes) -> bytes:
    """Create an object, and return what stands there then: `data`, or what another wrote before.

    Args:
        store: where.
        key: of the object; nobody changes or deletes it meanwhile.
        data: with something in it that others do not write.

    Raises:
        Retry: the store is not available. Also where it did not answer and nothing was written.
    """
    try:
        await store.create(key, data)
    except (AlreadyExists, OutcomeUnknown) as failure:
        try:
            return (await store.get(key)).data
        except NotFound:
            raise OutcomeUnknown(key) from failure
    return data
