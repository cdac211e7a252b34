"""OpenBao, for who wants a real KMS on this machine: the transit engine with one derived key.

It keeps its data in HOME/openbao, sealed with a key that lies beside it in `unseal.json` (0600):
good to try things out, no protection against who can read the folder. It starts sealed, so its
readiness probe initialises and unseals it, also after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from workers.local.errors import StackError
from workers.local.files import read_json, write_json
from workers.local.ports import LOOPBACK
from workers.local.probe import Probe, http
from workers.local.process import Command
from workers.local.servers import Server, base_env, find_binary

MOUNT, KEY = "transit", "sealstream"
KMS_SPEC = f"vault:{MOUNT}/{KEY}"
PORTS = ("vault", "vault-cluster")
# Its initialisation takes seconds, and must not be cut off: it tells the unseal key only once.
_CALL_S = 120.0
POLICY_NAME = "sealstream-keys"
POLICY = "\n".join(
    f'path "{path}" {{ capabilities = ["{capability}"] }}'
    for path, capability in (
        (f"{MOUNT}/encrypt/{KEY}", "update"),
        (f"{MOUNT}/decrypt/{KEY}", "update"),
        (f"{MOUNT}/rewrap/{KEY}", "update"),
        (f"{MOUNT}/keys/{KEY}", "read"),
        # The token keeps itself alive.
        ("auth/token/lookup-self", "read"),
        ("auth/token/renew-self", "update"),
    )
)


def bao_server(home: Path, ports: Mapping[str, int]) -> Server:
    """Return the OpenBao server, which unseals itself."""
    folder = home / "openbao"
    (folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    config = folder / "config.json"
    write_json(
        config,
        {
            "storage": {"raft": {"path": str(folder / "data"), "node_id": "local"}},
            "listener": {
                "tcp": {
                    "address": f"{LOOPBACK}:{ports['vault']}",
                    "cluster_address": f"{LOOPBACK}:{ports['vault-cluster']}",
                    "tls_disable": True,
                }
            },
            "api_addr": _address(ports),
            "cluster_addr": f"http://{LOOPBACK}:{ports['vault-cluster']}",
            "ui": False,
        },
    )
    argv = (find_binary("bao"), "server", f"-config={config}")
    command = Command("openbao", argv, base_env(), home / "logs" / "openbao.log")
    return Server(command, _unsealed(folder, ports["vault"]))


async def key_service_env(home: Path, ports: Mapping[str, int]) -> dict[str, str]:
    """Make the transit key and a token that may use nothing else; return them as variables.

    Raises:
        StackError: OpenBao refuses.
    """
    root = (read_json(home / "openbao" / "unseal.json") or {}).get("root_token", "")
    port = ports["vault"]
    mounts = await _call("GET", port, "/v1/sys/mounts", root)
    if f"{MOUNT}/" not in mounts.get("data", mounts):
        await _call("POST", port, f"/v1/sys/mounts/{MOUNT}", root, {"type": "transit"})
    await _call(
        "POST", port, f"/v1/{MOUNT}/keys/{KEY}", root, {"type": "aes256-gcm96", "derived": True}
    )
    await _call("PUT", port, f"/v1/sys/policies/acl/{POLICY_NAME}", root, {"policy": POLICY})
    made = await _call(
        "POST",
        port,
        "/v1/auth/token/create-orphan",
        root,
        {"policies": [POLICY_NAME], "no_default_policy": True, "ttl": "768h"},
    )
    return {"VAULT_ADDR": _address(ports), "VAULT_TOKEN": str(made["auth"]["client_token"])}


def _address(ports: Mapping[str, int]) -> str:
    return f"http://{LOOPBACK}:{ports['vault']}"


def _unsealed(folder: Path, port: int) -> Probe:
    async def probe() -> bool:
        status = await _call("GET", port, "/v1/sys/seal-status", "")
        if not status["initialized"]:
            shares = {"secret_shares": 1, "secret_threshold": 1}
            made = await _call("PUT", port, "/v1/sys/init", "", shares)
            write_json(folder / "unseal.json", made)
            return False
        if status["sealed"]:
            keys = (read_json(folder / "unseal.json") or {}).get("keys_base64")
            if not keys:
                raise StackError(f"the key that unseals OpenBao is gone: {folder / 'unseal.json'}")
            await _call("PUT", port, "/v1/sys/unseal", "", {"key": keys[0]})
            return False
        # Unsealed is not yet active: the node takes a moment to become the leader.
        code, _ = await http("GET", port, "/v1/sys/health")
        return code == 200

    return probe


async def _call(
    method: str, port: int, path: str, token: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    headers = {"X-Vault-Token": token} if token else {}
    data = orjson.dumps(body) if body is not None else b""
    code, answer = await http(method, port, path, body=data, headers=headers, timeout_s=_CALL_S)
    if code >= 300:
        # The answer may quote the request: say the code only.
        raise StackError(f"OpenBao refused {method} {path} with status {code}")
    parsed = orjson.loads(answer) if answer else {}
    return parsed if isinstance(parsed, dict) else {}
