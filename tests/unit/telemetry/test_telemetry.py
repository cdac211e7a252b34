from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest
import structlog

from schemas.errors import ErrorCode
from workers.errors import Retry
from workers.telemetry import endpoint as http
from workers.telemetry import logs, metrics
from workers.telemetry.endpoint import MetricsEndpoint
from workers.telemetry.traces import TraceContext, continue_from


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, object]]]]:
    root = logging.getLogger()
    before = root.handlers, root.level
    out = io.StringIO()
    logs.configure("w1", "info", stream=out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers, root.level = before[0], before[1]
    structlog.reset_defaults()


def test_log_lines_are_json(lines: Callable[[], list[dict[str, object]]]) -> None:
    structlog.get_logger("x").info("batch_done", records=3, topic="t", key_id="k7")
    structlog.get_logger("x").debug("not_written")
    [line] = lines()
    assert (line["event"], line["level"], line["worker"]) == ("batch_done", "info", "w1")
    assert (line["records"], line["topic"], line["key_id"]) == (3, "t", "k7")
    assert re.fullmatch(r"\d{4}-.*Z", str(line["timestamp"]))


def test_secrets_and_content_are_hidden(lines: Callable[[], list[dict[str, object]]]) -> None:
    structlog.get_logger("x").warning(
        "oops",
        token="hunter2",
        index_key="hunter2",
        auth={"sealed": "x"},
        wrapped={"sasl_password": "hunter2", "fine": 1},
        content="the secret plan",
        blob=b"\x00hunter2",
        several=[b"hunter2", {"secret": "hunter2"}],
        token_count=5,
    )
    [line] = lines()
    assert "hunter2" not in json.dumps(line)
    assert "plan" not in json.dumps(line)
    assert line["blob"] == "[8 bytes]"
    assert line["token_count"] == 5
    assert line["wrapped"] == {"sasl_password": "[hidden]", "fine": 1}


def test_foreign_exceptions_lose_their_text(lines: Callable[[], list[dict[str, object]]]) -> None:
    try:
        try:
            raise ValueError("cannot parse: the secret plan")
        except ValueError as cause:
            raise Retry(ErrorCode.STORAGE_UNAVAILABLE, "try later") from cause
    except Retry:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("foreign").warning("failed", exc_info=True)
    for line in lines():
        assert "plan" not in json.dumps(line)
        assert line["exception"] == "Retry: STORAGE_UNAVAILABLE: try later <- ValueError"
        assert "test_telemetry.py" in json.dumps(line["stack"])


def test_standard_logging_comes_out_the_same_way(
    lines: Callable[[], list[dict[str, object]]],
) -> None:
    logging.getLogger("some.library").warning("slow: %s", 3)
    logging.getLogger("aiokafka.conn").info("chatty")
    [line] = lines()
    assert (line["event"], line["logger"], line["worker"]) == ("slow: 3", "some.library", "w1")


def test_every_metric_is_named_and_explained() -> None:
    names = [metric.name for metric in metrics.ALL]
    assert len(names) == len(set(names))
    for metric in metrics.ALL:
        assert re.fullmatch(r"sealstream_[a-z0-9_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == isinstance(metric, metrics.Counter), metric.name


def test_metrics_in_the_text_format() -> None:
    metrics.clear()
    metrics.RETRIES.inc(topic='a"b', code="OVERLOADED")
    metrics.RETRIES.inc(2, topic='a"b', code="OVERLOADED")
    metrics.PARTITIONS.set(4, group="g")
    metrics.LOOP_LAG_SECONDS.observe(0.003)
    metrics.LOOP_LAG_SECONDS.observe(100.0)
    text = metrics.render()
    assert 'sealstream_retries_total{topic="a\\"b",code="OVERLOADED"} 3\n' in text
    assert '# TYPE sealstream_partitions gauge\nsealstream_partitions{group="g"} 4\n' in text
    assert 'sealstream_event_loop_lag_seconds_bucket{le="0.005"} 1\n' in text
    assert 'sealstream_event_loop_lag_seconds_bucket{le="+Inf"} 2\n' in text
    assert "sealstream_event_loop_lag_seconds_count 2\n" in text
    metrics.PARTITIONS.forget(group="g")
    assert "sealstream_partitions{" not in metrics.render()
    with pytest.raises(ValueError):
        metrics.RETRIES.inc(topic="t")
    metrics.clear()
    assert metrics.render() == "\n"


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_metrics_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    # Asker and server share this process: a stall of it must not end the request.
    monkeypatch.setattr(http, "_DEADLINE_S", 600.0)
    metrics.clear()
    metrics.PARTITIONS.set(2, group="g")
    async with MetricsEndpoint() as endpoint:
        answer = await ask(endpoint.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'sealstream_partitions{group="g"} 2' in answer
        assert b"404" in await ask(endpoint.port, b"GET /secrets HTTP/1.1\r\n\r\n")
        assert b"405" in await ask(endpoint.port, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await ask(endpoint.port, b"\xff" * 20_000) == b""
    metrics.clear()


HEADER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_trace_context_is_continued() -> None:
    context = TraceContext.parse(HEADER)
    assert context is not None
    assert context.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert context.header() == ("traceparent", HEADER)
    child = continue_from(HEADER)
    assert child.trace_id == context.trace_id
    assert child.span_id != context.span_id
    assert child.flags == 1
    assert continue_from(None).trace_id != continue_from(None).trace_id


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"nonsense",
        HEADER.upper(),
        HEADER + b"-extra",
        b"ff" + HEADER[2:],
        b"00-" + b"0" * 32 + HEADER[35:],
        HEADER[:36] + b"0" * 16 + HEADER[52:],
    ],
)
def test_invalid_trace_context_is_ignored(header: bytes | None) -> None:
    assert TraceContext.parse(header) is None


def test_later_versions_are_read_as_far_as_known() -> None:
    assert TraceContext.parse(b"01" + HEADER[2:] + b"-what-comes") is not None
