from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from schemas.index import MAX_MESSAGE_BYTES
from workers.settings import (
    Settings,
    SettingsError,
    explain,
    load_settings,
    parse_env_file,
    variables,
    warnings,
)

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def write_stack_env(home: Path, text: str, mode: int = 0o600) -> None:
    home.mkdir()
    path = home / "stack.env"
    path.write_text(text)
    path.chmod(mode)


def test_every_field_is_described_and_has_a_variable() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert variables(name)
        # Only the local stack's own home has no default that works everywhere.
        assert not field.is_required(), name


def test_options_outrank_environment_outranks_stack_env_outranks_toml(home: Path) -> None:
    Path("sealstream.toml").write_text('lease_s = 11\ntopic_prefix = "toml."\ns3_bucket = "toml"\n')
    write_stack_env(home, "SEALSTREAM_TOPIC_PREFIX=stack.\nSEALSTREAM_S3_BUCKET=stack\n")
    environ = {"SEALSTREAM_S3_BUCKET": "env", "SEALSTREAM_LOG_LEVEL": "debug"}

    settings = load_settings(home=home, environ=environ, log_level="error")

    assert (settings.lease_s, settings.topic_prefix) == (11, "toml.".replace("toml", "stack"))
    assert (settings.s3_bucket, settings.log_level) == ("env", "error")
    assert settings.source("lease_s") == str(Path("sealstream.toml").absolute())
    assert settings.source("topic_prefix") == str(home / "stack.env")
    assert settings.source("s3_bucket") == "$SEALSTREAM_S3_BUCKET"
    assert settings.source("log_level") == "option"
    assert settings.source("max_record_bytes") == "default"


def test_home_may_come_from_the_environment(home: Path) -> None:
    write_stack_env(home, "SEALSTREAM_KAFKA_BOOTSTRAP=127.0.0.1:1234\n")
    settings = load_settings(environ={"SEALSTREAM_HOME": str(home)})
    assert settings.kafka_bootstrap == "127.0.0.1:1234"


def test_an_empty_variable_is_unset(home: Path) -> None:
    assert load_settings(home=home, environ={"SEALSTREAM_S3_ENDPOINT": ""}).s3_endpoint is None


def test_toml_may_have_tables(home: Path) -> None:
    Path("other.toml").write_text('[kafka]\nbootstrap = "a:1,b:2"\n[s3]\nbucket = "abc"\n')
    settings = load_settings(home=home, environ={}, config=Path("other.toml"))
    assert (settings.kafka_bootstrap, settings.s3_bucket) == ("a:1,b:2", "abc")


def test_region_has_two_names_and_the_first_counts(home: Path) -> None:
    environ = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-west-2"}
    assert load_settings(home=home, environ=environ).s3_region == "eu-west-1"
    del environ["AWS_REGION"]
    assert load_settings(home=home, environ=environ).s3_region == "us-west-2"


