"""Assertions of a SAML identity provider: which count, and what they say."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import os
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.utils import CryptographyDeprecationWarning
from lxml import etree
from saml_kit import (
    AUDIENCE,
    DS,
    ISSUER,
    PERSISTENT,
    RECIPIENT,
    S,
    Signer,
    assertion,
    attribute,
    encoded,
    metadata,
    moment,
    needs_xmlsec1,
    response,
    signer,
    token,
)
from signxml import CanonicalizationMethod
from structlog.testing import capture_logs

from schemas.auth import Scope
from schemas.errors import ErrorCode
from workers.errors import Fatal, Reject, Retry
from workers.identity import saml
from workers.identity.claims import Source, group_id, parse_roles
from workers.identity.open import open_saml
from workers.identity.providers import Providers
from workers.identity.refusal import Unavailable
from workers.identity.saml import SamlProvider
from workers.identity.saml_claims import Expected
from workers.identity.saml_metadata import MetadataFile
from workers.identity.saml_signature import Xmlsec
from workers.settings import Settings

ADMINISTRATORS = "5a0b7e0e-0000-4000-8000-000000000000"
SOURCE = f"saml:{ISSUER}"


class Counting(Xmlsec):
    """Counts what is verified."""

    verified = 0

    def validate_signature(self, *args: Any, **options: Any) -> bool:
        self.verified += 1
        return super().validate_signature(*args, **options)


@pytest.fixture(scope="module", autouse=True)
def _program():
    needs_xmlsec1()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The program has time to answer, however busy the machine is."""
    monkeypatch.setattr("workers.identity.saml_signature.TIMEOUT_S", 60.0)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made = []

    def make(*signers: str, **options: Any) -> SamlProvider:
        file = tmp_path / "metadata.xml"
        file.write_text(metadata(*map(signer, signers or ("idp",))))
        clocks = {name: options.pop(name) for name in ("clock",) if name in options}
        provider = SamlProvider(
            Expected(ISSUER, AUDIENCE, RECIPIENT, **options),
            Source(SOURCE, parse_roles("reader=Index+Decrypt, boss=*"), "boss", ADMINISTRATORS),
            MetadataFile(file, ISSUER),
            Counting(),
            **clocks,
        )
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


async def refuses(provider: SamlProvider, token: str, match: str = "UNAUTHENTICATED") -> None:
    with pytest.raises(Reject, match=match) as refused:
        await provider.authenticate(token)
    # The causes of foreign errors may hold the document.
    assert refused.value.__cause__ is None
    assert not token or token not in str(refused.value)


async def test_attributes_become_scopes_and_groups(make):
    provider = make()
    who = await provider.authenticate(token())
    assert who.id == f"{SOURCE}#alice"
    assert who.scopes == {Scope.INDEX, Scope.DECRYPT}
    assert who.groups == (
        who.default_group,
        group_id(SOURCE, "STAFF"),
        group_id(SOURCE, "Board of directors"),
    )
    # Users and groups of an OpenID Connect provider of that name are others.
    other = Source(ISSUER, {}, None, "").identity("alice", [], ["STAFF", "Board of directors"])
    assert who.id != other.id
    assert set(who.groups).isdisjoint(other.groups)
    bob = await provider.authenticate(token(subject="bob", roles="", groups=attribute("x", "y")))
    assert (bob.scopes, bob.groups) == (frozenset(), (bob.default_group,))
    assert bob.default_group != who.default_group
    boss = await provider.authenticate(token(roles=attribute("roles", "boss")))
    assert boss.scopes == frozenset(Scope)
    assert ADMINISTRATORS in boss.groups
    # What is no text counts for nothing.
    odd = attribute("roles", "<s:NameID>boss</s:NameID>", "boss ", "", "reader")
    assert (await provider.authenticate(token(roles=odd))).scopes == who.scopes


