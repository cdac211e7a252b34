"""Every setting of Sealstream in one typed table, and where each value came from.

Precedence, highest first: options (arguments of `load_settings`), environment, `HOME/stack.env`,
a TOML file, defaults. The TOML file is `--config FILE`, else `SEALSTREAM_CONFIG`, else
`sealstream.toml` in the working directory when it exists. Its keys are the field names, flat
(`kafka_bootstrap = "..."`) or one table deep (`[kafka]` / `bootstrap = "..."`).

A field `name` is the variable `SEALSTREAM_NAME`, except those that have a well-known name of their
own (`AWS_ACCESS_KEY_ID`, `VAULT_ADDR`, ...). An empty variable counts as unset. Values of secrets
are `SecretStr`: no repr, error or explanation shows them.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas.index import MAX_MESSAGE_BYTES

ENV_PREFIX = "SEALSTREAM_"
DEFAULT_HOME = Path(".sealstream")
DEFAULT_CONFIG = Path("sealstream.toml")

# Fields whose variables do not have our prefix; the first one that is set counts.
WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "s3_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "s3_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "s3_session_token": ("AWS_SESSION_TOKEN",),
    "s3_profile": ("AWS_PROFILE",),
    "vault_addr": ("VAULT_ADDR",),
    "vault_token": ("VAULT_TOKEN",),
    "vault_token_file": ("VAULT_TOKEN_FILE",),
    "vault_namespace": ("VAULT_NAMESPACE",),
    "vault_cacert": ("VAULT_CACERT",),
    "vault_client_cert": ("VAULT_CLIENT_CERT",),
    "vault_client_key": ("VAULT_CLIENT_KEY",),
    "vault_skip_verify": ("VAULT_SKIP_VERIFY",),
}
# Variables of ours that are no fields.
_NO_FIELDS = frozenset({"SEALSTREAM_CONFIG", "SEALSTREAM_IMAGE"})

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the settings; never shows a value.

    `name` is the field or variable, `source` where it was written, `message` what to do.
    """

    name: str
    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} ({self.source}): {self.message}"


