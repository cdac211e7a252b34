"""Requests that were seen: a copy of one is refused for as long as it would be good.

The same record delivered again (after a crash, or a retry) is no replay: it has the same place in
Kafka. Memory only, which is enough: a copy that outlives a restart is answered to an ephemeral key
that is gone, and a worker takes no answer that it does not wait for. Administrative requests need
more, see `admin.py`.
"""

from __future__ import annotations

from workers.kafka.broker import Record


class ReplayWindow:
    """Ids of requests and where they stood, until they expire."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[tuple[str, int, int], float]] = {}

    def admit(self, request_id: bytes, record: Record, expires_s: float) -> bool:
        """Note a request; tell whether it is the first of its id, or that very record again.

        Args:
            request_id: chosen by the sender, signed.
            record: where it stands.
            expires_s: until when it is good, seconds since 1970.
        """
        place = (record.topic, record.partition, record.offset)
        first, _ = self._seen.setdefault(request_id, (place, expires_s))
        return first == place

    def expire(self, now_s: float) -> None:
        """Forget what is no longer good."""
        for request_id in [r for r, (_, expires_s) in self._seen.items() if expires_s <= now_s]:
            del self._seen[request_id]