async def test_forms_that_count(make):
    provider = make("idp", "ec")
    alone = encoded(signer("idp").sign(assertion()))
    lines = token()
    lines = "\n".join(lines[at : at + 76] for at in range(0, len(lines), 76))
    signed = response(signer("idp").sign(assertion()))
    declared = encoded(etree.tostring(signed, xml_declaration=True, encoding="UTF-8"))
    both = encoded(signer("idp").sign(response(signer("idp").sign(assertion()))))
    named = assertion(qualifier=f'NameQualifier="{ISSUER}" SPNameQualifier="{AUDIENCE}"')
    strong = {"signature_algorithm": "rsa-sha512", "digest_algorithm": "sha512"}
    for one in (
        alone,
        lines,
        declared,
        encoded(b"\xef\xbb\xbf" + etree.tostring(signed)),
        both,
        token("ec"),
        encoded(signer("idp").sign(named)),
        encoded(signer("idp").sign(assertion(), **strong)),
        token(confirmed=f'NotOnOrAfter="{moment(300)}" NotBefore="{moment(0)}"'),
        token(window=f'NotBefore="{moment(30)}"'),
        token(conditions='<s:ProxyRestriction Count="0"/>'),
    ):
        assert (await provider.authenticate(one)).id == f"{SOURCE}#alice"


RESTRICTION = "<s:AudienceRestriction><s:Audience>{}</s:Audience></s:AudienceRestriction>"
UNTIL = 'NotOnOrAfter="{}"'


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": "<s:Issuer>https://evil.example.org</s:Issuer>"}, "another issuer"),
        ({"issuer": f"<s:Issuer>{ISSUER}</s:Issuer>" * 2}, "exactly one Issuer"),
        ({"version": "1.1"}, "another version"),
        ({"audience": RESTRICTION.format("https://other.example.org")}, "audience"),
        ({"audience": RESTRICTION.format(AUDIENCE + "/")}, "audience"),
        ({"audience": ""}, "no audience"),
        # All of them must name us.
        ({"conditions": RESTRICTION.format("https://other.example.org")}, "audience"),
        ({"conditions": "<s:OneTimeUse/>"}, "one use"),
        ({"conditions": "<s:Condition/>"}, "not known"),
        ({"when": ""}, "exactly one Conditions"),
        ({"signed_in": ""}, "signed in"),
        ({"recipient": "https://other.example.org/acs"}, "recipient"),
        ({"method": "urn:oasis:names:tc:SAML:2.0:cm:sender-vouches"}, "bearer"),
        ({"confirmed": ""}, "bearer"),
        ({"confirmation": ""}, "bearer"),
        ({"confirmed": lambda: UNTIL.format(moment(-1))}, "EXPIRED"),
        ({"window": lambda: UNTIL.format(moment(-1))}, "EXPIRED"),
        ({"session": lambda: f'SessionNotOnOrAfter="{moment(-1)}"'}, "EXPIRED"),
        ({"window": lambda: f'NotBefore="{moment(120)}"'}, "future"),
        ({"confirmed": lambda: f'{UNTIL.format(moment(300))} NotBefore="{moment(120)}"'}, "future"),
        ({"issued": lambda: moment(120)}, "future"),
        ({"confirmed": 'NotOnOrAfter="2999-01-01T00:00:00"'}, "malformed time"),
        ({"confirmed": 'NotOnOrAfter="2999-01-01T00:00:00+09:00"'}, "malformed time"),
        ({"confirmed": 'NotOnOrAfter="2999-13-01T00:00:00Z"'}, "malformed time"),
        ({"format": "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"}, "persistent"),
        ({"format": "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"}, "persistent"),
        ({"qualifier": 'NameQualifier="https://other.example.org"'}, "another provider"),
        ({"qualifier": 'SPNameQualifier="https://other.example.org"'}, "another provider"),
        ({"name": ""}, "exactly one NameID"),
        ({"subject": ""}, "names nobody"),
        ({"subject": " alice"}, "names nobody"),
        ({"subject": "x" * 257}, "names nobody"),
        ({"roles": "<s:EncryptedAttribute/>"}, "encrypted"),
        ({"name": "<s:EncryptedID/>"}, "encrypted"),
    ],
)
async def test_assertions_that_are_not_for_us(make, changes, why):
    # Times count from now: the tests may have been collected long ago.
    now = {name: value() if callable(value) else value for name, value in changes.items()}
    await refuses(make(), token(**now), why)


async def test_an_attribute_says_who(make):
    provider = make(subject_attribute="uid")
    transient = {"format": "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"}
    who = await provider.authenticate(token(roles=attribute("uid", "u-7"), **transient))
    assert who.id == f"{SOURCE}#u-7"
    for values in ([], ["u-7", "u-8"], ["  "]):
        await refuses(provider, token(roles=attribute("uid", *values)), "exactly one value")


