"""What all shards of an index worker share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from workers.chain.fresh import FreshSegments
from workers.index.emit import Emitter
from workers.index.notes import Notes
from workers.index.totals import Total
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.holder import LeaseHolder
from workers.runtime.announced import Announced
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.policy import RetryPolicy
from workers.storage.store import Store

FRESH_BYTES: Final = 64 * 1024 * 1024
"""About how much the process keeps of what it has just written, to merge it."""


@dataclass(frozen=True, slots=True)
class Services:
    """One per process."""

    holder: LeaseHolder
    directory: KeyDirectory
    store: Store
    identity: WorkerIdentity
    emitter: Emitter
    dead_letters: DeadLetters
    retry: RetryPolicy
    blocked: Total
    segments: Total
    health: Health
    announced: Announced
    notes: Notes
    fresh: FreshSegments = field(default_factory=lambda: FreshSegments(FRESH_BYTES))
