"""The realm's administrator: who is there before anybody else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Administrator:
    """The administrator's record: id and default group, both UUIDs.

    The members of that group administer users and groups.
    """

    id: str
    default_group: str