class Settings(BaseModel):
    """All settings; frozen. Build it with `load_settings`, or directly in tests."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    # Which source each field came from; fields that are absent have their default.
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    # Variables with our prefix that are no settings: told by `warnings`, no reason to stop.
    _unknown: list[Problem] = PrivateAttr(default_factory=list)

    home: Path = Field(
        default=DEFAULT_HOME, description="Folder of the local stack and of a worker's run files."
    )
    worker_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="This worker's id; its certificate, logs and HOME/run/<id>.json carry it.",
    )
    worker_keys_dir: Path | None = Field(
        default=None,
        description="Folder with this worker's identity (default: HOME/workers/<worker id>).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of the log lines that are written."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of the metrics endpoint.")
    metrics_port: Port | None = Field(
        default=None, description="Port of the Prometheus endpoint; unset: none, 0: any free port."
    )
    drain_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=20.0,
        description="Seconds a worker may take to finish what it has begun when told to stop.",
    )

    kafka_bootstrap: str = Field(
        default="localhost:9092", description="Kafka bootstrap servers, HOST:PORT, comma-separated."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How to talk to Kafka."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism, with a SASL_* security protocol."
    )
    kafka_sasl_username: str | None = Field(default=None, description="SASL user name.")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="SASL password.")
    kafka_ssl_cafile: Path | None = Field(
        default=None,
        description="CA certificates (PEM) the brokers are checked against; unset: system's.",
    )
    kafka_ssl_certfile: Path | None = Field(
        default=None, description="Client certificate (PEM) for mTLS."
    )
    kafka_ssl_keyfile: Path | None = Field(default=None, description="Private key (PEM) for mTLS.")
    kafka_ssl_password: SecretStr | None = Field(
        default=None, description="Password of the private key for mTLS."
    )
    kafka_session_timeout_s: Annotated[float, Field(ge=3, le=300)] = Field(
        default=20.0,
        description="Seconds after which a silent worker's partitions go to others; within the"
        " broker's limits.",
    )
    idempotent_producer: bool | Literal["auto"] = Field(
        default="auto",
        description="Kafka's idempotent producer: auto (where the broker has it), true, or false.",
    )
    topic_prefix: str = Field(
        default="", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="Put before every topic name."
    )

    store_folder: Path | None = Field(
        default=None,
        description="Keep objects as files below this folder instead of in S3: for one machine, and"
        " without rights by role. It must exist.",
    )
    s3_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL of the S3-compatible server; unset: AWS.",
    )
    s3_bucket: str = Field(default="sealstream", min_length=3, max_length=63, description="Bucket.")
    s3_prefix: str = Field(default="", description="Put before every object key in the bucket.")
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_access_key_id: str | None = Field(
        default=None, description="Access key; unset: profile or the machine's role."
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Secret access key.")
    s3_session_token: SecretStr | None = Field(
        default=None, description="Session token of an STS login."
    )
    s3_profile: str | None = Field(
        default=None, description="Profile in the AWS configuration files."
    )
    s3_virtual_hosted: bool = Field(
        default=False, description="Address the bucket as a host name instead of in the path."
    )
    s3_timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=30.0, description="Seconds one request to the object store may take."
    )

    kms: str | None = Field(
        default=None,
        pattern=r"^(local|vault|aws|gcp|azure|pkcs11):.+",
        description="KMS key that wraps the realm root, and the indexes that name no other:"
        " local:FILE, vault:MOUNT/KEY, aws:REGION/KEY, gcp:PROJECT/LOCATION/RING/KEY,"
        " azure:VAULT/KEY or pkcs11:TOKEN/KEY (default: local:HOME/kms.key).",
    )
    kms_endpoint: str | None = Field(
        default=None,
        pattern=r"^(https?://)?[A-Za-z0-9.:\[\]-]+/?$",
        description="Private endpoint (HOST or HOST:PORT) of the KMS of AWS, Google or Azure,"
        " instead of the public one.",
    )
    kms_ca_file: Path | None = Field(
        default=None,
        description="CA certificates (PEM) that the KMS of AWS, Google or Azure is checked against;"
        " unset: the system's.",
    )
    kms_aws_profile: str | None = Field(
        default=None, description="Profile for AWS KMS in the AWS configuration files."
    )
    kms_aws_access_key_id: str | None = Field(
        default=None,
        description="Access key for AWS KMS, where it differs from the bucket's; unset: as AWS's"
        " own tools find it (environment, profile, role).",
    )
    kms_aws_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret access key for AWS KMS."
    )
    kms_aws_session_token: SecretStr | None = Field(
        default=None, description="Session token of an STS login, for AWS KMS."
    )
    kms_gcp_credentials_file: Path | None = Field(
        default=None,
        description="Service account key or workload identity configuration for Google Cloud KMS;"
        " unset: as Google's own tools find credentials.",
    )
    kms_pkcs11_module: Path | None = Field(
        default=None, description="PKCS#11 library of the hardware security module."
    )
    kms_pkcs11_pin: SecretStr | None = Field(default=None, description="PIN of the token's user.")
    kms_pkcs11_pin_file: Path | None = Field(
        default=None, description="File with the PIN; outranks kms_pkcs11_pin."
    )
    vault_addr: str | None = Field(
        default=None, pattern=r"^https?://", description="URL of Vault or OpenBao."
    )
    vault_token: SecretStr | None = Field(
        default=None, description="Token for Vault or OpenBao; renewed while it can be."
    )
    vault_token_file: Path | None = Field(
        default=None,
        description="File with the token, read for every call: an agent renews it. Outranks"
        " vault_token.",
    )
    vault_login: Literal["token", "approle", "jwt"] = Field(
        default="token",
        description="How to come by a token; jwt is for Kubernetes too (vault_login_mount).",
    )
    vault_login_mount: str | None = Field(
        default=None, description="Mount of the auth method (default: approle or jwt)."
    )
    vault_role: str | None = Field(
        default=None, description="Role id for approle, name of the role for jwt."
    )
    vault_secret_id: SecretStr | None = Field(default=None, description="Secret id for approle.")
    vault_secret_file: Path | None = Field(
        default=None,
        description="File with the secret id or the JWT, read at every login; outranks"
        " vault_secret_id.",
    )
    vault_namespace: str | None = Field(
        default=None, description="Namespace in Vault Enterprise or OpenBao."
    )
    vault_cacert: Path | None = Field(
        default=None, description="CA certificate (PEM) that Vault is checked against."
    )
    vault_client_cert: Path | None = Field(
        default=None, description="Client certificate (PEM) for mutual TLS with Vault."
    )
    vault_client_key: Path | None = Field(
        default=None, description="Private key (PEM) of vault_client_cert."
    )
    vault_skip_verify: bool = Field(
        default=False, description="Accept any certificate of Vault: for tests only."
    )
    key_service_fingerprint: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the key service's signing key, in hex: whom workers trust.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Identity token with which the command line and the client authenticate.",
    )
    user_id: str | None = Field(
        default=None, description="Whose key user_key_file is, as `user-key create` was told."
    )
    user_key_file: Path | None = Field(
        default=None,
        description="File with a user's key of an index, 32 raw bytes: counts instead of token.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="OpenID Connect: URL of the provider whose tokens the key service accepts"
        " besides its own.",
    )
    oidc_audience: str | None = Field(
        default=None, description="Audience that tokens of oidc_issuer must be made for."
    )
    oidc_algorithms: str = Field(
        default="RS256,ES256",
        description="Signatures that count on tokens of oidc_issuer, comma-separated.",
    )
    oidc_roles_claim: str = Field(
        default="roles", description="Claim with the caller's roles; a dot goes into an object."
    )
    oidc_roles: str = Field(
        default="",
        description="Scopes of each role: ROLE=SCOPE+SCOPE, or ROLE=*, comma-separated.",
    )
    oidc_groups_claim: str = Field(
        default="groups", description="Claim with the caller's groups; a dot goes into an object."
    )
    oidc_administrators: str | None = Field(
        default=None, description="Role whose bearers administer users; none if not set."
    )
    oidc_ca_file: Path | None = Field(
        default=None, description="Certificate authority (PEM) of oidc_issuer."
    )
    saml_issuer: str | None = Field(
        default=None,
        min_length=1,
        description="SAML 2: entity id of the identity provider whose assertions the key service"
        " accepts besides its own tokens.",
    )
    saml_metadata: Path | None = Field(
        default=None,
        description="File with the metadata (XML) of saml_issuer: whose signatures count. Read"
        " again when it changes.",
    )
    saml_audience: str | None = Field(
        default=None,
        min_length=1,
        description="Our entity id: audience that assertions of saml_issuer must be made for.",
    )
    saml_recipient: str | None = Field(
        default=None,
        min_length=1,
        description="Our assertion consumer service: URL that assertions of saml_issuer must be"
        " made to be posted to (Recipient).",
    )
    saml_subject_attribute: str | None = Field(
        default=None,
        min_length=1,
        description="Attribute that says who the caller is: one stable value, never given to"
        " another. Not set: the NameID, which must be persistent.",
    )
    saml_roles_attribute: str = Field(
        default="roles", description="Attribute with the caller's roles, by its Name."
    )
    saml_roles: str = Field(
        default="",
        description="Scopes of each role: ROLE=SCOPE+SCOPE, or ROLE=*, comma-separated.",
    )
    saml_groups_attribute: str = Field(
        default="groups", description="Attribute with the caller's groups, by its Name."
    )
    saml_administrators: str | None = Field(
        default=None, description="Role whose bearers administer users; none if not set."
    )
    saml_xmlsec1: Path | None = Field(
        default=None,
        description="The program xmlsec1, which SAML needs; not set: found on the PATH.",
    )
    allow_plain_credentials: bool = Field(
        default=False,
        description="Accept identity tokens in clear inside messages (local stack only).",
    )
    allow_plain_results: bool = Field(
        default=False,
        description="Send contents, metadata and vectors unsealed (local stack only).",
    )
    hpke_suite: Literal["mlkem768-x25519", "x25519"] = Field(
        default="mlkem768-x25519", description="Suite for keys made from now on."
    )
    lease_s: Annotated[int, Field(ge=10, le=3600)] = Field(
        default=300, description="Seconds a worker may hold an index's keys."
    )
    decision_cache_s: Annotated[int, Field(ge=0, le=60)] = Field(
        default=60, description="Seconds a decision about a credential may be reused."
    )

    batch_max_records: Positive = Field(
        default=500, description="Most records in one micro-batch of the ingest and index workers."
    )
    batch_linger_ms: Milliseconds = Field(
        default=50, description="Milliseconds the ingest worker waits for a micro-batch to fill."
    )
    index_linger_ms: Milliseconds = Field(
        default=100,
        description="Milliseconds an idle index worker waits for a micro-batch to fill; a busy one "
        "waits as long as its last took, up to a second.",
    )
    max_record_bytes: Annotated[int, Field(ge=65_536)] = Field(
        default=900_000, description="Largest Kafka record we write, in bytes."
    )
    max_content_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=512 * 1024,
        description="Largest content of a document, in bytes; its message, where it is base64 or"
        " sealed, is larger by a third for each.",
    )
    max_blocked_records: Positive = Field(
        default=100_000,
        description="Records of a partition held back in memory for indexes without keys.",
    )
    max_staleness_ms: Milliseconds = Field(
        default=1000,
        description="Milliseconds after which a query worker re-checks a shard's head.",
    )
    query_concurrency: Positive = Field(
        default=64,
        description="Queries one worker works on at the same time. As many more may wait for their"
        " min_position.",
    )
    cache_bytes: Annotated[int, Field(ge=1_048_576)] = Field(
        default=256 * 1024 * 1024, description="Bytes of sealed blocks a worker may keep in memory."
    )

    @field_validator("kafka_bootstrap")
    @classmethod
    def _check_bootstrap(cls, value: str) -> str:
        for server in value.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError("write HOST:PORT, comma-separated")
        return value

    @field_validator("max_record_bytes", "max_content_bytes")
    @classmethod
    def _check_bytes(cls, value: int) -> int:
        if value > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"a message has at most {MAX_MESSAGE_BYTES} bytes: neither max_record_bytes nor"
                " max_content_bytes may be more"
            )
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                "kafka_security_protocol with SASL needs kafka_sasl_username and"
                " kafka_sasl_password"
            )
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("s3_access_key_id and s3_secret_access_key go together")
        if (self.user_id is None) != (self.user_key_file is None):
            raise ValueError("user_id and user_key_file go together")
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError("oidc_issuer and oidc_audience go together")
        saml = (self.saml_issuer, self.saml_metadata, self.saml_audience, self.saml_recipient)
        if len({one is None for one in saml}) > 1:
            raise ValueError(
                "saml_issuer, saml_metadata, saml_audience and saml_recipient go together"
            )
        if (self.kafka_ssl_certfile is None) != (self.kafka_ssl_keyfile is None):
            raise ValueError("kafka_ssl_certfile and kafka_ssl_keyfile go together")
        if (self.kms_aws_access_key_id is None) != (self.kms_aws_secret_access_key is None):
            raise ValueError("kms_aws_access_key_id and kms_aws_secret_access_key go together")
        if self.vault_login == "approle" and not (
            self.vault_role and (self.vault_secret_id or self.vault_secret_file)
        ):
            raise ValueError(
                "vault_login approle needs vault_role and vault_secret_file or vault_secret_id"
            )
        if self.vault_login == "jwt" and not (self.vault_role and self.vault_secret_file):
            raise ValueError("vault_login jwt needs vault_role and vault_secret_file")
        return self

    @property
    def kms_spec(self) -> str:
        """The realm's KMS key: `kms`, or the local key file in HOME."""
        return self.kms or f"local:{self.home / 'kms.key'}"

    @property
    def stack_env(self) -> Path:
        """File with the variables of the local stack (0600)."""
        return self.home / "stack.env"

    @property
    def run_dir(self) -> Path:
        """Folder of what runs now: state of the stack and each worker's health."""
        return self.home / "run"

    def identity_dir(self, worker_id: str | None = None) -> Path:
        """Return the folder of a worker's identity (default: this worker's).

        Raises:
            ValueError: neither `worker_keys_dir` nor a worker id is known.
        """
        if worker_id is None and self.worker_keys_dir is not None:
            return self.worker_keys_dir
        name = worker_id or self.worker_id
        if name is None:
            raise ValueError("worker_keys_dir or worker_id must be set")
        return self.home / "workers" / name

    def with_sources(self, sources: Mapping[str, str], unknown: Iterable[Problem] = ()) -> Self:
        """Remember where the values came from; returns itself."""
        self._sources.update(sources)
        self._unknown.extend(unknown)
        return self

    @property
    def unknown_variables(self) -> tuple[Problem, ...]:
        """Variables named like ours that no setting has."""
        return tuple(self._unknown)

    def source(self, name: str) -> str:
        """Return where a field's value came from: option, a variable, a file or `default`."""
        if name in self._sources:
            return self._sources[name]
        return "option" if name in self.model_fields_set else "default"


