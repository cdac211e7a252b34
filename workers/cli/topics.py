"""`sealstream topics`."""

from __future__ import annotations

from cyclopts import App

from workers.cli.common import COMMON, OK, REFUSED, AsJson, Common, complain, say_json, say_table

app = App(name="topics", help="Kafka topics.")


@app.command
async def apply(*, json: AsJson = False, common: Common = COMMON) -> int:
    """Create the topics that are missing; existing ones are never changed.

    The exit code is 1 if index-update exists with another number of partitions: shards are
    assigned to its partitions for good.
    """
    from schemas.topics import INDEX_UPDATE, with_prefix
    from workers.cli.connect import quiet_logs
    from workers.local.topics import report_topics

    settings = common.settings()
    quiet_logs()
    reports = await report_topics(settings)
    if json:
        say_json(reports)
    else:
        rows = [
            (
                r.name,
                r.partitions,
                "created" if r.created else "exists" if r.partitions == r.wanted else "differs",
            )
            for r in reports
        ]
        say_table(("topic", "partitions", "state"), rows)
    update = with_prefix(settings.topic_prefix, INDEX_UPDATE)
    fixed = next(r for r in reports if r.name == update)
    if fixed.partitions != fixed.wanted:
        complain(
            f"{update} has {fixed.partitions} partitions, {fixed.wanted} are planned: shards stay"
            " on the partitions they were given, so their number is not changed"
        )
        return REFUSED
    return OK
