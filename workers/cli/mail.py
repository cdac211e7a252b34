"""Read a mail: what is searched and filtered of it. The mail itself is stored unchanged.

Mails are hostile and often malformed, and the parser of the standard library raises many things
about them: what cannot be read is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import getaddresses, parsedate_to_datetime
from functools import partial
from html.parser import HTMLParser
from typing import Any, TypeVar

T = TypeVar("T")

CONTENT_TYPE = "message/rfc822"
_MAX_ADDRESSES = 200


def read_mail(data: bytes) -> dict[str, Any]:
    """Return the fields of an upsert for one mail.

    Content: the mail, byte for byte. Text: `subject`, `body` (the plain part, else the HTML part
    without its tags). Metadata: `from`, `to` (To and Cc), lower case; `date`, ISO 8601 in UTC.
    """
    message = BytesParser(policy=policy.default).parsebytes(data)
    text = {
        "subject": _try(lambda: str(message["subject"] or "")) or "",
        "body": _try(lambda: _body(message)) or "",
    }
    senders = _addresses(message, "from")
    metadata = {
        "from": senders[0] if senders else None,
        "to": _addresses(message, "to", "cc") or None,
        "date": _try(lambda: _date(message)),
    }
    return {
        "content": _content(data),
        "content_type": CONTENT_TYPE,
        "text": {name: _clean(value) for name, value in text.items() if value.strip()},
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }


def _content(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _body(message: EmailMessage) -> str:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    try:
        text = str(part.get_content())
    except (LookupError, ValueError):
        # An unknown charset or a broken transfer encoding: better some words than none.
        payload = part.get_payload(decode=True)
        text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
    return _without_tags(text) if part.get_content_type() == "text/html" else text


def _addresses(message: EmailMessage, *headers: str) -> list[str]:
    found: dict[str, None] = {}
    for header in headers:
        for _, address in _try(partial(_pairs, message, header)) or []:
            if address:
                found[_clean(address).lower()] = None
    return list(found)[:_MAX_ADDRESSES]


def _pairs(message: EmailMessage, header: str) -> list[tuple[str, str]]:
    return getaddresses([str(value) for value in message.get_all(header, [])])


def _date(message: EmailMessage) -> str | None:
    value = message["date"]
    if not value:
        return None
    moment = parsedate_to_datetime(str(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _try(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except Exception:  # see the module: any kind, from any header
        return None


def _clean(text: str) -> str:
    """Return `text` as valid UTF-8: undecodable bytes come as lone surrogates."""
    return text.encode("utf-8", "replace").decode()


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in ("script", "style")))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def _without_tags(html: str) -> str:
    reader = _Words()
    reader.feed(html)
    reader.close()
    return re.sub(r"[ \t\r\f\v]+", " ", " ".join(reader.words)).strip()
