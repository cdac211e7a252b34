"""nanoidp, an identity provider of OpenID Connect and SAML for tests, as a process of its own."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.local import ports
from workers.local.process import die_with_parent

AUDIENCE = "sealstream"
RECIPIENT = "http://127.0.0.1:9/acs"
START_S = 240.0


class Provider:
    """nanoidp with users of our own, on a free port of this machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = ports.draw()
        self.issuer = f"http://127.0.0.1:{self.port}"
        (home / "keys").mkdir(parents=True)
        users = {
            name: {
                "password": f"pw-{name}",
                "roles": roles,
                "groups": groups,
                "tenant": "default",
                "attributes": {"uid": f"u-{name}"},
            }
            for name, roles, groups in (
                ("alice", ["author"], ["STAFF"]),
                ("bob", ["reader"], ["STAFF"]),
                ("carol", ["reader"], ["OTHERS"]),
                ("root", ["boss"], []),
                ("nobody", ["guest"], ["STAFF"]),
            )
        }
        application = {"client_id": "app", "client_secret": "secret", "description": "tests"}
        settings = {
            "config_version": 1,
            "server": {"host": "127.0.0.1", "port": self.port},
            "oauth": {
                "issuer": self.issuer,
                "audience": AUDIENCE,
                "token_expiry_minutes": 60,
                "clients": [application],
            },
            "saml": {"export_roles": True, "export_groups": True},
        }
        # JSON is YAML.
        (home / "users.yaml").write_text(json.dumps({"config_version": 1, "users": users}))
        (home / "settings.yaml").write_text(json.dumps(settings))

    @contextmanager
    def running(self) -> Iterator[None]:
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanoidp", "--config", str(self.home)],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        try:
            end = time.monotonic() + START_S
            while not self._answers():
                assert process.poll() is None, (self.home / "log").read_text()
                assert time.monotonic() < end, (self.home / "log").read_text()
                # Another process can only be polled.
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()

    def _answers(self) -> bool:
        try:
            self._get("/.well-known/openid-configuration")
        except OSError:
            return False
        return True

    def new_keys(self) -> None:
        shutil.rmtree(self.home / "keys")
        (self.home / "keys").mkdir()

    @property
    def private_key(self) -> bytes:
        """With what it signs now (PEM)."""
        return (self.home / "keys" / "rsa_private.pem").read_bytes()

    @property
    def kid(self) -> str:
        return (self.home / "keys" / "kid.txt").read_text().strip()

    def token(self, name: str, kind: str = "access_token") -> str:
        form = f"grant_type=password&username={name}&password=pw-{name}&scope=openid"
        return str(json.loads(self._get("/token", form.encode()))[kind])

    def assertion(self, name: str, recipient: str = RECIPIENT, audience: str = AUDIENCE) -> str:
        """Sign in by SAML, as a browser does, and return what it would post: base64."""
        request = (
            '<p:AuthnRequest xmlns:p="urn:oasis:names:tc:SAML:2.0:protocol" ID="_1" Version="2.0"'
            ' xmlns:s="urn:oasis:names:tc:SAML:2.0:assertion" IssueInstant="2026-01-01T00:00:00Z"'
            f' AssertionConsumerServiceURL="{recipient}"><s:Issuer>{audience}</s:Issuer>'
            "</p:AuthnRequest>"
        )
        form = {
            "SAMLRequest": base64.b64encode(request.encode()).decode(),
            "username": name,
            "password": f"pw-{name}",
        }
        page = self._get("/saml/sso", urllib.parse.urlencode(form).encode()).decode()
        found = re.search(r'name="SAMLResponse" value="([^"]+)"', page)
        assert found is not None, page
        return found[1]

    def metadata(self) -> str:
        return self._get("/saml/metadata").decode()

    def _get(self, path: str, form: bytes | None = None) -> bytes:
        application = base64.b64encode(b"app:secret").decode()
        request = urllib.request.Request(
            self.issuer + path, form, {"Authorization": f"Basic {application}"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())