# --- signatures ----------------------------------------------------------------------------------


async def test_only_signed_assertions_count(make):
    provider = make()
    idp, other = signer("idp"), signer("other")
    await refuses(provider, encoded(response(assertion())), "not signed")
    await refuses(provider, encoded(assertion()), "not signed")
    # A response that is signed, around an assertion that is not.
    await refuses(provider, encoded(idp.sign(response(assertion()))), "not signed")
    # Signed by somebody whose certificate is in the document.
    await refuses(provider, encoded(response(other.sign(assertion()))), "by its issuer")
    assert provider._xmlsec.verified == 1
    # A signature over the response, put where the assertion's is.
    signed = idp.sign(response(assertion()))
    inner = signed.find(f"{S}Assertion")
    inner.insert(1, signed.find(f"{DS}Signature"))
    await refuses(provider, encoded(signed), "something else")


async def test_what_is_signed_cannot_be_changed(make):
    provider = make()
    good = etree.tostring(response(signer("idp").sign(assertion())))
    for old, new in (
        (b">alice<", b">admin<"),
        (b">reader<", b">boss<"),
        (b">STAFF<", b">BOARD<"),
        (b"</s:Issuer><s:Subject>", b"</s:Issuer> <s:Subject>"),
    ):
        assert old in good
        await refuses(provider, encoded(good.replace(old, new)), "by its issuer")
    document = etree.fromstring(good)
    value = document.find(f".//{DS}SignatureValue")
    raw = bytearray(base64.b64decode(value.text))
    raw[8] ^= 1
    value.text = encoded(bytes(raw))
    await refuses(provider, encoded(document), "by its issuer")


def pysaml2_signed(signature: str, digest: str, tmp_path: Path) -> str:
    """Sign with pysaml2 and xmlsec1, which sign by old algorithms too."""
    from cryptography.hazmat.primitives import serialization as form
    from saml2 import class_name
    from saml2 import saml as saml_classes
    from saml2.sigver import CryptoBackendXmlSec1, SecurityContext, pre_signature_part

    key = tmp_path / "key.pem"
    key.write_bytes(
        signer("idp").key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
    )
    made = saml_classes.assertion_from_string(etree.tostring(assertion()))
    made.signature = pre_signature_part(made.id, sign_alg=signature, digest_alg=digest)
    context = SecurityContext(CryptoBackendXmlSec1(Xmlsec().xmlsec))
    signed = context.sign_statement(str(made), class_name(made), key_file=str(key), node_id=made.id)
    return encoded(signed.encode())


