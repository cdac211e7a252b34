"""Check the audit: needs the topic's records and the key service's public key, nothing else.

Per instance, in the order of the topic: sequence numbers without gaps from 0, every record chained
to the one before, hashes right, checkpoints signed. What stands before the last checkpoint can then
be neither changed, nor dropped, nor exchanged. What is said of the rest: how many records follow
the last checkpoint (`unsigned`), and whether the instance ended with a signed `stop`. Of an
instance all of whose records are gone, nothing is known. A chain whose beginning is older than the
topic keeps records may begin later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.audit import AuditRecord
from schemas.codec import decode, to_plain
from schemas.errors import InvalidMessage
from schemas.values import decode_base64
from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.sign import VerifyKey
from workers.kafka.broker import Record
from workers.keys.audit import GENESIS, chain_hash

SIGNED_EVENTS = frozenset({"checkpoint", "stop"})
# Of the retention: before that, a missing beginning is no surprise.
_KEPT_SURELY = 0.9


@dataclass(slots=True)
class Chain:
    """What is known of one instance.

    Attributes:
        records: how many of its records were read.
        checkpoints: how many of them are signed, rightly.
        unsigned: how many follow the last checkpoint.
        ended: whether the last one is a signed `stop`.
        problems: what is wrong, with the record's offset.
        next_seq, last_hash: what the next record must follow.
    """

    instance: str
    records: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    ended: bool = False
    first_ms: int = 0
    last_ms: int = 0
    problems: list[str] = field(default_factory=list)
    next_seq: int = 0
    last_hash: bytes = field(default=GENESIS, repr=False)


def check_audit(
    records: Iterable[Record], service: VerifyKey, *, now_ms: int, retention_ms: int
) -> list[Chain]:
    """Check all chains; return one report for each, in the order in which they begin.

    Args:
        records: all of key-audit, in order.
        service: the key service's verify key, pinned.
        now_ms: milliseconds since 1970.
        retention_ms: how long the topic keeps records.
    """
    dropped_before_ms = now_ms - int(retention_ms * _KEPT_SURELY)
    chains: dict[str, Chain] = {}
    for record in records:
        name = (record.key or b"").decode(errors="replace")
        chain = chains.setdefault(name, Chain(name))
        where = f"{record.partition}/{record.offset}"
        try:
            audited = decode(AuditRecord, record.value)
        except InvalidMessage as error:
            chain.problems.append(f"{where}: no audit record: {error.message}")
            continue
        if not chain.records and audited.ts_ms < dropped_before_ms:
            chain.next_seq, chain.last_hash = audited.seq, bytes.fromhex(audited.prev)
        _check(chain, audited, service, where)
    return list(chains.values())


def _check(chain: Chain, record: AuditRecord, service: VerifyKey, where: str) -> None:
    chain.records += 1
    chain.first_ms = chain.first_ms or record.ts_ms
    chain.last_ms = record.ts_ms
    if record.instance != chain.instance:
        chain.problems.append(f"{where}: a record of another instance")
        return
    if record.seq != chain.next_seq:
        chain.problems.append(f"{where}: record {chain.next_seq} expected, {record.seq} found")
    elif record.prev != chain.last_hash.hex():
        chain.problems.append(f"{where}: record {record.seq} does not follow the one before")
    digest = chain_hash(bytes.fromhex(record.prev), to_plain(record))
    if digest.hex() != record.hash:
        chain.problems.append(f"{where}: record {record.seq} was changed")
    # Go on from what the record claims: each flaw is told once.
    chain.next_seq, chain.last_hash = record.seq + 1, bytes.fromhex(record.hash)
    chain.unsigned += 1
    chain.ended = False
    if record.event not in SIGNED_EVENTS and record.signature is None:
        return
    try:
        signature = decode_base64(record.signature or "", "signature")
        service.verify(signature, Info.AUDIT, record.instance, record.seq, digest)
    except (BadSignature, InvalidMessage):
        chain.problems.append(f"{where}: checkpoint {record.seq} is not signed by the key service")
        return
    chain.checkpoints += 1
    chain.unsigned = 0
    chain.ended = record.event == "stop"
