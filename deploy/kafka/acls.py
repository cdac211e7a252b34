"""Print the `kafka-acls` commands that give every role of acls.json its rights, and no others.

    python acls.py --bootstrap-server HOST:PORT --command-config admin.properties > acls.sh
    sh acls.sh

Needs nothing but Python. The commands only add; running them again changes nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("acls.json")


def topics(table: Mapping[str, Any]) -> list[str]:
    """Return every topic that some role reads or writes."""
    parts = ("read", "write", "write_prefixed")
    return sorted(
        {name for role in table.values() for part in parts for name in role.get(part, ())}
    )


def rights(role: Mapping[str, Any], every: Sequence[str], prefix: str) -> Iterator[list[str]]:
    """Yield the options of one `kafka-acls --add` after another.

    Args:
        role: its row of the table.
        every: all topics.
        prefix: the setting `topic_prefix`; groups have it too.
    """

    def named(option: str, names: Sequence[str]) -> list[str]:
        return [part for name in names for part in (option, prefix + name)]

    reads = named("--topic", role.get("read", ())) + named("--group", role.get("groups", ()))
    if reads:
        yield ["--operation", "Read", *reads]
    if writes := named("--topic", role.get("write", ())):
        yield ["--operation", "Write", *writes]
    if prefixed := named("--topic", role.get("write_prefixed", ())):
        yield ["--operation", "Write", "--resource-pattern-type", "prefixed", *prefixed]
    if role.get("create"):
        yield ["--operation", "Create", "--operation", "Describe", *named("--topic", every)]
    if described := named("--group", role.get("groups_described", ())):
        yield ["--operation", "Describe", *described]


def commands(
    table: Mapping[str, Any],
    common: Sequence[str],
    *,
    users: Mapping[str, Sequence[str]],
    prefix: str,
) -> Iterator[list[str]]:
    """Yield the argument lists of `kafka-acls`.

    Args:
        table: role to rights, as in acls.json.
        common: options of every command: which broker, as whom.
        users: role to its users; a role that is absent has one, `sealstream-ROLE`.
        prefix: the setting `topic_prefix`.
    """
    every = topics(table)
    for name, role in table.items():
        principals = [
            part
            for user in users.get(name, [f"sealstream-{name}"])
            for part in ("--allow-principal", f"User:{user}")
        ]
        for right in rights(role, every, prefix):
            yield [*common, "--add", *principals, *right]


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bootstrap-server", required=True, metavar="HOST:PORT")
    parser.add_argument("--command-config", metavar="FILE", help="how the administrator connects")
    parser.add_argument("--topic-prefix", default="", help="the setting topic_prefix")
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="a user of a role, instead of sealstream-ROLE; may be repeated, also for one role",
    )
    parser.add_argument("--program", default="kafka-acls.sh", help="(default: kafka-acls.sh)")
    options = parser.parse_args()
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    users: dict[str, list[str]] = {}
    for given in options.user:
        role, separator, user = given.partition("=")
        if role not in table or not separator or not user:
            parser.error(f"--user {given}: write ROLE=NAME; roles: {', '.join(table)}")
        users.setdefault(role, []).append(user)
    common = ["--bootstrap-server", options.bootstrap_server]
    if options.command_config:
        common += ["--command-config", options.command_config]
    for arguments in commands(table, common, users=users, prefix=options.topic_prefix):
        sys.stdout.write(f"{options.program} {shlex.join(arguments)}\n")


if __name__ == "__main__":
    main()
