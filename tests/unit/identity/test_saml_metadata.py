"""The metadata file of a SAML identity provider: which keys count, and when it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from saml_kit import ISSUER, metadata, moment, signer

from workers.errors import Fatal
from workers.identity import saml_metadata
from workers.identity.refusal import Unavailable
from workers.identity.saml_metadata import MetadataFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.xml"
    path.write_text(metadata(signer("idp")))
    return path


def test_keys_that_sign(file):
    assert MetadataFile(file, ISSUER).signers().certificates == (signer("idp").pem,)
    both = metadata(signer("idp"), signer("ec"), signer("short"), signer("idp"))
    file.write_text(both)
    found = MetadataFile(file, ISSUER).signers().certificates
    assert found == (signer("idp").pem, signer("ec").pem)
    # Of several providers in one file, the one that is named.
    others = metadata(signer("other"), issuer="https://other.example.org")
    several = '<EntitiesDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata">{}{}</{}>'
    file.write_text(several.format(others, metadata(signer("ec")), "EntitiesDescriptor"))
    assert MetadataFile(file, ISSUER).signers().certificates == (signer("ec").pem,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<x/>",
        "no XML",
        metadata(signer("idp"), issuer="https://other.example.org"),
        metadata(signer("idp"), use="encryption"),
        metadata(signer("short")),
        metadata(),
        metadata(signer("idp")).replace("MII", "!!!"),
        metadata(signer("idp")).replace("MII", "AAA"),
        "<!DOCTYPE x>" + metadata(signer("idp")),
        metadata(signer("idp")) + " " * saml_metadata.MAX_BYTES,
        metadata(signer("idp"), more='validUntil="tomorrow"'),
        metadata(signer("idp")).replace("IDPSSODescriptor", "SPSSODescriptor"),
    ],
)
def test_files_that_are_no_metadata_of_the_issuer(file, text):
    file.write_text(text)
    with pytest.raises(Fatal, match="saml_metadata"):
        MetadataFile(file, ISSUER)


def test_a_new_file_is_read_and_a_broken_one_is_not_believed(file, tmp_path):
    now = [1000.0]
    known = MetadataFile(file, ISSUER, monotonic=lambda: now[0])
    first = known.signers()
    assert known.signers() is first
    # The same content anew changes nothing: what was verified stays so.
    new = tmp_path / "new"
    new.write_text(metadata(signer("idp")) + "\n")
    new.replace(file)
    assert known.signers() is first
    new.write_text(metadata(signer("other")))
    new.replace(file)
    second = known.signers()
    assert second.certificates == (signer("other").pem,)
    for broken in (lambda: file.write_text("<half"), file.unlink):
        broken()
        now[0] += saml_metadata.STALE_S / 4
        assert known.signers() is second
    now[0] += saml_metadata.STALE_S
    with pytest.raises(Unavailable, match="the identity provider is unavailable") as away:
        known.signers()
    assert "cannot be used" in away.value.why
    file.write_text(metadata(signer("ec")))
    assert known.signers().certificates == (signer("ec").pem,)


def test_metadata_end(file, tmp_path):
    now = [0.0]
    file.write_text(metadata(signer("idp"), more='validUntil="2030-01-01T00:00:00Z"'))
    known = MetadataFile(file, ISSUER, clock=lambda: now[0])
    assert known.signers().ends_s == 1893456000
    now[0] = 1893456000
    with pytest.raises(Unavailable, match="the identity provider is unavailable") as away:
        known.signers()
    assert "validUntil" in away.value.why
    # Of the same length: another file, or one moment of writing would look like the other.
    new = tmp_path / "new"
    new.write_text(metadata(signer("idp"), more=f'validUntil="{moment(10**9)}"'))
    new.replace(file)
    assert known.signers()
