"""Spans of requests, read back from OpenTelemetry's exporter in memory, and what a collector gets."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from lucid_deploy.batching import Mark
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.errors import ApiError, queue_full
from lucid_deploy.serving.tracing import open_tracing
from tests.serving.reader_tools import completion
from tests.serving.stand_ins import ScriptedBackend, client, service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
PHASES = ["queue", "prefill", "decode"]
MARKS = [Mark(0, phase, place, 7 if phase == "prefill" else 0) for place, phase in enumerate(PHASES, 1)]
CONVENTIONS = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}


def recorded(folder: Path, body: bytes, *script: Any, headers: dict[str, str] = HEADERS) -> list[ReadableSpan]:
    """Send a completion to a service whose engine does what the script says; return the spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> None:
        made = service(folder, ScriptedBackend(*script))
        made.tracing = provider
        async with client(made) as http:
            await http.post("/v1/completions", content=body, headers=headers)

    asyncio.run(run())
    return list(exporter.get_finished_spans())


def test_the_span_of_a_request(tmp_path: Path) -> None:
    body = completion("w1 w2", temperature=0, max_tokens=6, stop=["zebra"])
    (span,) = recorded(tmp_path, body, MARKS, [TextPiece(0, "secret", 1, reason="stop", reused=7)])
    assert span.name == "text_completion m" and span.kind is SpanKind.SERVER
    assert span.context is not None and span.parent is not None and span.parent.is_remote
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.context.trace_state.to_header() == "a=1"
    assert [(event.name, event.timestamp) for event in span.events] == list(zip(PHASES, (1, 2, 3), strict=True))
    assert [(event.attributes or {})["lucid.reused_tokens"] for event in span.events] == [0, 7, 0]
    found = dict(span.attributes or {})
    assert found.pop("gen_ai.response.id") and found.pop("gen_ai.response.time_to_first_chunk")
    assert found == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "lucid-deploy",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 1,
        "http.response.status_code": 200,
    }
    assert {name for name in found if name.startswith("gen_ai.")} <= CONVENTIONS
    assert not any(word in span.to_json() for word in ("w1", "zebra", "secret"))  # no text of the client or the model


@pytest.mark.parametrize(
    ("body", "script", "status", "error", "code"),
    [
        (b"{secret", [], 400, "invalid_json", StatusCode.UNSET),
        (completion("w1"), [queue_full()], 429, "queue_full", StatusCode.UNSET),
        (completion("w1"), [MARKS, ApiError(500, "secret", "engine_error")], 500, "engine_error", StatusCode.ERROR),
        (
            completion("w1", stream=True),
            [MARKS, [TextPiece(0, "a", 1)], ApiError(500, "secret", "engine_error")],
            500,
            "engine_error",
            StatusCode.ERROR,
        ),
    ],
)
def test_refused_and_failed_requests(
    body: bytes, script: list[Any], status: int, error: str, code: StatusCode, tmp_path: Path
) -> None:
    (span,) = recorded(tmp_path, body, *script)
    found = dict(span.attributes or {})
    assert (found["http.response.status_code"], found["error.type"]) == (status, error)
    assert span.status.status_code is code and "secret" not in span.to_json()


@pytest.mark.parametrize(("parent", "count"), [(f"00-{TRACE}-{PARENT}-00", 0), ("no", 1)])
def test_the_client_context(parent: str, count: int, tmp_path: Path) -> None:
    """A client may say that its request is not to be recorded; what is no context is ignored."""
    headers = {**HEADERS, "traceparent": parent}
    spans = recorded(tmp_path, completion("w1"), [TextPiece(0, "a", 1, reason="stop")], headers=headers)
    assert len(spans) == count and all(span.parent is None for span in spans)


class Collector(BaseHTTPRequestHandler):
    """Takes spans by OTLP over HTTP."""

    taken: ClassVar[list[tuple[str, str | None, ExportTraceServiceRequest]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, self.headers["Authorization"], ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_collector_gets_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20key")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")

    async def run(endpoint: str) -> None:
        made = service(tmp_path, ScriptedBackend([TextPiece(0, "", 0, reason="stop")]), otlp_endpoint=endpoint)
        async with client(made) as http:
            await http.post("/v1/completions", content=completion("w1"), headers={"Content-Type": "application/json"})
        assert made.tracing is not None
        await asyncio.to_thread(made.tracing.shutdown)

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        asyncio.run(run(f"http://127.0.0.1:{collector.server_port}"))
        collector.shutdown()
    ((path, key, sent),) = Collector.taken
    assert (path, key) == ("/v1/traces", "Bearer key")
    (resource,) = sent.resource_spans
    named = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert (named["service.name"], named["deployment.environment.name"]) == ("lucid-deploy", "test")
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["text_completion m"]


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "grpc://localhost:4317", "http://", "http://a:b@c", "http://c?d"]
)
def test_what_is_no_collector_is_refused(endpoint: str) -> None:
    with pytest.raises(LucidError, match="otlp-endpoint"):
        open_tracing(endpoint)
