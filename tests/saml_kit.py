"""A SAML identity provider in a few lines: it signs what it is told to."""

from __future__ import annotations

import base64
import datetime
import os
import shutil
import time
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from lxml import etree
from signxml import CanonicalizationMethod, XMLSigner, methods

ISSUER = "https://id.example.org/saml"
AUDIENCE = "https://search.example.org/sealstream"
RECIPIENT = "https://search.example.org/acs"
PERSISTENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
S = "{urn:oasis:names:tc:SAML:2.0:assertion}"
P = "{urn:oasis:names:tc:SAML:2.0:protocol}"
DS = "{http://www.w3.org/2000/09/xmldsig#}"


def needs_xmlsec1() -> None:
    """Skip where the program is missing; where nothing may be missing, fail."""
    if shutil.which("xmlsec1") is None:
        what = "not on this machine: xmlsec1 (Debian: apt-get install xmlsec1)"
        if os.environ.get("CI"):
            pytest.fail(what, pytrace=False)
        pytest.skip(what)


class Signer:
    """A key with a certificate of its own."""

    def __init__(self, key: Any = None) -> None:
        self.key = key or rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
        # Ended long ago, as those in metadata may be.
        begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def base64(self) -> str:
        return base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()

    def sign(self, element: Any, **changes: Any) -> Any:
        """Return a copy with a signature over the whole element."""
        kind = "rsa" if isinstance(self.key, rsa.RSAPrivateKey) else "ecdsa"
        options = {
            "method": methods.enveloped,
            "signature_algorithm": f"{kind}-sha256",
            "digest_algorithm": "sha256",
            "c14n_algorithm": CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0,
            **changes,
        }
        return XMLSigner(**options).sign(
            element, key=self.key, cert=self.pem, reference_uri=element.get("ID")
        )


@cache
def signer(name: str) -> Signer:
    """Return the signer of a name, made once: `idp`, `ec`, `other`, `short`."""
    if name == "ec":
        return Signer(ec.generate_private_key(ec.SECP256R1()))
    return Signer(rsa.generate_private_key(65537, 1024) if name == "short" else None)


def metadata(*signers: Signer, issuer: str = ISSUER, use: str = "signing", more: str = "") -> str:
    keys = "".join(
        f'<KeyDescriptor use="{use}"><KeyInfo xmlns="http://www.w3.org/2000/09/xmldsig#">'
        f"<X509Data><X509Certificate>{one.base64}</X509Certificate></X509Data></KeyInfo>"
        "</KeyDescriptor>"
        for one in signers
    )
    return (
        '<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata"'
        f' entityID="{issuer}" {more}><IDPSSODescriptor protocolSupportEnumeration='
        f'"urn:oasis:names:tc:SAML:2.0:protocol">{keys}</IDPSSODescriptor></EntityDescriptor>'
    )


def moment(seconds: float) -> str:
    """Write the time that is so many seconds from now."""
    at = datetime.datetime.fromtimestamp(time.time() + seconds, datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def attribute(name: str, *values: str) -> str:
    inner = "".join(f"<s:AttributeValue>{value}</s:AttributeValue>" for value in values)
    return f'<s:Attribute Name="{name}">{inner}</s:Attribute>'


def assertion(**changes: str) -> Any:
    """Return an assertion about alice, unsigned; `changes` replace parts of it."""
    part = {
        "id": "_a",
        "version": "2.0",
        "issued": moment(0),
        "issuer": f"<s:Issuer>{ISSUER}</s:Issuer>",
        "format": PERSISTENT,
        "qualifier": "",
        "subject": "alice",
        "method": BEARER,
        "recipient": RECIPIENT,
        "confirmed": f'NotOnOrAfter="{moment(300)}"',
        "window": f'NotBefore="{moment(-5)}" NotOnOrAfter="{moment(300)}"',
        "audience": f"<s:AudienceRestriction><s:Audience>{AUDIENCE}</s:Audience>"
        "</s:AudienceRestriction>",
        "conditions": "",
        "session": "",
        "roles": attribute("roles", "reader", "unknown"),
        "groups": attribute("groups", "STAFF", "Board of directors", "STAFF"),
        **changes,
    }
    part.setdefault(
        "name",
        '<s:NameID Format="{format}" {qualifier}>{subject}</s:NameID>'.format(**part),
    )
    part.setdefault(
        "confirmation",
        '<s:SubjectConfirmation Method="{method}"><s:SubjectConfirmationData'
        ' Recipient="{recipient}" {confirmed}/></s:SubjectConfirmation>'.format(**part),
    )
    part.setdefault(
        "when", "<s:Conditions {window}>{audience}{conditions}</s:Conditions>".format(**part)
    )
    part.setdefault(
        "signed_in",
        '<s:AuthnStatement AuthnInstant="{issued}" {session}><s:AuthnContext>'
        "<s:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:Password"
        "</s:AuthnContextClassRef></s:AuthnContext></s:AuthnStatement>".format(**part),
    )
    text = (
        '<s:Assertion xmlns:s="urn:oasis:names:tc:SAML:2.0:assertion" ID="{id}"'
        ' Version="{version}" IssueInstant="{issued}">{issuer}'
        "<s:Subject>{name}{confirmation}</s:Subject>{when}{signed_in}"
        "<s:AttributeStatement>{roles}{groups}</s:AttributeStatement></s:Assertion>"
    )
    return etree.fromstring(text.format(**part))


def response(*children: Any, name: str = "_r") -> Any:
    """Return a response with these children."""
    root = etree.fromstring(
        '<p:Response xmlns:p="urn:oasis:names:tc:SAML:2.0:protocol"'
        f' xmlns:s="urn:oasis:names:tc:SAML:2.0:assertion" ID="{name}" Version="2.0"'
        f' IssueInstant="{moment(0)}" Destination="{RECIPIENT}"><s:Issuer>{ISSUER}</s:Issuer>'
        '<p:Status><p:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:Success"/></p:Status>'
        "</p:Response>"
    )
    for child in children:
        root.append(child)
    return root


def encoded(element: Any) -> str:
    data = element if isinstance(element, bytes) else etree.tostring(element)
    return base64.b64encode(data).decode()


def token(by: str = "idp", **changes: str) -> str:
    """Return a response with a signed assertion, as a provider posts it."""
    return encoded(response(signer(by).sign(assertion(**changes))))
