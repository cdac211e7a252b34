"""How to reach the object store, and the limits of every request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Connection, credentials and limits of an S3-compatible store.

    Args:
        bucket: must exist.
        prefix: put before every key; "" for none.
        endpoint: URL of the server; None for AWS. Plain http is accepted only if the URL says so.
        region: for signing.
        access_key_id, secret_access_key, session_token: None looks for a web identity, a
            container's or an instance's role, whose credentials are renewed before they end.
        profile: a profile of the AWS configuration files, if no keys are given (needs boto3);
            followed while it changes.
        virtual_hosted: address the bucket by host name, not by path.
        read_only: refuse to write before any request is made.
        request_timeout_s: deadline of one attempt.
        operation_timeout_s: deadline of an operation with all its attempts.
        max_retries: attempts after the first; conditional writes are never repeated.
        max_concurrency: requests in flight.
        max_idle_connections: connections kept open.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    virtual_hosted: bool = False
    read_only: bool = False
    request_timeout_s: float = 15.0
    operation_timeout_s: float = 30.0
    max_retries: int = 3
    max_concurrency: int = 64
    max_idle_connections: int = 64
