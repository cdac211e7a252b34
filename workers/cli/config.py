"""`sealstream config`."""

from __future__ import annotations

from cyclopts import App

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, complain, say, say_json, say_table
from workers.settings import Problem, SettingsError, explain, warnings

app = App(name="config", help="Settings.")


@app.command
def check(*, json: AsJson = False, common: Common = COMMON) -> int:
    """Show every setting, where its value comes from, and what is wrong.

    Secrets are never shown. The exit code is 2 if a setting is wrong.
    """
    try:
        settings = common.settings()
    except SettingsError as error:
        if json:
            say_json({"ok": False, "problems": error.problems, "settings": []})
        else:
            _tell("wrong", error.problems)
        return USAGE
    rows = explain(settings)
    doubts = warnings(settings)
    if json:
        say_json({"ok": True, "warnings": doubts, "settings": rows})
        return OK
    say_table(
        ("setting", "value", "from", "meaning"),
        [(row.name, row.value, row.source, row.description) for row in rows],
    )
    _tell("careful", doubts)
    say("the settings are fine" if not doubts else "the settings can be used")
    return OK


def _tell(word: str, problems: list[Problem]) -> None:
    for problem in problems:
        complain(f"{word}: {problem}")
