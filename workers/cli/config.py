"""`sealstream config`."""

from __future__ import annotations

from collections.abc import Iterator

from cyclopts import App

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, complain, say, say_json, say_table
from workers.errors import Fatal
from workers.settings import Problem, Settings, SettingsError, explain, warnings

app = App(name="config", help="Settings.")


@app.command
def check(*, json: AsJson = False, common: Common = COMMON) -> int:
    """Show every setting, where its value comes from, and what is wrong.

    Identity providers are opened as the key service opens them, but nobody is asked. Secrets are
    never shown. The exit code is 2 if a setting is wrong.
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
    doubts = [*warnings(settings), *_of_providers(settings)]
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


def _of_providers(settings: Settings) -> Iterator[Problem]:
    """Tell what would end a key service that runs here."""
    from workers.cli.connect import quiet_logs
    from workers.identity.open import open_oidc, open_saml

    quiet_logs()
    for name, opened in (("oidc_issuer", open_oidc), ("saml_issuer", open_saml)):
        if getattr(settings, name) is None:
            continue
        try:
            opened(settings, "")
        except Fatal as error:
            message = f"a key service would not start with it here: {error.message}"
            yield Problem(name, settings.source(name), message)


def _tell(word: str, problems: list[Problem]) -> None:
    for problem in problems:
        complain(f"{word}: {problem}")
