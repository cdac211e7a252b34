"""Administrative operations on access lists: for members of the list, with the scope for it.

access.get              GetAccessGroups
access.add, .remove     ModifyAccessGroups; a list keeps at least one group
"""

from __future__ import annotations

from typing import cast

from schemas.admin import AccessChange, AccessGet, AdminOp
from schemas.auth import Scope
from schemas.codec import to_plain
from workers.keys.access import AccessLists, Listed
from workers.keys.asked import Asked, Operation, Result, begun
from workers.keys.catalog import IndexRecord, unknown_index
from workers.keys.indexes import Indexes
from workers.keys.policy import check_no_user_key
from workers.keys.principal import lacks


class AccessOperations:
    """Shows and changes access lists."""

    def __init__(self, indexes: Indexes, lists: AccessLists) -> None:
        """Prepare."""
        self._indexes = indexes
        self._lists = lists

    @property
    def operations(self) -> dict[AdminOp, Operation]:
        """What runs each op."""
        return {
            AdminOp.ACCESS_GET: self._get,
            AdminOp.ACCESS_ADD: self._add,
            AdminOp.ACCESS_REMOVE: self._remove,
        }

    async def _get(self, asked: Asked) -> Result:
        arguments = cast("AccessGet", asked.arguments)
        record = await self._index(asked, Scope.GET_ACCESS_GROUPS)
        listed = await self._lists.get(record, asked.principal, arguments.id)
        return _result(arguments, listed)

    async def _add(self, asked: Asked) -> Result:
        groups = {group.lower() for group in cast("AccessChange", asked.arguments).groups}
        return await self._change(asked, added=groups, removed=set())

    async def _remove(self, asked: Asked) -> Result:
        groups = {group.lower() for group in cast("AccessChange", asked.arguments).groups}
        return await self._change(asked, added=set(), removed=groups)

    async def _change(self, asked: Asked, *, added: set[str], removed: set[str]) -> Result:
        arguments = cast("AccessChange", asked.arguments)
        check_no_user_key(asked.principal)
        record = await self._index(asked, Scope.MODIFY_ACCESS_GROUPS)
        await asked.begin()
        with begun():
            listed = await self._lists.change(
                record,
                asked.principal,
                arguments.id,
                lambda groups: (groups | added) - removed,
                request_id=asked.request.request_id,
                source=asked.record,
            )
            await asked.grant()
        return _result(arguments, listed)

    async def _index(self, asked: Asked, scope: Scope) -> IndexRecord:
        """Return the index, once its key was proved and the caller has the scope for something."""
        if asked.found is None or asked.found[0].state != "live":
            raise unknown_index()
        record, principal = asked.found[0], asked.principal
        await self._indexes.prove(record, principal.index_key)
        if "read" not in principal.permissions or scope not in principal.any_scopes:
            raise lacks(scope)
        return record


def _result(arguments: AccessGet, listed: Listed) -> Result:
    position = None if listed.position is None else to_plain(listed.position)
    return {
        "index": arguments.index,
        "id": arguments.id,
        "groups": listed.groups,
        "access_version": listed.version,
        **({} if position is None else {"position": position}),
    }
