"""Every metric of every worker, named and explained in one table.

Kept in the process and written in the Prometheus text format. Labels come from small closed sets
(topic, partition, verb, error code); never from messages, so no index name, id, key or token can
get into a metric. Names follow Prometheus: base units, `_total` for counters.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

Labels = tuple[str, ...]


@dataclass(slots=True)
class Metric:
    """What all kinds have: a name, what it means, and the names of its labels."""

    name: str
    help: str
    labels: Labels = ()

    def __post_init__(self) -> None:
        if any(metric.name == self.name for metric in ALL):
            raise ValueError(f"the metric {self.name} is defined twice")
        ALL.append(self)

    @property
    def kind(self) -> str:
        """Return the type as Prometheus calls it."""
        return type(self).__name__.lower()

    def key(self, labels: dict[str, str]) -> Labels:
        """Return the label values in the order of the definition."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {', '.join(self.labels) or 'none'}")
        return tuple(str(labels[name]) for name in self.labels)

    def samples(self) -> Iterator[str]:
        """Yield its lines in the text format."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget all values (tests)."""
        raise NotImplementedError


@dataclass(slots=True)
class Counter(Metric):
    """A number that only grows."""

    _values: dict[Labels, float] = field(default_factory=dict)

    def inc(self, amount: float = 1, /, **labels: str) -> None:
        """Add `amount`."""
        key = self.key(labels)
        self._values[key] = self._values.get(key, 0) + amount

    def value(self, **labels: str) -> float:
        """Return the present number."""
        return self._values.get(self.key(labels), 0)

    def samples(self) -> Iterator[str]:
        """Yield its lines in the text format."""
        for key, value in sorted(self._values.items()):
            yield f"{self.name}{_braces(self.labels, key)} {value:g}"

    def clear(self) -> None:
        """Forget all values (tests)."""
        self._values.clear()


@dataclass(slots=True)
class Gauge(Metric):
    """A number that goes up and down."""

    _values: dict[Labels, float] = field(default_factory=dict)

    def set(self, value: float, /, **labels: str) -> None:
        """Replace the number."""
        self._values[self.key(labels)] = value

    def add(self, amount: float, /, **labels: str) -> None:
        """Change the number by `amount`."""
        key = self.key(labels)
        self._values[key] = self._values.get(key, 0) + amount

    def forget(self, **labels: str) -> None:
        """Stop reporting one set of labels (a partition that is gone)."""
        self._values.pop(self.key(labels), None)

    def value(self, **labels: str) -> float:
        """Return the present number."""
        return self._values.get(self.key(labels), 0)

    def samples(self) -> Iterator[str]:
        """Yield its lines in the text format."""
        for key, value in sorted(self._values.items()):
            yield f"{self.name}{_braces(self.labels, key)} {value:g}"

    def clear(self) -> None:
        """Forget all values (tests)."""
        self._values.clear()


@dataclass(slots=True)
class Histogram(Metric):
    """How often values fell below each bound."""

    bounds: tuple[float, ...] = _LATENCY_S
    _counts: dict[Labels, list[int]] = field(default_factory=dict)
    _sums: dict[Labels, float] = field(default_factory=dict)

    def observe(self, value: float, /, **labels: str) -> None:
        """Count one value."""
        key = self.key(labels)
        counts = self._counts.setdefault(key, [0] * (len(self.bounds) + 1))
        counts[bisect.bisect_left(self.bounds, value)] += 1
        self._sums[key] = self._sums.get(key, 0.0) + value

    def count(self, **labels: str) -> int:
        """Return how many values were counted."""
        return sum(self._counts.get(self.key(labels), ()))

    def samples(self) -> Iterator[str]:
        """Yield its lines in the text format."""
        for key, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
                total += count
                edge = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f"{self.name}_bucket{_braces((*self.labels, 'le'), (*key, edge))} {total}"
            braces = _braces(self.labels, key)
            yield f"{self.name}_sum{braces} {self._sums[key]:g}"
            yield f"{self.name}_count{braces} {total}"

    def clear(self) -> None:
        """Forget all values (tests)."""
        self._counts.clear()
        self._sums.clear()


ALL: list[Metric] = []

_TP: Labels = ("topic", "partition")

# --- the loop of every worker ---------------------------------------------------------------------
RECORDS = Counter(
    "sealstream_records_total", "Records whose work is done, per partition of a work topic.", _TP
)
RECORD_BYTES = Counter(
    "sealstream_record_bytes_total", "Bytes of keys, values and headers of these records.", _TP
)
BATCH_SECONDS = Histogram(
    "sealstream_batch_seconds", "Time to work on one batch, without pauses.", ("topic",)
)
BATCH_RECORDS = Histogram(
    "sealstream_batch_records", "Records in a batch.", ("topic",), bounds=_SIZES
)
RETRIES = Counter(
    "sealstream_retries_total",
    "Batches or requests to be repeated because something was unavailable; alert when it grows.",
    ("topic", "code"),
)
FENCES = Counter(
    "sealstream_fenced_total",
    "Times another writer owned a shard and its state was dropped and loaded anew.",
    ("topic",),
)
PARTITIONS = Gauge("sealstream_partitions", "Partitions this worker owns now.", ("group",))
REBALANCES = Counter("sealstream_rebalances_total", "Assignments of partitions.", ("group",))
PARTITIONS_LOST = Counter(
    "sealstream_partitions_lost_total", "Partitions lost before their work was committed.", _TP
)
DRAIN_CANCELLED = Counter(
    "sealstream_drain_cancelled_total",
    "Batches cut off because they took longer than a drain may; they are repeated elsewhere.",
    ("topic",),
)
LAG = Gauge(
    "sealstream_lag_records", "Records of an owned partition that are not committed yet.", _TP
)
BUFFERED_BYTES = Gauge(
    "sealstream_buffered_bytes", "Bytes of records fetched and not yet worked on.", ("group",)
)
OFFSET_GAPS = Counter(
    "sealstream_offsets_missing_total",
    "Offsets that were never delivered: retention deleted them before they were read. Alert.",
    _TP,
)
OFFSET_RESETS = Counter(
    "sealstream_offset_resets_total",
    "Times a partition went on at a lower offset than expected: its log was lost. Alert.",
    _TP,
)
COMMIT_FAILURES = Counter(
    "sealstream_commit_failures_total", "Commits without an answer; tried again later.", _TP
)
DEAD_LETTERS = Counter(
    "sealstream_dead_letters_total", "Records refused for ever, by error code.", ("topic", "code")
)
UNEXPECTED = Counter(
    "sealstream_unexpected_failures_total",
    "Records refused, or other work undone, because a worker failed: its own fault. See its log.",
    ("topic",),
)
LOOP_LAG_SECONDS = Histogram(
    "sealstream_event_loop_lag_seconds",
    "How late the event loop was; above 1 s heartbeats suffer and rebalances follow.",
)

