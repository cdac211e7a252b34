"""The standalone identity provider: users, groups and identity tokens of a realm without another.

Records, in sealed pages (`pages.py`): a user has an id, a default group, scopes, the groups it is a
member of and the hash of its password; a group has scopes. Membership stands with the user alone,
so there is nothing to keep in step.

The realm's administrator is known without a record, has all scopes, and no password: its token is
made by `init_realm`. A record of its id holds nothing but the groups that it joined.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

import msgspec

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.crypto.derive import prf
from workers.crypto.secret import Key
from workers.errors import Reject
from workers.identity.administrator import Administrator
from workers.identity.base import Identity
from workers.identity.pages import Pages
from workers.identity.password import PasswordHash, Passwords, password_of
from workers.identity.token import make_token, open_token

LOGIN_LIFE_S: Final = 8 * 3600
MAX_GROUPS: Final = 256
"""Groups that a user may be a member of: all of them travel with every operation."""


class UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One user.

    Args:
        password: None for the administrator, who cannot log in.
        epoch: how often the password was changed; older tokens are refused.
        request_id: of the request that made it.
    """

    v: int = 1
    id: str
    scopes: list[Scope]
    default_group: str
    groups: list[str] = []
    password: PasswordHash | None = None
    epoch: int = 0
    created_s: int = 0
    request_id: str = ""


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One group; `request_id` is that of the request that made it."""

    v: int = 1
    id: str
    scopes: list[Scope]
    created_s: int = 0
    request_id: str = ""


class StandaloneProvider:
    """Knows the administrator, and the users and groups that were created."""

    def __init__(
        self,
        *,
        administrator: Administrator,
        users: Pages[UserRecord],
        groups: Pages[GroupRecord],
        passwords: Passwords,
        token_key: Key,
        user_key: Key,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            administrator: of the realm.
            users: records under the realm's `user` key.
            groups: records under the realm's `group` key.
            passwords: hashes them.
            token_key: the realm's `identity-token` key.
            user_key: the realm's `user` key: changed passwords are drawn with it.
            clock: seconds since 1970.
        """
        self._administrator = administrator
        self._users = users
        self._groups = groups
        self._passwords = passwords
        self._token_key = token_key
        self._user_key = user_key
        self._clock = clock

    async def authenticate(self, token: str) -> Identity:
        """Return the identity of a token: see `IdentityProvider.authenticate`."""
        body = open_token(self._token_key, token, now_s=self._clock())
        if self.is_administrator(body.identity_id):
            known = self._administrator
            joined = await self._users.peek(known.id)
            groups = (known.default_group, *(joined.groups if joined else ()))
            return Identity(known.id, frozenset(Scope), groups, known.default_group)
        user = await self._users.get(body.identity_id)
        if user is None:
            raise Reject(ErrorCode.UNAUTHENTICATED, "this identity does not exist", field="auth")
        if body.epoch != user.epoch:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "the password was changed: log in again", field="auth"
            )
        return Identity(
            user.id,
            frozenset(user.scopes),
            (user.default_group, *user.groups),
            user.default_group,
            await self._group_scopes(user.groups),
        )

    def is_administrator(self, identity_id: str) -> bool:
        """Tell whether this is the realm's administrator."""
        return hmac.compare_digest(identity_id.encode(), self._administrator.id.encode())

    async def create_user(
        self, seed: bytes, scopes: Iterable[Scope], request_id: str
    ) -> tuple[UserRecord, str]:
        """Create a user; return it and its password, which is kept nowhere.

        Args:
            seed: 32 random bytes that are secret and the same when the request is run again.
            scopes: of the user.
            request_id: of the request.

        Raises:
            Retry: STORAGE_UNAVAILABLE, OVERLOADED. Damaged.
        """
        password = password_of(prf(seed, "password"))
        made = UserRecord(
            id=_uuid(prf(seed, "user")),
            scopes=sorted(set(scopes)),
            default_group=_uuid(prf(seed, "default group")),
            password=await self._passwords.hash(password),
            created_s=int(self._clock()),
            request_id=request_id,
        )
        stored = await self._users.change(made.id, lambda known: known or made)
        return stored or made, password

    async def log_in(self, user_id: str, password: str) -> tuple[str, int]:
        """Return an identity token and when it expires, seconds since 1970.

        Raises:
            Reject: UNAUTHENTICATED, after the same work whether the user exists or not.
            Retry: STORAGE_UNAVAILABLE, OVERLOADED. Damaged.
        """
        user = await self._users.get(_canonical(user_id))
        if not await self._passwords.check(password, user.password if user else None):
            raise _wrong()
        now_s = self._clock()
        token = make_token(
            self._token_key,
            _canonical(user_id),
            now_s=now_s,
            life_s=LOGIN_LIFE_S,
            epoch=user.epoch if user else 0,
        )
        return token, int(now_s) + LOGIN_LIFE_S

    async def change_password(self, user_id: str, password: str, request_id: str) -> str:
        """Replace a password by one drawn here, and end every token of the user; return it.

        The new one is a PRF of the old one and the request, so a request that is run again after
        its answer was lost finds that it was done and returns the same.

        Raises:
            Reject: UNAUTHENTICATED. Retry: STORAGE_UNAVAILABLE, OVERLOADED. Damaged.
        """
        user_id = _canonical(user_id)
        new = password_of(prf(self._user_key, "change", user_id, request_id, password))
        user = await self._users.get(user_id)
        known = user.password if user else None
        right = await self._passwords.check(password, known)
        # Always a second one: a wrong password must not take another time than a right one.
        done = await self._passwords.check(new, known)
        if user is None or not (right or done):
            raise _wrong()
        if right:
            hashed = await self._passwords.hash(new)

            def replace(now: UserRecord | None) -> UserRecord:
                if now is None or now.password != known:
                    raise _wrong()
                return msgspec.structs.replace(now, password=hashed, epoch=now.epoch + 1)

            await self._users.change(user_id, replace)
        return new

    async def delete_user(self, user_id: str) -> None:
        """Delete a user: its tokens and password end now.

        Raises:
            Reject: NOT_FOUND. Retry: STORAGE_UNAVAILABLE. Damaged.
        """

        def remove(user: UserRecord | None) -> None:
            if user is None:
                raise _unknown_user("args.user_id")

        await self._users.change(_canonical(user_id), remove)

    async def create_group(
        self, seed: bytes, scopes: Iterable[Scope], request_id: str, creator: str
    ) -> GroupRecord:
        """Create a group whose first member is its creator.

        Raises:
            Reject: NOT_FOUND, the creator is no user of this provider; TOO_LARGE.
            Retry: STORAGE_UNAVAILABLE. Damaged.
        """
        made = GroupRecord(
            id=_uuid(prf(seed, "group")),
            scopes=sorted(set(scopes)),
            created_s=int(self._clock()),
            request_id=request_id,
        )
        stored = await self._groups.change(made.id, lambda known: known or made)
        await self.add_member(made.id, creator)
        return stored or made

    async def find_group(self, group_id: str) -> GroupRecord | None:
        """Return a group that was created, or None. Raises Retry, Damaged."""
        return await self._groups.get(_canonical(group_id))

    async def add_member(self, group_id: str, user_id: str) -> None:
        """Make a user a member of a group; harmless to repeat.

        Raises:
            Reject: NOT_FOUND, no such user; TOO_LARGE, in too many groups already.
            Retry: STORAGE_UNAVAILABLE. Damaged.
        """
        user_id, group_id = _canonical(user_id), _canonical(group_id)

        def add(user: UserRecord | None) -> UserRecord:
            user = user or self._blank(user_id)
            if group_id in user.groups:
                return user
            if len(user.groups) >= MAX_GROUPS:
                raise Reject(
                    ErrorCode.TOO_LARGE, f"a user is in at most {MAX_GROUPS} groups", field="args"
                )
            return msgspec.structs.replace(user, groups=[*user.groups, group_id])

        await self._users.change(user_id, add)

    async def remove_member(self, group_id: str, user_id: str) -> None:
        """End a membership; harmless to repeat. Raises as `add_member`."""
        user_id, group_id = _canonical(user_id), _canonical(group_id)

        def remove(user: UserRecord | None) -> UserRecord | None:
            if user is None:
                self._blank(user_id)
                return None
            left = [one for one in user.groups if one != group_id]
            return msgspec.structs.replace(user, groups=left) if left != user.groups else user

        await self._users.change(user_id, remove)

    async def check_users(self, user_ids: Iterable[str]) -> None:
        """Refuse unknown users before anything is changed. Raises Reject: NOT_FOUND; Retry."""
        for user_id in user_ids:
            if not await self.knows(user_id):
                raise _unknown_user("args.user_ids")

    async def knows(self, user_id: str) -> bool:
        """Tell whether somebody is a user of this provider. Raises Retry, Damaged."""
        return (
            self.is_administrator(_canonical(user_id))
            or await self._users.get(_canonical(user_id)) is not None
        )

    def _blank(self, user_id: str) -> UserRecord:
        """Return the record that holds the administrator's groups; others must exist."""
        if not self.is_administrator(user_id):
            raise _unknown_user("args.user_ids")
        return UserRecord(id=user_id, scopes=[], default_group=self._administrator.default_group)

    async def _group_scopes(self, groups: Iterable[str]) -> dict[str, frozenset[Scope]]:
        records = await asyncio.gather(*(self._groups.get(group) for group in groups))
        return {one.id: frozenset(one.scopes) for one in records if one is not None and one.scopes}


def _uuid(raw: bytes) -> str:
    return str(UUID(bytes=raw[:16], version=4))


def _canonical(uuid: str) -> str:
    return uuid.lower()


def _wrong() -> Reject:
    return Reject(ErrorCode.UNAUTHENTICATED, "user or password is wrong", field="args")


def _unknown_user(field: str) -> Reject:
    return Reject(ErrorCode.NOT_FOUND, "there is no such user", field=field)
