"""A SAML assertion as it comes in a token, read so that no two readers find different ones in it.

A token is base64 of a `Response`, as an identity provider posts it, or of an `Assertion` alone.
Nothing of the response is believed, so nothing of it is read. Before any signature is looked at,
the document must have one meaning:

- UTF-8, no document type (so no entities), no comments, no processing instructions, not deep;
- one assertion, at the top or directly in a response that is at the top, and not encrypted;
- no id twice, whatever the attribute is called;
- one signature in the assertion, directly in it, with one reference, to the assertion's id, by
  algorithms of `SIGNATURES` and `DIGESTS`, and no objects.

So the element that the signature is over is the element that is read: what wraps, moves or copies a
signed assertion leaves two of something.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from workers.identity.refusal import Refused, Why

ASSERTION: Final = "{urn:oasis:names:tc:SAML:2.0:assertion}"
PROTOCOL: Final = "{urn:oasis:names:tc:SAML:2.0:protocol}"
DSIG: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_XML: Final = "{http://www.w3.org/XML/1998/namespace}"
_MORE: Final = "http://www.w3.org/2001/04/xmldsig-more#"
_ENC: Final = "http://www.w3.org/2001/04/xmlenc#"

SIGNATURES: Final = frozenset(
    f"{_MORE}{kind}-sha{bits}" for kind in ("rsa", "ecdsa") for bits in (256, 384, 512)
)
DIGESTS: Final = frozenset({f"{_ENC}sha256", f"{_MORE}sha384", f"{_ENC}sha512"})
MAX_DEPTH: Final = 32
_ENCRYPTED: Final = frozenset(
    ASSERTION + name for name in ("EncryptedAssertion", "EncryptedID", "EncryptedAttribute")
)


@dataclass(frozen=True, slots=True)
class Document:
    """A document with one assertion, whose signature nobody has verified yet.

    Attributes:
        text: the document, without its XML declaration.
        assertion: the element.
        in_response: whether it stands in a response.
    """

    text: str
    assertion: Element
    in_response: bool

    def __repr__(self) -> str:
        return "Document()"


class _Strict(TreeBuilder):
    """Builds the tree of a document without comments, instructions and deep nesting."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise refused(Why.MALFORMED, "is nested too deeply")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Any:
        self._depth -= 1
        return super().end(tag)

    def comment(self, text: str | None, /) -> Element:
        raise refused(Why.MALFORMED, "has comments")

    def pi(self, target: Any, text: str | None = None, /) -> Any:
        raise refused(Why.MALFORMED, "has processing instructions")


def read_document(token: str) -> Document:
    """Read a token. Some milliseconds.

    Raises:
        Reject: UNAUTHENTICATED, it is not of the form above.
    """
    text = _text(token)
    root = _parse(text)
    if any(element.tag in _ENCRYPTED for element in root.iter()):
        raise refused(Why.ENCRYPTED, "is encrypted: have the identity provider sign it only")
    found = list(root.iter(f"{ASSERTION}Assertion"))
    if len(found) != 1:
        raise refused(Why.MALFORMED, "has not exactly one assertion")
    [assertion] = found
    in_response = assertion is not root
    if in_response and (root.tag != f"{PROTOCOL}Response" or assertion not in list(root)):
        raise refused(Why.TYPE, "is no SAML response")
    _check_ids(root)
    _check_signature(assertion)
    return Document(text, assertion, in_response)


def refused(why: Why, text: str) -> Refused:
    """Return the refusal of an assertion."""
    return Refused(why, f"the SAML assertion {text}")


def _text(token: str) -> str:
    try:
        # Providers may break lines.
        raw = binascii.a2b_base64("".join(token.split()), strict_mode=True)
        text = raw.decode("utf-8-sig")
    except ValueError:
        raise refused(Why.MALFORMED, "is no base64 of XML in UTF-8") from None
    # It could name another encoding to one of the readers.
    if text.startswith("<?xml") and text[5:6].isspace():
        text = text.partition("?>")[2].lstrip()
    return text


def _parse(text: str) -> Element:
    parser = DefusedXMLParser(target=_Strict(), forbid_dtd=True)
    try:
        parser.feed(text)
        root = parser.close()
    except (ParseError, DefusedXmlException, ValueError):
        # Not chained: the cause may hold the document.
        raise refused(Why.MALFORMED, "is malformed XML, or has a document type") from None
    if not isinstance(root, Element):
        raise refused(Why.MALFORMED, "is malformed XML")
    return root


def _check_ids(root: Element) -> None:
    seen: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2].lower() != "id":
                continue
            if value in seen or name.startswith(_XML):
                raise refused(Why.MALFORMED, "has an id twice")
            seen.add(value)


def _check_signature(assertion: Element) -> None:
    signatures = list(assertion.iter(f"{DSIG}Signature"))
    if not signatures:
        raise refused(Why.UNSIGNED, "is not signed: a signature of the response does not count")
    if len(signatures) != 1 or signatures[0] not in list(assertion):
        raise refused(Why.MALFORMED, "has not exactly one signature")
    signature = signatures[0]
    if next(signature.iter(f"{DSIG}Object"), None) is not None:
        raise refused(Why.MALFORMED, "has a signature with objects")
    if _only(signature, "Reference").get("URI") != f"#{assertion.get('ID', '')}":
        raise refused(Why.MALFORMED, "has a signature over something else")
    method = _only(signature, "SignatureMethod").get("Algorithm")
    digest = _only(signature, "DigestMethod").get("Algorithm")
    if method not in SIGNATURES or digest not in DIGESTS:
        raise refused(Why.ALGORITHM, "is not signed as is accepted here")


def _only(signature: Element, name: str) -> Element:
    found = list(signature.iter(DSIG + name))
    if len(found) != 1:
        raise refused(Why.MALFORMED, "has a malformed signature")
    return found[0]