# --- the object store -----------------------------------------------------------------------------
STORE_REQUESTS = Counter(
    "sealstream_store_requests_total", "Requests to the object store, refused ones too.", ("verb",)
)
STORE_DENIED = Counter(
    "sealstream_store_denied_total",
    "Requests that the object store denied: see credentials and bucket policy. Alert on the first.",
)
STORE_DENIED_AT = Gauge(
    "sealstream_store_denied_timestamp_seconds", "When it last denied one, in Unix time."
)
STORE_BYTES = Counter(
    "sealstream_store_bytes_total",
    "Bytes from (in) and to (out) the object store.",
    ("direction",),
)
CACHE_LOOKUPS = Counter(
    "sealstream_cache_lookups_total", "Look-ups in the cache of sealed blocks.", ("outcome",)
)
CACHE_BYTES = Gauge("sealstream_cache_bytes", "Bytes of sealed blocks held in memory.")

# --- documents ------------------------------------------------------------------------------------
INGESTED = Counter(
    "sealstream_ingest_operations_total", "Operations sealed and handed on.", ("op", "status")
)
INGEST_SECONDS = Histogram(
    "sealstream_ingest_seconds", "Time from the producer's timestamp to the acknowledged update."
)
APPLIED = Counter(
    "sealstream_index_operations_total", "Operations applied to the index.", ("kind", "outcome")
)
PUBLISH_SECONDS = Histogram(
    "sealstream_publish_seconds", "Time to write a segment and replace its shard's head."
)
INDEX_DELAY_SECONDS = Histogram(
    "sealstream_index_delay_seconds", "Time from the update's timestamp to its being searchable."
)
LIVE_SEGMENTS = Gauge(
    "sealstream_live_segments", "Live segments of the owned shards; above 8 each, writes slow down."
)
COMPACTIONS = Counter("sealstream_compactions_total", "Merges of segments.", ("outcome",))
COMPACTED_BYTES = Counter(
    "sealstream_compacted_bytes_total",
    "Bytes read (in) and written (out) by merges.",
    ("direction",),
)
SWEPT = Counter("sealstream_swept_objects_total", "Objects that nothing named and were deleted.")
BLOCKED_RECORDS = Gauge(
    "sealstream_blocked_records", "Records that wait for the keys of their shard.", ("topic",)
)
DAMAGED = Counter(
    "sealstream_damaged_total",
    "Stored data that failed authentication: damaged, swapped or rolled back. Alert on the first.",
    ("what",),
)

# --- queries --------------------------------------------------------------------------------------
QUERIES = Counter("sealstream_queries_total", "Queries answered.", ("kind", "status"))
QUERY_SECONDS = Histogram("sealstream_query_seconds", "Time inside the query worker.", ("kind",))
QUERIES_RUNNING = Gauge(
    "sealstream_queries_running", "Queries in progress, those waiting included."
)
QUERIES_WAITING = Gauge("sealstream_queries_waiting", "Queries that wait for their min_position.")

# --- keys -----------------------------------------------------------------------------------------
LEASES = Gauge("sealstream_leases", "Indexes whose keys this worker holds now.")
LEASE_REQUESTS = Counter(
    "sealstream_lease_requests_total", "Answers of the key service to this worker.", ("outcome",)
)
GRANTS = Counter("sealstream_grants_total", "Decisions of the key service.", ("kind", "decision"))
REFUSED_TOKENS = Counter(
    "sealstream_refused_tokens_total",
    "Identity tokens that did not count; `unknown-signer` grows when a provider rotates its keys.",
    ("provider", "reason"),
)
KMS_CALLS = Counter("sealstream_kms_calls_total", "Calls to the KMS.", ("call", "outcome"))
KMS_SECONDS = Histogram("sealstream_kms_seconds", "Time of a call to the KMS.", ("call",))
AUDIT_RECORDS = Counter("sealstream_audit_records_total", "Records written to the audit.")


def render() -> str:
    """Return all metrics in the Prometheus text format, version 0.0.4."""
    lines: list[str] = []
    for metric in ALL:
        samples = list(metric.samples())
        if samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += samples
    return "\n".join(lines) + "\n"


def clear() -> None:
    """Forget all values (tests)."""
    for metric in ALL:
        metric.clear()


def _braces(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
