"""Administrative operations on users, groups and application tokens.

    user.create             administrators (members of the realm administrator's group)
    user.delete             administrators; users themselves
    user.login              who knows the password; no other credential
    user.change_password    who knows the password; no other credential
    group.create            users of the realm with the scope ModifyAccessGroups, who become its
                            first member
    group.add_members,
    group.remove_members    members of the group with that scope, of their own or from the group
    token.create            the scope CreateToken
    token.open              the scope GetTokenContents

Nobody gives a user or a group scopes that they have not themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import cast

from schemas.admin import (
    AdminOp,
    GroupMembers,
    ScopesArgs,
    TokenCreate,
    TokenOpen,
    UserChangePassword,
    UserDelete,
    UserLogin,
)
from schemas.auth import Scope
from schemas.codec import to_plain
from schemas.errors import ErrorCode
from schemas.values import Binary
from workers.errors import Reject
from workers.identity.administrator import Administrator
from workers.identity.standalone import StandaloneProvider
from workers.identity.token import make_app_token, open_app_token
from workers.keys.asked import Asked, Operation, Result, begun
from workers.keys.policy import check_administrator
from workers.keys.principal import Principal, lacks
from workers.keys.realm import Realm, RealmPurpose
from workers.keys.revocations import RevocationLog
from workers.leases.certificate import Clock


class IdentityOperations:
    """Runs the operations of the standalone identity provider."""

    def __init__(
        self,
        provider: StandaloneProvider,
        realm: Realm,
        revocations: RevocationLog,
        *,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            provider: keeps users and groups.
            realm: its administrator, and the key of application tokens.
            revocations: tell workers at once of users that are deleted.
            clock: seconds since 1970.
        """
        self._provider = provider
        self._administrator: Administrator = realm.administrator
        self._app_key = realm.key(RealmPurpose.APP_TOKEN)
        self._revocations = revocations
        self._clock = clock

    @property
    def operations(self) -> dict[AdminOp, Operation]:
        """What runs each op."""
        return {
            AdminOp.USER_CREATE: self._create_user,
            AdminOp.USER_LOGIN: self._log_in,
            AdminOp.USER_CHANGE_PASSWORD: self._change_password,
            AdminOp.USER_DELETE: self._delete_user,
            AdminOp.GROUP_CREATE: self._create_group,
            AdminOp.GROUP_ADD_MEMBERS: self._add_members,
            AdminOp.GROUP_REMOVE_MEMBERS: self._remove_members,
            AdminOp.TOKEN_CREATE: self._create_token,
            AdminOp.TOKEN_OPEN: self._open_token,
        }

    async def _create_user(self, asked: Asked) -> Result:
        scopes = cast("ScopesArgs", asked.arguments).scopes
        check_administrator(asked.principal, self._administrator.default_group)
        _check_given(asked.principal, scopes)
        seed = await asked.begin()
        with begun():
            user, password = await self._provider.create_user(
                seed, scopes, asked.request.request_id
            )
            await asked.grant()
        return {
            "user_id": user.id,
            "password": password,
            "default_group": user.default_group,
            "scopes": [scope.value for scope in user.scopes],
        }

    async def _log_in(self, asked: Asked) -> Result:
        arguments = cast("UserLogin", asked.arguments)
        token, expires_s = await self._provider.log_in(arguments.user_id, arguments.password)
        return {"token": token, "expires_ms": expires_s * 1000}

    async def _change_password(self, asked: Asked) -> Result:
        arguments = cast("UserChangePassword", asked.arguments)
        await asked.note("none")
        password = await self._provider.change_password(
            arguments.user_id, arguments.password, asked.request.request_id
        )
        with begun():
            await asked.grant()
        return {"password": password}

    async def _delete_user(self, asked: Asked) -> Result:
        user_id = cast("UserDelete", asked.arguments).user_id.lower()
        principal = asked.principal
        if principal.kind != "identity" or principal.id != user_id:
            check_administrator(principal, self._administrator.default_group)
        if self._provider.is_administrator(user_id):
            raise Reject(
                ErrorCode.FORBIDDEN, "the realm keeps its administrator", field="args.user_id"
            )
        await asked.begin()
        with begun():
            await self._provider.delete_user(user_id)
            await self._revocations.revoke("user", user_id)
            await asked.grant()
        return {"user_id": user_id, "deleted": True}

    async def _create_group(self, asked: Asked) -> Result:
        scopes = cast("ScopesArgs", asked.arguments).scopes
        principal = asked.principal
        if principal.kind != "identity":
            raise Reject(ErrorCode.FORBIDDEN, "only users make groups", field="auth")
        principal.require(Scope.MODIFY_ACCESS_GROUPS)
        _check_given(principal, scopes)
        if not await self._provider.knows(principal.id):
            raise Reject(
                ErrorCode.FORBIDDEN,
                "your groups are those that your identity provider names: make it there",
                field="auth",
            )
        seed = await asked.begin()
        with begun():
            group = await self._provider.create_group(
                seed, scopes, asked.request.request_id, principal.id
            )
            await asked.grant()
        return {"group_id": group.id, "scopes": [scope.value for scope in group.scopes]}

    async def _add_members(self, asked: Asked) -> Result:
        arguments = await self._members(asked)
        await self._provider.check_users(arguments.user_ids)
        await asked.begin()
        with begun():
            for user_id in arguments.user_ids:
                await self._provider.add_member(arguments.group_id, user_id)
            await asked.grant()
        return {"group_id": arguments.group_id, "added": len(arguments.user_ids)}

    async def _remove_members(self, asked: Asked) -> Result:
        arguments = await self._members(asked)
        await self._provider.check_users(arguments.user_ids)
        await asked.begin()
        with begun():
            for user_id in arguments.user_ids:
                await self._provider.remove_member(arguments.group_id, user_id)
            await asked.grant()
        return {"group_id": arguments.group_id, "removed": len(arguments.user_ids)}

    async def _members(self, asked: Asked) -> GroupMembers:
        """Check that the caller may change who is in a group."""
        arguments = cast("GroupMembers", asked.arguments)
        principal, group = asked.principal, arguments.group_id.lower()
        if principal.kind != "identity" or group not in principal.groups:
            raise Reject(
                ErrorCode.FORBIDDEN, "only members of a group change it", field="args.group_id"
            )
        if group not in principal.groups_with(Scope.MODIFY_ACCESS_GROUPS):
            raise lacks(Scope.MODIFY_ACCESS_GROUPS)
        administrators = self._administrator.default_group
        if group != administrators and await self._provider.find_group(group) is None:
            raise Reject(
                ErrorCode.FORBIDDEN,
                "a user's own group has one member, and who is in a group of another identity"
                " provider is said there",
                field="args.group_id",
            )
        return arguments

    async def _create_token(self, asked: Asked) -> Result:
        arguments = cast("TokenCreate", asked.arguments)
        asked.principal.require(Scope.CREATE_TOKEN)
        data = arguments.data
        now_s = self._clock()
        token = make_app_token(
            self._app_key,
            data.encode() if isinstance(data, str) else data.decode(),
            is_text=isinstance(data, str),
            now_s=now_s,
            ttl_s=arguments.ttl_s,
        )
        return {"token": token, "expires_ms": (int(now_s) + arguments.ttl_s) * 1000}

    async def _open_token(self, asked: Asked) -> Result:
        asked.principal.require(Scope.GET_TOKEN_CONTENTS)
        token = cast("TokenOpen", asked.arguments).token
        body = open_app_token(self._app_key, token, now_s=self._clock())
        data = body.data.decode() if body.is_text else to_plain(Binary.of(body.data))
        return {"data": data, "expires_ms": body.expires_s * 1000}


def _check_given(principal: Principal, scopes: Iterable[Scope]) -> None:
    """Refuse scopes that the giver has not."""
    for scope in scopes:
        if scope not in principal.scopes:
            raise Reject(
                ErrorCode.FORBIDDEN,
                f"nobody gives a scope that they have not: {scope.value}",
                field="args.scopes",
            )