async def test_algorithms_are_pinned(make, tmp_path):
    provider = make()
    sha1, sha256 = (
        "http://www.w3.org/2000/09/xmldsig#sha1",
        "http://www.w3.org/2001/04/xmlenc#sha256",
    )
    old, new = (
        "http://www.w3.org/2000/09/xmldsig#rsa-sha1",
        "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    )
    assert await provider.authenticate(pysaml2_signed(new, sha256, tmp_path))
    await refuses(provider, pysaml2_signed(old, sha256, tmp_path), "as is accepted")
    await refuses(provider, pysaml2_signed(new, sha1, tmp_path), "as is accepted")
    # The certificate as a shared secret.
    forged = etree.fromstring(etree.tostring(response(signer("idp").sign(assertion()))))
    method = forged.find(f".//{DS}SignatureMethod")
    method.set("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256")
    await refuses(provider, encoded(forged), "as is accepted")
    # Inclusive canonicalization takes in what stands around the assertion.
    inclusive = {"c14n_algorithm": CanonicalizationMethod.CANONICAL_XML_1_0}
    await refuses(provider, encoded(signer("idp").sign(assertion(), **inclusive)), "its issuer")


async def test_keys_that_a_document_brings_do_not_count(make):
    provider = make("ec")
    forged = response(signer("other").sign(assertion()))
    for keys in ("X509Data", "KeyValue"):
        document = copy.deepcopy(forged)
        info = document.find(f".//{DS}KeyInfo")
        if keys == "KeyValue":
            info.clear()
            numbers = signer("other").key.public_key().public_numbers()
            value = etree.SubElement(etree.SubElement(info, f"{DS}KeyValue"), f"{DS}RSAKeyValue")
            for name, number in (("Modulus", numbers.n), ("Exponent", numbers.e)):
                raw = number.to_bytes((number.bit_length() + 7) // 8)
                etree.SubElement(value, DS + name).text = encoded(raw)
        await refuses(provider, encoded(document), "by its issuer")


def _sent(element: Any, old: bytes = b"", new: bytes = b"") -> str:
    return encoded(etree.tostring(element).replace(old, new))


def _by_another(certificate: str) -> Any:
    """Sign as somebody else does who shows a certificate of ours, or none."""
    forger = Signer(signer("other").key)
    forger.pem = signer("idp").pem
    document = response(forger.sign(assertion()))
    if not certificate:
        info = document.find(f".//{DS}KeyInfo")
        info.getparent().remove(info)
    return document


REASONS = {
    "unknown-signer": lambda: token("other"),
    "changed": lambda: _sent(response(signer("idp").sign(assertion())), b">alice<", b">admin<"),
    "signature": lambda: encoded(_by_another("idp")),
    "signature of nobody": lambda: encoded(_by_another("")),
    "malformed": lambda: encoded(
        signer("idp").sign(assertion(), c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_0)
    ),
    "malformed base64": lambda: "alice",
    "unsigned": lambda: encoded(response(assertion())),
    "encrypted": lambda: token(name="<s:EncryptedID/>"),
    "issuer": lambda: token(issuer="<s:Issuer>https://alice.example.org</s:Issuer>"),
    "audience": lambda: token(audience=RESTRICTION.format("https://alice.example.org")),
    "recipient": lambda: token(recipient="https://alice.example.org/acs"),
    "condition": lambda: token(conditions="<s:OneTimeUse/>"),
    "expired": lambda: token(window=UNTIL.format(moment(-1))),
    "future": lambda: token(issued=moment(120)),
    "subject": lambda: token(format="urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"),
    "type": lambda: token(signed_in=""),
}


@pytest.mark.parametrize("reason", REASONS)
async def test_the_log_says_why_and_nothing_of_the_document(make, says_why, reason):
    providers = Providers(SimpleNamespace(), saml=make())
    await says_why(providers, REASONS[reason](), "saml", reason)


async def test_a_wrong_certificate_among_right_ones_hides_no_reason(make):
    # Keys of another kind than the signature's, before and after the right one.
    providers = Providers(SimpleNamespace(), saml=make("ec", "idp", "other"))
    for shown, reason in ((REASONS["changed"](), "changed"), (_by_another("idp"), None)):
        with capture_logs() as lines, contextlib.suppress(Reject):
            await providers.authenticate(shown if reason else encoded(shown))
        # The key counts, not the certificate that is shown with it.
        assert [line["reason"] for line in lines] == ([reason] if reason else [])


# --- documents with two meanings -----------------------------------------------------------------


def wrapped(number: int, *, same_id: bool) -> Any:
    """Return a document in which evil stands besides what is signed: XSW attacks 1 to 8."""
    good = signer("idp").sign(assertion())
    stripped = copy.deepcopy(good)
    stripped.remove(stripped.find(f"{DS}Signature"))
    evil = assertion(subject="admin", roles=attribute("roles", "boss"))
    evil.set("ID", "_a" if same_id else "_evil")
    signature = copy.deepcopy(good.find(f"{DS}Signature"))
    if number == 1:
        signed = signer("idp").sign(response(copy.deepcopy(good)))
        outer = response(evil, name="_evil_response")
        moved = copy.deepcopy(signed.find(f"{DS}Signature"))
        moved.append(signed)
        outer.append(moved)
        return outer
    if number == 2:
        signed = signer("idp").sign(response(copy.deepcopy(good)))
        moved = copy.deepcopy(signed.find(f"{DS}Signature"))
        return response(signed, moved, evil, name="_evil_response")
    if number == 3:
        return response(evil, good)
    if number == 4:
        evil.append(good)
        return response(evil)
    if number == 5:
        evil.insert(1, signature)
        return response(evil, stripped)
    if number == 6:
        signature.append(stripped)
        evil.insert(1, signature)
        return response(evil)
    if number == 7:
        extensions = etree.Element("{urn:oasis:names:tc:SAML:2.0:protocol}Extensions")
        extensions.append(evil)
        document = response(good)
        document.insert(1, extensions)
        return document
    thing = etree.SubElement(signature, f"{DS}Object")
    thing.append(stripped)
    evil.insert(1, signature)
    return response(evil)


@pytest.mark.parametrize("same_id", [False, True])
@pytest.mark.parametrize("number", range(1, 9))
async def test_wrapped_signatures(make, number, same_id):
    await refuses(make(), encoded(wrapped(number, same_id=same_id)))


def _document(**changes: str) -> str:
    return etree.tostring(response(signer("idp").sign(assertion(**changes)))).decode()


MEANINGS = {
    # The signature stays good: comments are not signed. Who reads up to it, reads another name.
    "a comment in the name": (">alice.example.org<", ">alice<!-- -->.example.org<"),
    "a comment before everything": ("<p:Response", "<!-- x --><p:Response"),
    "an instruction": (">alice.", ">alice<?x y?>."),
    "an empty document type": ("<p:Response", "<!DOCTYPE x><p:Response"),
    "an entity": ("<p:Response", '<!DOCTYPE x [<!ENTITY a "alice">]><p:Response'),
    "an external entity": (
        "<p:Response",
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><p:Response',
    ),
    "an external document type": (
        "<p:Response",
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><p:Response',
    ),
    "a bomb": (
        "<p:Response",
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><p:Response',
    ),
    "xml:id": ("<p:Status>", '<p:Status xml:id="x">'),
    "an id twice": ("<p:Status>", '<p:Status Id="_a">'),
    "another root": ("p:Response", "p:ArtifactResponse"),
    "no end": ("</p:Response>", ""),
    "something after it": ("</p:Response>", "</p:Response><x/>"),
    "something before it": ("<p:Response", "x<p:Response"),
}


@pytest.mark.parametrize("name", MEANINGS)
async def test_documents_with_two_meanings(make, name):
    old, new = MEANINGS[name]
    document = _document(subject="alice.example.org")
    assert old in document
    provider = make()
    await refuses(provider, encoded(document.replace(old, new).encode()))
    assert provider._xmlsec.verified == 0


@pytest.mark.parametrize("place", ["Reference", "SignatureMethod", "Object", "Transform"])
async def test_signatures_with_more_than_there_may_be(make, place):
    document = etree.fromstring(_document())
    found = document.find(f".//{DS}{place}")
    if place == "Object":
        etree.SubElement(document.find(f".//{DS}Signature"), f"{DS}Object")
    elif place == "Transform":
        xpath = etree.SubElement(found.getparent(), f"{DS}Transform")
        xpath.set("Algorithm", "http://www.w3.org/TR/1999/REC-xpath-19991116")
    else:
        found.addnext(copy.deepcopy(found))
    await refuses(make(), encoded(document))


async def test_a_reference_to_the_whole_document(make):
    document = etree.fromstring(_document())
    for uri in ("", "#_r", "#xpointer(/)", "#xpointer(id('_a'))"):
        document.find(f".//{DS}Reference").set("URI", uri)
        await refuses(make(), encoded(document), "something else")


async def test_what_is_no_document(make):
    deep = _document().replace("<p:Status>", f"<p:Status>{'<x>' * 40}{'</x>' * 40}")
    utf16 = _document().encode("utf-16")
    for bad in (
        "",
        "slid",
        "AAAA",
        "a.b.c",
        token()[:-8],
        token() + "!",
        encoded(b"null"),
        encoded(b"<?xml"),
        encoded(utf16),
        encoded(b"\0" * 100),
        encoded(b"<a>" * 8000),
        encoded(b"<a " + b"b='' " * 4000 + b"/>"),
        encoded(deep.encode()),
        encoded(b"<p:EncryptedAssertion xmlns:p='urn:oasis:names:tc:SAML:2.0:assertion'/>"),
    ):
        await refuses(make(), bad)


# --- what is remembered --------------------------------------------------------------------------


async def test_one_assertion_is_verified_once_and_still_ends(make):
    now = [time.time()]
    provider = make(clock=lambda: now[0])
    shown = token()
    who = await asyncio.gather(*(provider.authenticate(shown) for _ in range(8)))
    assert all(one == who[0] for one in who)
    assert provider._xmlsec.verified == 1
    # It ends 300 seconds after it was made.
    now[0] = time.time() + 301
    await refuses(provider, shown, "EXPIRED")
    assert provider._xmlsec.verified == 1


async def test_the_cache_is_bounded(make, monkeypatch):
    monkeypatch.setattr(saml, "MAX_CACHED", 2)
    provider = make()
    for name in ("a", "b", "c"):
        await provider.authenticate(token(subject=name))
    assert len(provider._verified) == 2


async def test_a_key_that_is_taken_away_counts_no_more(make, tmp_path):
    provider = make("idp")
    old, new = token("idp"), token("other")
    assert await provider.authenticate(old)
    await refuses(provider, new)
    file = tmp_path / "metadata.xml"
    file.write_text(metadata(signer("idp"), signer("other")))
    assert await provider.authenticate(old)
    assert await provider.authenticate(new)
    file.write_text(metadata(signer("other")))
    assert await provider.authenticate(new)
    await refuses(provider, old, "by its issuer")


async def test_too_many_at_once(make, monkeypatch):
    monkeypatch.setattr(saml, "MAX_WAITING", 1)
    provider = make()
    first, second = await asyncio.gather(
        *(provider.authenticate(token(subject=name)) for name in "ab"), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert isinstance(second, Retry)
    assert second.code is ErrorCode.OVERLOADED
    assert await provider.authenticate(token(subject="b"))


# --- the program ---------------------------------------------------------------------------------


VERSION = 'if [ "$1" = --version ]; then echo "xmlsec1 1.3.5 (openssl)"; exit 0; fi'


def _script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o700)
    return path


async def test_a_program_that_hangs_stops_nothing_else(make, monkeypatch, tmp_path):
    provider = make()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    provider._xmlsec = Xmlsec(_script(tmp_path / "slow", VERSION, f"read line < {gate}", "exit 1"))
    waiting = asyncio.create_task(provider.authenticate(token()))
    # The loop turns meanwhile: the program hangs until the gate is opened, which is done here.
    opened = None
    while opened is None and not waiting.done():
        await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            opened = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    assert opened is not None
    os.close(opened)
    with pytest.raises(Reject, match="by its issuer"):
        await waiting
    # One that never ends is ended.
    provider._xmlsec = Xmlsec(_script(tmp_path / "stuck", VERSION, "exec sleep 60"))
    monkeypatch.setattr("workers.identity.saml_signature.TIMEOUT_S", 0.2)
    with pytest.raises(Retry, match="OVERLOADED"):
        await provider.authenticate(token())


async def test_what_the_program_is_told(make, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALSTREAM_TEST_SECRET", "secret")
    provider = make()
    said = tmp_path / "said"
    lines = (VERSION, f'echo "$@" > {said}', f"/usr/bin/env >> {said}", "exit 1")
    provider._xmlsec = Xmlsec(_script(tmp_path / "program", *lines))
    await refuses(provider, token(), "by its issuer")
    text = said.read_text()
    assert "--enabled-key-data raw-x509-cert" in text
    assert "--enabled-reference-uris same-doc" in text
    assert "--lax-key-search" in text
    assert "SECRET" not in text


async def test_without_a_folder_for_temporary_files(make, tmp_path, monkeypatch):
    provider = make()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="the identity provider is unavailable") as away:
        await provider.authenticate(token())
    assert "temporary" in away.value.why


def test_without_the_program(tmp_path, monkeypatch):
    for bad in (
        tmp_path / "none",
        _script(tmp_path / "odd", "echo hello"),
        _script(tmp_path / "silent", "exit 1"),
    ):
        with pytest.raises(Fatal, match="apt-get install xmlsec1"):
            Xmlsec(bad)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Fatal, match="not on the PATH"):
        Xmlsec()


async def test_nothing_is_logged(make, caplog, capfd):
    provider = make()
    good, bad = token(), token("other")
    caplog.set_level(0)
    await provider.authenticate(good)
    await refuses(provider, bad)
    captured = capfd.readouterr()
    for text in (caplog.text, captured.out, captured.err):
        assert "alice" not in text
        assert "xmlsec command" not in text


# --- an identity provider of somebody else -------------------------------------------------------


async def test_assertions_of_pysaml2(make, tmp_path):
    from cryptography.hazmat.primitives import serialization as form
    from saml2.config import IdPConfig
    from saml2.saml import NameID

    with warnings.catch_warnings():
        # Of a cipher that signing does not need.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        from saml2.server import Server

    (tmp_path / "key.pem").write_bytes(
        signer("idp").key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption()
        )
    )
    (tmp_path / "cert.pem").write_text(signer("idp").pem)
    (tmp_path / "sp.xml").write_text(
        '<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata"'
        f' entityID="{AUDIENCE}"><SPSSODescriptor protocolSupportEnumeration='
        '"urn:oasis:names:tc:SAML:2.0:protocol"><AssertionConsumerService Binding='
        f'"urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST" Location="{RECIPIENT}" index="0"/>'
        "</SPSSODescriptor></EntityDescriptor>"
    )
    config = {
        "entityid": ISSUER,
        "key_file": str(tmp_path / "key.pem"),
        "cert_file": str(tmp_path / "cert.pem"),
        "metadata": {"local": [str(tmp_path / "sp.xml")]},
        "service": {
            "idp": {
                "endpoints": {"single_sign_on_service": []},
                "policy": {
                    "default": {
                        "lifetime": {"minutes": 5},
                        "name_form": "urn:oasis:names:tc:SAML:2.0:attrname-format:uri",
                    },
                },
            }
        },
    }
    idp = Server(config=IdPConfig().load(config))
    options = {
        "identity": {"eduPersonAffiliation": ["reader"], "isMemberOf": ["STAFF"]},
        "in_response_to": "_request",
        "destination": RECIPIENT,
        "sp_entity_id": AUDIENCE,
        "name_id": NameID(format=PERSISTENT, text="alice"),
        "authn": {"class_ref": "urn:oasis:names:tc:SAML:2.0:ac:classes:Password"},
        "sign_alg": "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
        "digest_alg": "http://www.w3.org/2001/04/xmlenc#sha256",
    }
    provider = make(
        roles_attribute="urn:oid:1.3.6.1.4.1.5923.1.1.1.1",
        groups_attribute="urn:oid:1.3.6.1.4.1.5923.1.5.1.1",
    )

    def made(**changes: bool) -> str:
        return encoded(str(idp.create_authn_response(**options, **changes)).encode())

    who = await provider.authenticate(made(sign_assertion=True, sign_response=False))
    assert who.id == f"{SOURCE}#alice"
    assert who.scopes == {Scope.INDEX, Scope.DECRYPT}
    assert group_id(SOURCE, "STAFF") in who.groups
    assert await provider.authenticate(made(sign_assertion=True, sign_response=True)) == who
    await refuses(provider, made(sign_assertion=False, sign_response=True), "not signed")


