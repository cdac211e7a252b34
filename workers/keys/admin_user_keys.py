"""Administrative operations on the user keys of an index: for who administers the index."""

from __future__ import annotations

from typing import cast

from schemas.admin import AdminOp, UserKeyCreate, UserKeyDelete
from schemas.errors import ErrorCode
from schemas.values import encode_base64
from workers.errors import Reject
from workers.keys.asked import Asked, Operation, Result, begun
from workers.keys.catalog import IndexRecord, unknown_index
from workers.keys.indexes import Indexes
from workers.keys.policy import check_owner
from workers.keys.user_keys import UserKeys


class UserKeyOperations:
    """Creates, lists and deletes user keys."""

    def __init__(self, indexes: Indexes, user_keys: UserKeys) -> None:
        """Prepare."""
        self._indexes = indexes
        self._user_keys = user_keys

    @property
    def operations(self) -> dict[AdminOp, Operation]:
        """What runs each op."""
        return {
            AdminOp.USER_KEY_CREATE: self._create,
            AdminOp.USER_KEY_LIST: self._list,
            AdminOp.USER_KEY_DELETE: self._delete,
        }

    async def _create(self, asked: Asked) -> Result:
        arguments = cast("UserKeyCreate", asked.arguments)
        record = await self._owned(asked)
        seed = await asked.begin()
        with begun():
            key = await self._user_keys.create(
                record,
                arguments.user_id,
                arguments.permissions,
                seed=seed,
                request_id=asked.request.request_id,
                index_key=asked.principal.index_key,
            )
            await self._check_epoch(record, arguments.user_id)
            await asked.grant()
        return {
            "index": record.index,
            "user_id": arguments.user_id,
            "user_key": encode_base64(key),
            "permissions": sorted(set(arguments.permissions)),
        }

    async def _check_epoch(self, record: IndexRecord, user_id: str) -> None:
        """Take back a user key with a KEK that has been changed since it was asked for."""
        found = await self._indexes.catalog.find(record.index)
        if found is not None and found[0].epoch != record.epoch:
            await self._user_keys.delete(record, user_id)
            raise Reject(ErrorCode.CONFLICT, "the key of the index is being changed: try again")

    async def _list(self, asked: Asked) -> Result:
        record = await self._owned(asked)
        return {
            "user_keys": [
                {
                    "user_id": one.user_id,
                    "permissions": one.permissions,
                    "created_ms": one.created_ms,
                }
                for one in await self._user_keys.list(record)
            ]
        }

    async def _delete(self, asked: Asked) -> Result:
        user_id = cast("UserKeyDelete", asked.arguments).user_id
        record = await self._owned(asked)
        await asked.begin()
        with begun():
            await self._user_keys.delete(record, user_id)
            await asked.grant()
        return {"index": record.index, "user_id": user_id, "deleted": True}

    async def _owned(self, asked: Asked) -> IndexRecord:
        """Return the index if the caller may administer it."""
        if asked.found is None or asked.found[0].state != "live":
            raise unknown_index()
        record = asked.found[0]
        await self._indexes.prove(record, asked.principal.index_key)
        check_owner(asked.principal, record, asked.principal.index_key)
        return record
