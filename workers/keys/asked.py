"""One admin-request on its way: who asks, for what, and what the audit has of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from schemas.admin import AdminRequest
from schemas.errors import ErrorCode
from schemas.message import Part
from workers.errors import Reject, Retry
from workers.kafka.broker import Record
from workers.keys.audit import Audit
from workers.keys.catalog import IndexRecord
from workers.keys.once import Once
from workers.keys.principal import Principal

Result = dict[str, Any]


class Unfinished(Retry):
    """Raised when a change was begun and could not be ended: the same record goes on with it."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request that was opened.

    Attributes:
        request: as sent.
        record: where it stands.
        arguments: checked, of the type that its op names.
        found: record and ETag of the index it names, in any state.
        caller: who asks; None for operations whose arguments authenticate.
        claimed: who they say they are, for the audit, where there is no caller.
    """

    request: AdminRequest
    record: Record
    arguments: Part
    found: tuple[IndexRecord, str] | None
    audit: Audit
    once: Once
    expires_s: float
    caller: Principal | None = None
    claimed: str | None = None
    granted: bool = False

    @property
    def principal(self) -> Principal:
        """Who asks. Raises Reject: UNAUTHENTICATED."""
        if self.caller is None:
            raise Reject(ErrorCode.UNAUTHENTICATED, "no credential", field="auth")
        return self.caller

    async def begin(self) -> bytes:
        """Note that a change is begun, once all checks have passed; return its seed.

        The seed is 32 random bytes: secret, and the same if this very record is delivered again,
        so what a change draws from it is drawn only once.

        Raises:
            Reject: CONFLICT, a copy of a request that was seen.
            Retry: STORAGE_UNAVAILABLE; KEY_UNAVAILABLE, no audit.
        """
        name = UUID(self.request.request_id).bytes
        seed = await self.once.admit(name, self.record, self.expires_s)
        await self.note("none")
        return seed

    async def grant(self) -> None:
        """Note that it was done; before it is told. Raises Retry."""
        if not self.granted:
            await self.note("grant")
            self.granted = True

    async def note(
        self, decision: Literal["grant", "deny", "none"], why: ErrorCode | None = None
    ) -> None:
        """Write the audit record of a step. Raises Retry."""
        index = self.request.args.get("index")
        await self.audit.write(
            self.request.op.value,
            decision=decision,
            why=why,
            request_id=self.request.request_id,
            caller=self.caller.id if self.caller else self.claimed,
            index=index if isinstance(index, str) else None,
        )


Operation = Callable[[Asked], Awaitable[Result]]


@contextmanager
def begun() -> Iterator[None]:
    """Let a Retry reach the runtime, which gives the same record again."""
    try:
        yield
    except Retry as error:
        raise Unfinished(error.code, error.message) from error
