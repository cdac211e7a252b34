"""The AsyncAPI 3 document: channels, messages, operations, and the YAML to write it in.

Payloads refer to the generated JSON Schemas beside it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from schemas.registry import CHANNELS, MESSAGES, Channel
from schemas.topics import (
    ALL_TOPICS,
    CONTENT_JSON,
    CONTENT_SEALED,
    HEADER_CONTENT_TYPE,
    HEADER_SIGNATURE,
    HEADER_TRACEPARENT,
    TopicSpec,
)

Json = dict[str, Any]

FORMAT: Final = "application/schema+json;version=draft-2020-12"
CONTENT_MSGPACK: Final = "application/msgpack"
_SPECS: Final = {spec.name: spec for spec in ALL_TOPICS}
_PLAIN: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def document() -> Json:
    """Return the document as plain values."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Sealstream",
            "version": "1",
            "description": (
                "An encrypted search pipeline on Kafka. Every value is one JSON object with "
                '"v": 1 (index-update is internal and packed). Topic names may have a prefix. '
                "On topics that users write, what breaks a schema is refused with "
                "INVALID_MESSAGE and the field's path."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_JSON,
        "channels": {_id(c.topic): _channel(c) for c in CHANNELS},
        "operations": _operations(),
        "components": {
            "messages": {
                **{m.name: _message(m.name, m.example) for m in MESSAGES if _is_sent(m.name)},
                "index-update": {
                    "name": "index-update",
                    "contentType": CONTENT_MSGPACK,
                    "summary": "Internal: clear envelope, body sealed to the update key.",
                    "payload": {"type": "string", "format": "binary"},
                },
            },
            "messageTraits": {"headers": {"headers": _headers()}},
        },
    }


def _id(topic: str) -> str:
    return topic.replace(".", "_")


def _channel(channel: Channel) -> Json:
    spec: TopicSpec = _SPECS[channel.topic]
    settings: Json = {"cleanup.policy": ["compact" if spec.compacted else "delete"]}
    if spec.broker_time:
        settings["message.timestamp.type"] = "LogAppendTime"
    if spec.retention_ms is not None:
        settings["retention.ms"] = spec.retention_ms
    read = (
        "Read by a consumer group."
        if spec.mode == "group"
        else "Read with explicit assignment, without a group."
    )
    return {
        "address": channel.topic,
        "description": f"Key: {channel.key}. {read}",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
        "bindings": {
            "kafka": {
                "topic": channel.topic,
                "partitions": spec.partitions,
                "topicConfiguration": settings,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _operations() -> Json:
    """Return what each party does with each topic."""
    found: Json = {}
    for channel in CHANNELS:
        for action, parties in (("send", channel.sent_by), ("receive", channel.read_by)):
            for party in parties:
                found[f"{party}-{action}-{_id(channel.topic)}"] = {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{_id(channel.topic)}"},
                    "tags": [{"name": party}],
                }
    return found


def _is_sent(name: str) -> bool:
    return any(name in channel.messages for channel in CHANNELS) or name in (
        # Inside a sealed value of admin-request and admin-result.
        "admin-request",
        "admin-result",
    )


def _message(name: str, example: Json | None) -> Json:
    message: Json = {
        "name": name,
        "contentType": CONTENT_SEALED if name == "sealed-value" else CONTENT_JSON,
        "traits": [{"$ref": "#/components/messageTraits/headers"}],
        "payload": {"schemaFormat": FORMAT, "schema": {"$ref": f"./json/{name}.json"}},
    }
    if example is not None:
        message["examples"] = [{"payload": example}]
    return message


def _headers() -> Json:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            HEADER_TRACEPARENT: {**text, "description": "W3C trace context."},
            HEADER_CONTENT_TYPE: {"type": "string", "enum": [CONTENT_JSON, CONTENT_SEALED]},
            HEADER_SIGNATURE: {
                **text,
                "description": "With auth.sealed: the session key's Ed25519 signature, 64 bytes,"
                " over topic, key and SHA-256 of the value, see workers/crypto/info.py.",
            },
            "ce_id": text,
            "ce_type": text,
            "ce_source": text,
        },
    }


def to_yaml(value: Json) -> str:
    """Write plain values as YAML, of the subset that needs no library: JSON's scalars."""
    return (
        "# Generated by python -m schemas.generate; do not edit.\n"
        + "\n".join(_lines(value, ""))
        + "\n"
    )


def _lines(value: Any, indent: str) -> list[str]:
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            lines += _entry(f"{indent}{_key(key)}:", item, indent + "  ")
    else:
        for item in value:
            if isinstance(item, dict) and item:
                first, *rest = _lines(item, indent + "  ")
                lines += [f"{indent}- {first.lstrip()}", *rest]
            else:
                lines += _entry(f"{indent}-", item, indent + "  ")
    return lines


def _entry(head: str, item: Any, indent: str) -> list[str]:
    if isinstance(item, dict | list) and item:
        return [head, *_lines(item, indent)]
    return [f"{head} {json.dumps(item, ensure_ascii=False)}"]


def _key(key: str) -> str:
    plain = _PLAIN.fullmatch(key) and key.lower() not in _WORDS
    return key if plain else json.dumps(key, ensure_ascii=False)
