"""What a SAML assertion says, and whether it says that to us.

    Version, Issuer          2.0; the configured identity provider
    Conditions               audiences: every restriction names us, and there is one; nothing that
                             we do not know; not for one use alone, since a token is shown often
    SubjectConfirmation      one of the method bearer, for our recipient, with an end
    AuthnStatement           there is one: who signed in, not what somebody was asked about them
    begins                   the latest of IssueInstant and every NotBefore, `SKEW_S` earlier
    ends                     the earliest NotOnOrAfter of conditions and confirmation, and
                             SessionNotOnOrAfter; no leeway
    subject                  NameID of the format persistent, qualified by nobody but the provider
                             and us; or the one value of the configured attribute
    roles, groups            values of the configured attributes, by Name; each is one role or group

Nothing here is signed or not: that is `saml_signature.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from xml.etree.ElementTree import Element

from schemas.errors import ErrorCode
from workers.identity.claims import MAX_TEXT
from workers.identity.refusal import Refused, Why
from workers.identity.saml_document import ASSERTION, refused

SKEW_S: Final = 60
BEARER: Final = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
PERSISTENT: Final = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"
_CONDITIONS: Final = frozenset(
    ASSERTION + name for name in ("AudienceRestriction", "ProxyRestriction")
)
# SAML writes all times in UTC.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Expected:
    """Whose assertions count, and which attributes are read.

    Attributes:
        issuer: entity id of the identity provider.
        audience: our entity id.
        recipient: URL that assertions are made to be posted to.
        subject_attribute: attribute that says who; None: the NameID.
        roles_attribute, groups_attribute: names of attributes.
    """

    issuer: str
    audience: str
    recipient: str
    subject_attribute: str | None = None
    roles_attribute: str = "roles"
    groups_attribute: str = "groups"


@dataclass(frozen=True, slots=True)
class Claims:
    """What an assertion says. `begins_s`, `ends_s`: seconds since 1970."""

    subject: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    begins_s: float
    ends_s: float

    def check_time(self, now_s: float) -> None:
        """Refuse it before it begins and from its end on. Raises Reject."""
        if now_s >= self.ends_s:
            raise Refused(
                Why.EXPIRED,
                "the SAML assertion has expired: sign in again",
                ErrorCode.EXPIRED,
            )
        if self.begins_s > now_s + SKEW_S:
            raise refused(Why.FUTURE, "is from the future: set the clock")


def read_claims(assertion: Element, expected: Expected) -> Claims:
    """Return what an assertion says to us; the time is not looked at.

    Raises:
        Reject: UNAUTHENTICATED, it is of another issuer, for somebody else, or lacks something.
    """
    if assertion.get("Version") != "2.0" or not assertion.get("ID"):
        raise refused(Why.TYPE, "is of another version")
    if _text(_one(assertion, "Issuer")) != expected.issuer:
        raise refused(Why.ISSUER, "is of another issuer")
    conditions = _one(assertion, "Conditions")
    subject = _one(assertion, "Subject")
    statements = assertion.findall(f"{ASSERTION}AuthnStatement")
    if not statements:
        raise refused(Why.TYPE, "does not say that somebody signed in")
    _check_conditions(conditions, expected.audience)
    confirmation = _confirmation(subject, expected.recipient)
    begins = _times("NotBefore", conditions, confirmation)
    ends = _times("NotOnOrAfter", conditions, confirmation)
    return Claims(
        subject=_subject(assertion, subject, expected),
        roles=_values(assertion, expected.roles_attribute),
        groups=_values(assertion, expected.groups_attribute),
        begins_s=max([*_times("IssueInstant", assertion), *begins]),
        ends_s=min([*ends, *_times("SessionNotOnOrAfter", *statements)]),
    )


def _check_conditions(conditions: Element, audience: str) -> None:
    restrictions = conditions.findall(f"{ASSERTION}AudienceRestriction")
    for restriction in restrictions:
        if audience not in map(_text, restriction.findall(f"{ASSERTION}Audience")):
            raise refused(Why.AUDIENCE, "is not for this audience")
    if not restrictions:
        raise refused(Why.AUDIENCE, "is for no audience")
    for condition in conditions:
        if condition.tag == f"{ASSERTION}OneTimeUse":
            raise refused(Why.CONDITION, "is for one use only")
        if condition.tag not in _CONDITIONS:
            raise refused(Why.CONDITION, "has a condition that is not known here")


def _confirmation(subject: Element, recipient: str) -> Element:
    for confirmation in subject.findall(f"{ASSERTION}SubjectConfirmation"):
        data = confirmation.find(f"{ASSERTION}SubjectConfirmationData")
        if (
            data is not None
            and confirmation.get("Method") == BEARER
            and data.get("Recipient") == recipient
            and data.get("NotOnOrAfter")
        ):
            return data
    raise refused(Why.RECIPIENT, "is not for a bearer at this recipient")


def _subject(assertion: Element, subject: Element, expected: Expected) -> str:
    if expected.subject_attribute is not None:
        values = _values(assertion, expected.subject_attribute)
        if len(values) != 1:
            raise refused(
                Why.SUBJECT, "has not exactly one value of the attribute that names the subject"
            )
        return values[0]
    name = _one(subject, "NameID")
    if name.get("Format") != PERSISTENT:
        raise refused(Why.SUBJECT, "has no persistent NameID: set saml_subject_attribute")
    if (
        name.get("NameQualifier", expected.issuer) != expected.issuer
        or name.get("SPNameQualifier", expected.audience) != expected.audience
    ):
        raise refused(Why.SUBJECT, "has a NameID of another provider")
    text = _value(name)
    if text is None:
        raise refused(Why.SUBJECT, "names nobody")
    return text


def _values(assertion: Element, name: str) -> tuple[str, ...]:
    """Return the values of an attribute that are texts; others count for nothing."""
    values = (
        _value(value)
        for attribute in assertion.iterfind(f"{ASSERTION}AttributeStatement/{ASSERTION}Attribute")
        if attribute.get("Name") == name
        for value in attribute.findall(f"{ASSERTION}AttributeValue")
    )
    return tuple(value for value in values if value is not None)


def _value(element: Element) -> str | None:
    """Return a text of 1 to `MAX_TEXT` characters, exactly as it stands there; or None."""
    text = element.text or ""
    if len(element) or not 1 <= len(text) <= MAX_TEXT or text != text.strip():
        return None
    return text


def _times(name: str, *elements: Element) -> list[float]:
    """Return the moments that stand in an attribute of the elements, seconds since 1970."""
    texts = [element.get(name) for element in elements]
    try:
        return [parse_time(text) for text in texts if text is not None]
    except ValueError:
        raise refused(Why.MALFORMED, "has a malformed time") from None


def parse_time(text: str) -> float:
    """Return a moment as SAML writes it, seconds since 1970. Raises ValueError."""
    if not _TIME.fullmatch(text):
        raise ValueError("a time is written as 2030-01-31T23:59:59Z")
    return datetime.fromisoformat(text).timestamp()


def _one(parent: Element, name: str) -> Element:
    found = parent.findall(ASSERTION + name)
    if len(found) != 1:
        raise refused(Why.MALFORMED, f"has not exactly one {name}")
    return found[0]


def _text(element: Element) -> str:
    return "" if len(element) else (element.text or "").strip()
