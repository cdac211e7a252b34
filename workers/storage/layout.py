"""Every object key, in one place. Keys are relative to the store's prefix.

    catalog/<hmac>                                 name -> uid, sealed
    realm/<kind>/<name hex>                        identity records, sealed
    results/<request id hex>                       results too large for a record, sealed
    <uid>/keys/envelope/<epoch>                    KMS envelope of a KEK
    <uid>/keys/tag                                 wrapped TAG
    <uid>/keys/dek/<generation>                    wrapped DEK
    <uid>/keys/ingest/<day>                        wrapped INGEST key pair
    <uid>/keys/epochs/<epoch>/...                  the same three under a later KEK
    <uid>/keys/users/<hmac>                        user key records
    <uid>/packs/<uid>                              sealed contents of a micro-batch
    <uid>/bodies/<uid>                             an index-update body too large for a record
    <uid>/shards/<n>/head                          the shard's only mutable object
    <uid>/shards/<n>/segments/<uid>
    <uid>/shards/<n>/deletes/<uid>
    <uid>/shards/<n>/centroids/<uid>
    <uid>/shards/<n>/access/<uid>                  access lists that were changed
    check/..., realm/check/..., <zeros>/...        written and removed at start (`check.py`)

Index names, document ids and words stand nowhere: uids are random, the rest is HMACs and numbers.
"""

from __future__ import annotations

_UID_BYTES = 16


def catalog(name_hmac: bytes) -> str:
    """Return the key of a catalog entry; `name_hmac` = HMAC(realm root, index name)."""
    if len(name_hmac) < _UID_BYTES:
        raise ValueError("a catalog entry is named by an HMAC of at least 16 bytes")
    return f"catalog/{name_hmac.hex()}"


def catalog_prefix() -> str:
    """Return the prefix of all catalog entries."""
    return "catalog/"


def realm(kind: str, name: bytes | None = None) -> str:
    """Return the key of a realm record: a single one of its `kind`, or the one called `name`."""
    if not kind.replace("-", "").isalnum() or not kind.isascii():
        raise ValueError("a kind of realm record is letters, digits and dashes")
    return f"realm/{kind}" if name is None else f"realm/{kind}/{name.hex()}"


def result(request_id: bytes) -> str:
    """Return the key of a sealed result that does not fit a record."""
    return f"results/{_uid(request_id)}"


def index_prefix(uid: bytes) -> str:
    """Return the prefix of everything that belongs to an index."""
    return f"{_uid(uid)}/"


def envelope(uid: bytes, epoch: int = 0) -> str:
    """Return the key of the KMS envelope of the KEK of `epoch`."""
    return f"{_uid(uid)}/keys/envelope/{_number(epoch)}"


def envelopes_prefix(uid: bytes) -> str:
    """Return the prefix of the KMS envelopes of an index."""
    return f"{_uid(uid)}/keys/envelope/"


def epochs_prefix(uid: bytes) -> str:
    """Return the prefix of all that is wrapped by KEKs after the first."""
    return f"{_uid(uid)}/keys/epochs/"


def wrapped_prefix(uid: bytes, epoch: int = 0) -> str:
    """Return the prefix of what the KEK of `epoch` wraps."""
    return f"{epochs_prefix(uid)}{_number(epoch)}/" if epoch else f"{_uid(uid)}/keys/"


def tag(uid: bytes, epoch: int = 0) -> str:
    """Return the key of the TAG key, wrapped by the KEK of `epoch`."""
    return f"{wrapped_prefix(uid, epoch)}tag"


def dek(uid: bytes, generation: int, epoch: int = 0) -> str:
    """Return the key of the DEK of `generation`, wrapped by the KEK of `epoch`."""
    return f"{deks_prefix(uid, epoch)}{_number(generation)}"


def deks_prefix(uid: bytes, epoch: int = 0) -> str:
    """Return the prefix of the DEKs that the KEK of `epoch` wraps."""
    return f"{wrapped_prefix(uid, epoch)}dek/"