@pytest.mark.parametrize(
    ("environ", "field"),
    [
        ({"SEALSTREAM_LEASE_S": SECRET}, "lease_s"),
        ({"SEALSTREAM_KAFKA_BOOTSTRAP": "nowhere"}, "kafka_bootstrap"),
        ({"SEALSTREAM_KAFKA_BOOTSTRAP": "host:99999"}, "kafka_bootstrap"),
        ({"SEALSTREAM_KMS": "cloud"}, "kms"),
        ({"AWS_ACCESS_KEY_ID": "only-half"}, "settings"),
        ({"SEALSTREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "settings"),
        ({"SEALSTREAM_KEY_SERVICE_FINGERPRINT": SECRET}, "key_service_fingerprint"),
    ],
)
def test_wrong_values_are_told_without_showing_them(
    home: Path, environ: dict[str, str], field: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(home=home, environ=environ)
    assert [problem.name for problem in caught.value.problems] == [field]
    assert SECRET not in str(caught.value)


def test_all_problems_are_told_at_once(home: Path) -> None:
    Path("sealstream.toml").write_text("lease = 3\nmax_content_bytes = 0\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(home=home, environ={"SEALSTREAM_LEASE_S": "0"})
    assert {p.name for p in caught.value.problems} == {"lease", "lease_s", "max_content_bytes"}
    assert "did you mean lease_s?" in str(caught.value)


@pytest.mark.parametrize("name", ["max_record_bytes", "max_content_bytes"])
def test_nothing_is_larger_than_a_message(home: Path, name: str) -> None:
    settings = load_settings(home=home, environ={}, **{name: MAX_MESSAGE_BYTES})
    assert getattr(settings, name) == 1_048_576
    environ = {f"SEALSTREAM_{name.upper()}": str(MAX_MESSAGE_BYTES + 1)}
    with pytest.raises(SettingsError) as caught:
        load_settings(home=home, environ=environ)
    [problem] = caught.value.problems
    assert (problem.name, problem.source) == (name, f"${'SEALSTREAM_' + name.upper()}")
    for named in ("max_record_bytes", "max_content_bytes", "1048576"):
        assert named in problem.message


@pytest.mark.parametrize(
    ("text", "message"), [(f'token = "{SECRET}', "not TOML"), (None, "cannot be read")]
)
def test_a_broken_toml_file_is_told_by_its_place_only(
    home: Path, text: str | None, message: str
) -> None:
    if text is not None:
        Path("broken.toml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(home=home, environ={"SEALSTREAM_CONFIG": "broken.toml"})
    assert SECRET not in str(caught.value)


def test_secrets_never_show(home: Path) -> None:
    secret_fields = [
        name for name, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)
    ]
    assert {
        "token",
        "s3_secret_access_key",
        "kafka_sasl_password",
        "vault_token",
        "vault_secret_id",
        "kms_aws_secret_access_key",
        "kms_pkcs11_pin",
    } <= set(secret_fields)
    environ = {variables(name)[0]: SECRET for name in secret_fields}
    settings = load_settings(
        home=home,
        environ={
            **environ,
            "AWS_ACCESS_KEY_ID": "id",
            "SEALSTREAM_KMS_AWS_ACCESS_KEY_ID": "id",
            "SEALSTREAM_LOG_LEVEL": "info",
        },
    )
    assert settings.token == SecretStr(SECRET)
    shown = repr(settings) + str(settings) + repr(explain(settings)) + repr(warnings(settings))
    assert SECRET not in shown
    assert {row.value for row in explain(settings) if row.name in secret_fields} == {"set (hidden)"}


def test_unknown_variables_are_a_warning(home: Path) -> None:
    settings = load_settings(home=home, environ={"SEALSTREAM_LEASES": "3", "OTHER": "x"})
    (problem,) = warnings(settings)
    assert problem.name == "SEALSTREAM_LEASES"
    assert "lease_s" in problem.message


def test_secrets_in_open_files_are_a_warning(home: Path) -> None:
    write_stack_env(home, f"SEALSTREAM_TOKEN={SECRET}\n", mode=0o644)
    (problem,) = warnings(load_settings(home=home, environ={}))
    assert problem.name == "token"
    assert "chmod 600" in problem.message


def test_plaintext_over_a_network_is_a_warning(home: Path) -> None:
    environ = {
        "SEALSTREAM_KAFKA_BOOTSTRAP": "localhost:9092,kafka.example:9092",
        "SEALSTREAM_S3_ENDPOINT": "http://storage.example",
        "SEALSTREAM_ALLOW_PLAIN_RESULTS": "true",
    }
    found = {p.name for p in warnings(load_settings(home=home, environ=environ))}
    assert found == {"kafka_security_protocol", "s3_endpoint", "allow_plain_results"}
    here = {
        "SEALSTREAM_KAFKA_BOOTSTRAP": "localhost:9092,127.0.0.1:1,[::1]:2",
        "SEALSTREAM_S3_ENDPOINT": "http://127.0.0.1:8333",
        "SEALSTREAM_ALLOW_PLAIN_RESULTS": "true",
    }
    assert warnings(load_settings(home=home, environ=here)) == []


def test_env_files_keep_values_verbatim() -> None:
    text = "# comment\n\nA=b=c \nnot a line\n1X=y\nB= spaced\n"
    assert parse_env_file(text) == {"A": "b=c", "B": " spaced"}


def test_settings_are_frozen_and_strict() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.lease_s = 5  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        Settings(nonsense=1)  # type: ignore[call-arg]


def test_identity_folder(tmp_path: Path) -> None:
    assert Settings(home=tmp_path, worker_id="a-1").identity_dir() == tmp_path / "workers" / "a-1"
    assert Settings(worker_keys_dir=tmp_path).identity_dir() == tmp_path
    with pytest.raises(ValueError, match="worker_id"):
        Settings().identity_dir()
    assert Settings(home=tmp_path).kms_spec == f"local:{tmp_path}/kms.key"
