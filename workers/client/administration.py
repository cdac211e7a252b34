"""What a client asks of the key service: indexes, users, groups, tokens, user keys, access lists.

All of it goes sealed to the key service, and so do the answers. Every method raises `Reject` or
`Retry` as the service says (DEADLINE_EXCEEDED without an answer), and `InvalidMessage` where an
argument breaks the contract.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from schemas.auth import Scope
from schemas.codec import convert
from schemas.errors import ErrorCode
from schemas.values import Binary, decode_base64, encode_base64
from workers.client.admin import Administrator
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.leases.certificate import Role, WorkerCertificate, verify_certificate
from workers.leases.directory import KeyDirectory
from workers.leases.enrolment import Terms, sign_terms


class Administration:
    """The administrative methods of `Client`."""

    @property
    @abstractmethod
    def _admin(self) -> Administrator: ...

    @abstractmethod
    def _administrator_directory(self) -> KeyDirectory: ...

    # --- indexes -----------------------------------------------------------------------------

    async def create_index(self, index: str, **config: Any) -> dict[str, Any]:
        """Create an index; a message produced after this returns is accepted.

        Args:
            index: its name.
            config: arguments of `index.create`: `shards`, `dimension`, `metric`, `kms`, ...
        """
        created = await self._admin.run("index.create", {"index": index, **config})
        await self._administrator_directory().refresh()
        return created

    async def describe_index(self, index: str) -> dict[str, Any]:
        """Return the settings and state of an index."""
        return await self._admin.run("index.describe", {"index": index})

    async def list_indexes(self) -> list[dict[str, Any]]:
        """Return all indexes."""
        found = await self._admin.run("index.list", {})
        indexes: list[dict[str, Any]] = found.get("indexes", [])
        return indexes

    async def delete_index(self, index: str) -> dict[str, Any]:
        """Delete an index."""
        return await self._admin.run("index.delete", {"index": index})

    async def shred_index(self, index: str) -> dict[str, Any]:
        """Delete an index with its keys, and scan the bucket for what is left of it."""
        return await self._admin.run("index.shred", {"index": index})

    # --- keys and workers --------------------------------------------------------------------

    async def rotate_key(
        self,
        index: str,
        level: Literal["kms", "kek", "dek"],
        *,
        new_index_key: bytes | None = None,
    ) -> dict[str, Any]:
        """Change a key of an index: its wrapping by the KMS, its KEK, or its data key.

        The data key is changed in the background: `key_status` tells how far it is.

        Args:
            index: its name.
            level: which key.
            new_index_key: for `kek` of an index whose callers keep it: the next one, 32 bytes. From
                then on a client of this index needs it as `index_key`; user keys go on. Should no
                answer come, one of the two keys is the right one.
        """
        args: dict[str, Any] = {"index": index, "level": level}
        if new_index_key is not None:
            args["new_index_key"] = encode_base64(new_index_key)
        return await self._admin.run("key.rotate", args)

    async def key_status(self, index: str) -> dict[str, Any]:
        """Return generations, epoch and wrapping of an index's keys, and a change that goes on."""
        return await self._admin.run("key.status", {"index": index})

    async def revoke(self, principal: str, *, indexes: Sequence[str] = ()) -> dict[str, Any]:
        """Revoke `worker/<id>` or `user/<id>`.

        Args:
            principal: who.
            indexes: what a worker served, as globs; their data keys are changed (default: all).

        Returns:
            `rotated`: what became of each index's data key; `unmatched`: globs of no index at all;
            `policy_epoch`, `revoked_ms`. The principal is revoked, whatever these say.
        """
        args = {"principal": principal, "indexes": list(indexes)}
        return await self._admin.run("key.revoke", args)

    async def invite_worker(
        self, worker_id: str, role: Role, indexes: Sequence[str], *, ttl_s: int = 3600
    ) -> str:
        """Return an invitation with which one worker may enrol, once, within `ttl_s` seconds."""
        args = {
            "worker_id": worker_id,
            "role": role,
            "indexes": list(indexes),
            "ttl_s": ttl_s,
        }
        return str((await self._admin.run("worker.invite", args))["invitation"])

    async def enroll_worker(
        self, terms: Terms, key: SigningKey, *, invitation: str | None = None
    ) -> WorkerCertificate:
        """Have a worker's key certified.

        Args:
            terms: what for.
            key: the worker's own, which stays here.
            invitation: for these terms; without it the client must be an administrator's.

        Raises:
            Reject: UNAUTHENTICATED, the answer is not what was asked for; and as above.
        """
        proof = {
            "sign_pub": encode_base64(key.public.raw),
            "signature": encode_base64(sign_terms(terms, key)),
        }
        if invitation is not None:
            done = await self._admin.run("worker.join", {"invitation": invitation, **proof})
        else:
            args = {
                "worker_id": terms.worker_id,
                "role": terms.role,
                "indexes": list(terms.indexes),
            }
            done = await self._admin.run("worker.enroll", {**args, **proof})
        encoded = decode_base64(done["certificate"], "certificate")
        issuer = self._administrator_directory().key_service.sign_pub
        certificate = verify_certificate(encoded, issuer)
        got = Terms(certificate.worker_id, certificate.role, certificate.indexes)
        if got != terms or certificate.sign_pub != key.public.raw:
            raise Reject(ErrorCode.UNAUTHENTICATED, "the certificate is not what was asked for")
        return certificate

    # --- users and groups --------------------------------------------------------------------

    async def create_user(self, scopes: Sequence[Scope | str]) -> dict[str, Any]:
        """Create a user; return `user_id`, `password` (shown this once), `default_group`."""
        return await self._admin.run("user.create", {"scopes": [str(one) for one in scopes]})

    async def log_in(self, user_id: str, password: str) -> dict[str, Any]:
        """Return an identity `token` and `expires_ms`. The client needs no credential for it."""
        return await self._admin.run("user.login", {"user_id": user_id, "password": password})

    async def change_password(self, user_id: str, password: str) -> str:
        """Exchange a password for a new one, which is returned; all tokens of the user end."""
        args = {"user_id": user_id, "password": password}
        changed = await self._admin.run("user.change_password", args)
        return str(changed["password"])

    async def delete_user(self, user_id: str) -> None:
        """Delete a user; its tokens end."""
        await self._admin.run("user.delete", {"user_id": user_id})

    async def create_group(self, scopes: Sequence[Scope | str] = ()) -> str:
        """Create a group, whose first member is the caller; return its id.

        Args:
            scopes: what its members may do with documents of the group, besides their own scopes.
        """
        made = await self._admin.run("group.create", {"scopes": [str(one) for one in scopes]})
        return str(made["group_id"])

    async def add_members(self, group_id: str, user_ids: Sequence[str]) -> None:
        """Make users members of a group that the caller is a member of."""
        args = {"group_id": group_id, "user_ids": list(user_ids)}
        await self._admin.run("group.add_members", args)

    async def remove_members(self, group_id: str, user_ids: Sequence[str]) -> None:
        """End memberships of a group that the caller is a member of."""
        args = {"group_id": group_id, "user_ids": list(user_ids)}
        await self._admin.run("group.remove_members", args)

    # --- access lists ------------------------------------------------------------------------

    async def get_access(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
    ) -> dict[str, Any]:
        """Return the access list of a document: `groups`, `access_version`."""
        return await self._admin.run("access.get", {"index": index, "id": id})

    async def add_access(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        groups: Sequence[str],
    ) -> dict[str, Any]:
        """Add groups to the access list of a document; return it as `get_access`.

        From then on they may open its content; that they find it, once `position` is applied.
        """
        args = {"index": index, "id": id, "groups": list(groups)}
        return await self._admin.run("access.add", args)

    async def remove_access(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        groups: Sequence[str],
    ) -> dict[str, Any]:
        """Take groups from the access list of a document; return it as `get_access`.

        From then on they cannot open its content; they find it until `position` is applied.
        """
        args = {"index": index, "id": id, "groups": list(groups)}
        return await self._admin.run("access.remove", args)

    # --- tokens and user keys ----------------------------------------------------------------

    async def create_token(self, data: str | bytes, ttl_s: int) -> dict[str, Any]:
        """Seal data into an application `token` that can be opened for `ttl_s` seconds."""
        given = data if isinstance(data, str) else {"base64": encode_base64(data)}
        return await self._admin.run("token.create", {"data": given, "ttl_s": ttl_s})

    async def open_token(self, token: str) -> str | bytes:
        """Return the data of an application token, as it was given."""
        opened = (await self._admin.run("token.open", {"token": token}))["data"]
        return opened if isinstance(opened, str) else convert(Binary, opened).decode()

    async def create_user_key(self, index: str, user_id: str, permissions: Sequence[str]) -> bytes:
        """Make a user's own key of an index, 32 bytes, which is kept nowhere else.

        Args:
            index: name of the index; the caller must be of the group that created it.
            user_id: whom it is for; any name.
            permissions: `read`, `write`, or both.
        """
        args = {"index": index, "user_id": user_id, "permissions": list(permissions)}
        made = await self._admin.run("user_key.create", args)
        return decode_base64(made["user_key"], "user_key")

    async def list_user_keys(self, index: str) -> list[dict[str, Any]]:
        """Return who has a key of an index: `user_id`, `permissions`, `created_ms`."""
        found = await self._admin.run("user_key.list", {"index": index})
        keys: list[dict[str, Any]] = found.get("user_keys", [])
        return keys

    async def delete_user_key(self, index: str, user_id: str) -> None:
        """End a user's key of an index."""
        await self._admin.run("user_key.delete", {"index": index, "user_id": user_id})