# --- settings ------------------------------------------------------------------------------------


async def test_settings(tmp_path):
    file = tmp_path / "metadata.xml"
    file.write_text(metadata(signer("idp")))

    def settings(**changes: Any) -> Settings:
        options = {
            "saml_issuer": ISSUER,
            "saml_metadata": file,
            "saml_audience": AUDIENCE,
            "saml_recipient": RECIPIENT,
            **changes,
        }
        return Settings(home=tmp_path, **options)

    provider = open_saml(settings(saml_roles="reader=index"), ADMINISTRATORS)
    who = await provider.authenticate(token())
    assert (who.id, who.scopes) == (f"{SOURCE}#alice", {Scope.INDEX})
    provider.close()
    for changes in (
        {"saml_roles": "a=Everything"},
        {"saml_metadata": tmp_path / "none"},
        {"saml_issuer": "https://other.example.org"},
        {"saml_xmlsec1": tmp_path / "none"},
    ):
        with pytest.raises(Fatal):
            open_saml(settings(**changes), ADMINISTRATORS)
    for missing in ("saml_issuer", "saml_metadata", "saml_audience", "saml_recipient"):
        with pytest.raises(ValueError, match="go together"):
            settings(**{missing: None})


async def test_tokens_go_to_the_provider_that_they_are_of():
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        async def authenticate(self, _token: str) -> Any:
            return self.name

    own, oidc, saml_one = Named("own"), Named("oidc"), Named("saml")
    tokens = ("slid1_x", "a.b.c", "PHNhbWw=")
    for options, names in (
        ({"oidc": oidc, "saml": saml_one}, ["own", "oidc", "saml"]),
        ({"oidc": oidc}, ["own", "oidc", "oidc"]),
        ({"saml": saml_one}, ["own", "saml", "saml"]),
        ({}, ["own", "own", "own"]),
    ):
        assert [await Providers(own, **options).authenticate(one) for one in tokens] == names