def ingest_key(uid: bytes, day: int, epoch: int = 0) -> str:
    """Return the key of the INGEST pair of `day` (days since 1970), wrapped by a KEK."""
    return f"{ingest_prefix(uid, epoch)}{_number(day)}"


def ingest_prefix(uid: bytes, epoch: int = 0) -> str:
    """Return the prefix of the INGEST pairs that the KEK of `epoch` wraps."""
    return f"{wrapped_prefix(uid, epoch)}ingest/"


def user_key(uid: bytes, user_hmac: bytes) -> str:
    """Return the key of a user key record; `user_hmac` stands for the user id."""
    return f"{_uid(uid)}/keys/users/{user_hmac.hex()}"


def keys_prefix(uid: bytes) -> str:
    """Return the prefix of all key records of an index."""
    return f"{_uid(uid)}/keys/"


def pack(uid: bytes, pack_uid: bytes) -> str:
    """Return the key of a pack of sealed contents."""
    return f"{_uid(uid)}/packs/{_uid(pack_uid)}"


def packs_prefix(uid: bytes) -> str:
    """Return the prefix of all packs of an index."""
    return f"{_uid(uid)}/packs/"


def bodies_prefix(uid: bytes) -> str:
    """Return the prefix of all bodies of index-updates of an index."""
    return f"{_uid(uid)}/bodies/"


def body(uid: bytes, body_uid: bytes) -> str:
    """Return the key of an index-update body that does not fit a record."""
    return f"{bodies_prefix(uid)}{_uid(body_uid)}"


def shard_prefix(uid: bytes, shard: int) -> str:
    """Return the prefix of everything that belongs to a shard."""
    return f"{_uid(uid)}/shards/{_number(shard)}/"


def head(uid: bytes, shard: int) -> str:
    """Return the key of a shard's head."""
    return f"{shard_prefix(uid, shard)}head"


def segment(uid: bytes, shard: int, segment_uid: bytes) -> str:
    """Return the key of a segment."""
    return f"{shard_prefix(uid, shard)}segments/{_uid(segment_uid)}"


def segments_prefix(uid: bytes, shard: int) -> str:
    """Return the prefix of a shard's segments."""
    return f"{shard_prefix(uid, shard)}segments/"


def deletes(uid: bytes, shard: int, deletes_uid: bytes) -> str:
    """Return the key of a deletion bitmap."""
    return f"{shard_prefix(uid, shard)}deletes/{_uid(deletes_uid)}"


def centroids(uid: bytes, shard: int, epoch_uid: bytes) -> str:
    """Return the key of the centroids of a training epoch."""
    return f"{shard_prefix(uid, shard)}centroids/{_uid(epoch_uid)}"


def check(role: str) -> str:
    """Return where a role proves at start what it may do: a prefix, for `ingest` a key.

    It lies where the rights of the role end in any case, below an index that never exists.
    """
    nobody = _uid(bytes(_UID_BYTES))
    places = {
        "all": "check/",
        "keys": "realm/check/",
        "index": f"{nobody}/shards/check/",
        "ingest": f"{nobody}/packs/check",
        "query": f"{nobody}/shards/check/",
    }
    return places[role]


def access(uid: bytes, shard: int, access_uid: bytes) -> str:
    """Return the key of a table of changed access lists."""
    return f"{shard_prefix(uid, shard)}access/{_uid(access_uid)}"


def last_uid(key: str) -> bytes:
    """Return the uid that a listed segment, pack, deletes or body key ends with.

    Raises:
        ValueError: the key does not end with 16 bytes of hex.
    """
    name = key.rpartition("/")[2]
    uid = bytes.fromhex(name)
    _uid(uid)
    return uid


def _uid(uid: bytes) -> str:
    if len(uid) != _UID_BYTES:
        raise ValueError("a uid has 16 bytes")
    return bytes(uid).hex()


def _number(number: int) -> str:
    if number < 0:
        raise ValueError("a number in an object key is not negative")
    return str(number)