class SettingsError(ValueError):
    """Raised when the settings cannot be used; lists every problem at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


@dataclass(frozen=True, slots=True)
class Explained:
    """One row of `explain`: `value` is safe to print (secrets are `set` or `unset`)."""

    name: str
    variable: str
    value: str
    source: str
    description: str


def variables(name: str) -> tuple[str, ...]:
    """Return the environment variables of a field, the one that counts first."""
    return WELL_KNOWN.get(name, ()) or (ENV_PREFIX + name.upper(),)


def parse_env_file(text: str) -> dict[str, str]:
    """Parse `KEY=value` lines; `#` comments and blank lines are skipped, values are verbatim."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if separator and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            found[name] = value
    return found


def load_settings(
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Settings:
    """Gather the settings from all sources.

    Args:
        config: TOML file; must exist when given.
        environ: the environment (default: the process's).
        options: fields that outrank everything; None means not given.

    Raises:
        SettingsError: a value is wrong, a name in the TOML file is unknown, or a file cannot
            be read.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    file_values, file_problems = _from_toml(config, environ)
    env_values = _from_environ(environ)
    env_home = env_values.get("home", file_values.get("home", (DEFAULT_HOME, "")))[0]
    home = Path(options.get("home") or env_home)
    stack_values, unknown, stack_problems = _from_stack_env(home / "stack.env")

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in (file_values, stack_values, env_values):
        for name, (value, source) in layer.items():
            merged[name], sources[name] = value, source
    for name, value in given.items():
        merged[name], sources[name] = value, "option"

    unknown += _unknown_variables(environ, "environment")
    problems = [*file_problems, *stack_problems]
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems += _problems_of(error, sources)
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings.with_sources(sources, unknown)


def explain(settings: Settings) -> list[Explained]:
    """Return every field with its printable value, source and description."""
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if _is_secret(name):
            shown = "unset" if value is None else "set (hidden)"
        else:
            shown = "unset" if value is None else str(value)
        rows.append(
            Explained(
                name=name,
                variable=variables(name)[0],
                value=shown,
                source=settings.source(name),
                description=field.description or "",
            )
        )
    return rows


def warnings(settings: Settings) -> list[Problem]:
    """Return what works but should not be so: loose file modes, plaintext over a network."""
    found = list(settings.unknown_variables)
    for name in Settings.model_fields:
        source = settings.source(name)
        if _is_secret(name) and source.startswith("/") and _is_open_to_others(Path(source)):
            found.append(Problem(name, source, "secret in a file others can read: chmod 600"))
    endpoint = settings.s3_endpoint or ""
    if endpoint.startswith("http://") and not _is_loopback(endpoint.removeprefix("http://")):
        message = "plain http to another machine: use https"
        found.append(Problem("s3_endpoint", settings.source("s3_endpoint"), message))
    remote = any(not _is_loopback(s.strip()) for s in settings.kafka_bootstrap.split(","))
    if remote and settings.kafka_security_protocol in ("PLAINTEXT", "SASL_PLAINTEXT"):
        message = "Kafka on another machine without TLS"
        source = settings.source("kafka_security_protocol")
        found.append(Problem("kafka_security_protocol", source, message))
    for name in ("allow_plain_credentials", "allow_plain_results"):
        if getattr(settings, name) and remote:
            message = "meant for a broker on this machine only"
            found.append(Problem(name, settings.source(name), message))
    return found


def _is_secret(name: str) -> bool:
    return "SecretStr" in str(Settings.model_fields[name].annotation)


def _is_open_to_others(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & 0o077)


def _is_loopback(address: str) -> bool:
    host = address.partition("/")[0]
    host = host if host.startswith("[") and host.endswith("]") else host.rpartition(":")[0] or host
    return host in ("localhost", "[::1]") or host.startswith("127.")


Layer = dict[str, tuple[Any, str]]


def _from_environ(environ: Mapping[str, str], source: str | None = None) -> Layer:
    layer: Layer = {}
    for name in Settings.model_fields:
        for variable in variables(name):
            if environ.get(variable):
                layer[name] = (environ[variable], source or f"${variable}")
                break
    return layer


def _from_stack_env(path: Path) -> tuple[Layer, list[Problem], list[Problem]]:
    try:
        values = parse_env_file(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, [], []
    except (OSError, UnicodeDecodeError) as error:
        return {}, [], [Problem("stack.env", str(path), f"cannot be read ({type(error).__name__})")]
    source = str(path.absolute())
    return _from_environ(values, source), list(_unknown_variables(values, source)), []


def _from_toml(config: Path | None, environ: Mapping[str, str]) -> tuple[Layer, list[Problem]]:
    variable = environ.get("SEALSTREAM_CONFIG")
    named = config or (Path(variable) if variable else None)
    path = named or DEFAULT_CONFIG
    if named is None and not path.is_file():
        return {}, []
    source = str(path.absolute())
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Problem("config", source, f"cannot be read ({type(error).__name__})")]
    except tomllib.TOMLDecodeError as error:
        # The parser's text may quote the file: give its place only.
        place = re.search(r"\(at .*\)", str(error))
        return {}, [Problem("config", source, f"not TOML {place.group() if place else ''}")]
    layer: Layer = {}
    problems = []
    for name, value in _flatten(table):
        if name in Settings.model_fields:
            layer[name] = (value, source)
        else:
            problems.append(Problem(name, source, "unknown setting" + _hint(name)))
    return layer, problems


def _flatten(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{name}_{inner}", inner_value
        else:
            yield name, value


def _unknown_variables(environ: Mapping[str, str], source: str) -> Iterator[Problem]:
    known = {v for name in Settings.model_fields for v in variables(name)} | _NO_FIELDS
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in known:
            hint = _hint(variable.removeprefix(ENV_PREFIX).lower())
            yield Problem(variable, source, "unknown variable" + hint)


def _hint(name: str) -> str:
    close = get_close_matches(name, Settings.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _problems_of(error: ValidationError, sources: Mapping[str, str]) -> list[Problem]:
    problems = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(detail["loc"][0]) if detail["loc"] else "settings"
        text = detail["msg"].removeprefix("Value error, ")
        problems.append(Problem(name, sources.get(name, "together"), text))
    return problems
