"""What tokens of other identity providers say, as identities of this realm.

Where tokens come from is a source: `<issuer>` of OpenID Connect, `saml:<issuer>` of SAML.

    identity id     "<source>#<subject>"
    default group   UUIDv5(UUIDv5(URL namespace, source), "user/<subject>")
    group           UUIDv5(UUIDv5(URL namespace, source), "group/<name>")

So anybody can tell the id of a group; ids of groups that the realm makes itself are version 4 and
never meet these, nor do those of two sources. Users and groups are managed where the tokens come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from schemas.auth import Scope
from workers.identity.base import Identity

MAX_GROUPS: Final = 255
MAX_TEXT: Final = 256
"""Characters of a subject, a role or the name of a group."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where tokens come from, and what the roles that they name may do.

    Attributes:
        name: see above.
        roles: scopes of each role.
        administrator_role: role whose bearers administer users; None: nobody of this source.
        administrators: the realm's group of administrators.
    """

    name: str
    roles: Mapping[str, frozenset[Scope]]
    administrator_role: str | None
    administrators: str

    def identity(self, subject: str, roles: Iterable[str], groups: Iterable[str]) -> Identity:
        """Return the identity of a subject.

        Args:
            subject: stable and unique in the source; its form was checked.
            roles: those that the table does not name give nothing.
            groups: names; the first `MAX_GROUPS` count.
        """
        held = set(roles)
        scopes = frozenset[Scope]().union(*(self.roles.get(role, ()) for role in held))
        own = str(uuid5(uuid5(NAMESPACE_URL, self.name), f"user/{subject}"))
        ids = dict.fromkeys(group_id(self.name, name) for name in islice(groups, MAX_GROUPS))
        if self.administrator_role is not None and self.administrator_role in held:
            ids[self.administrators] = None
        return Identity(f"{self.name}#{subject}", scopes, (own, *ids), own)


def group_id(source: str, name: str) -> str:
    """Return the id of a group that tokens of a source name."""
    return str(uuid5(uuid5(NAMESPACE_URL, source), f"group/{name}"))


def parse_roles(text: str) -> dict[str, frozenset[Scope]]:
    """Read the table of roles: `role=Scope+Scope, role=*`.

    Raises:
        ValueError: not of that form, or no such scope.
    """
    known = {scope.value.lower(): scope for scope in Scope}
    roles: dict[str, frozenset[Scope]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, equals, names = part.rpartition("=")
        if not equals or not role.strip():
            raise ValueError("write ROLE=SCOPE+SCOPE, or ROLE=*, comma-separated")
        if names.strip() == "*":
            roles[role.strip()] = frozenset(Scope)
            continue
        wanted = [name.strip().lower() for name in names.split("+")]
        if not known.keys() >= set(wanted):
            raise ValueError(f"scopes are {', '.join(scope.value for scope in Scope)}")
        roles[role.strip()] = frozenset(known[name] for name in wanted)
    return roles
