"""Spans of requests to the application over a real engine, read back from OpenTelemetry's exporter in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.engine import EngineOptions
from lucid_deploy.serving.front import ApiOptions, Service, reader_setup
from lucid_deploy.serving.jobs import Refusal, RowEnd, RowMark, make_backend
from lucid_deploy.serving.tracing import Tracing, open_tracing
from tests.serving.reader_tools import completion
from tests.serving.serving_tools import MODEL, PROMPT
from tests.serving.stand_ins import ReaderHere, ScriptedBackend, client, service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
PHASES = ["queue", "prefill", "decode"]
CONVENTIONS = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}

Use = Callable[[httpx.AsyncClient], Awaitable[Any]]


def recorded(use: Use, make: Callable[[], Service]) -> list[ReadableSpan]:
    """Use a service that is made in the event loop, and return its spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> None:
        made = make()
        made.tracing = Tracing(provider)
        async with client(made) as http:
            await use(http)

    asyncio.run(run())
    return list(exporter.get_finished_spans())


def traced(directory: Path, use: Use) -> list[ReadableSpan]:
    """Serve an artifact in this process."""
    options, api = EngineOptions(str(directory), rows=2, check=False), ApiOptions(MODEL, pages=False)
    setup, backend, loaded = reader_setup(options, api), make_backend(options), threading.Event()
    readers: Any = ReaderHere(setup)
    backend.engine.start(loaded.set)
    loaded.wait()
    try:
        return recorded(use, lambda: Service(api, setup, backend, readers))
    finally:
        backend.engine.stop()


def scripted(folder: Path, use: Use, *script: Any) -> list[ReadableSpan]:
    """As :func:`traced`, over an engine that does what the script says."""
    return recorded(use, lambda: service(folder, ScriptedBackend(*script)))


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_the_span_of_a_request(artifacts: dict[str, Path]) -> None:
    answers: list[Any] = []

    async def use(http: httpx.AsyncClient) -> None:
        body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 6, "seed": 5, "stop": ["zebra"]}
        answers.append((await http.post("/v1/completions", json=body, headers=HEADERS)).json())

    (request,) = traced(artifacts["static"], use)
    answer = answers[0]
    assert request.name == f"text_completion {MODEL}" and request.kind is SpanKind.SERVER
    assert request.context is not None and request.parent is not None and request.end_time is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.parent.is_remote
    assert request.context.trace_state.to_header() == "a=1"
    assert [event.name for event in request.events] == PHASES
    times = [request.start_time, *(event.timestamp for event in request.events), request.end_time]
    assert times == sorted(times) and times[2] < times[3]

    found, usage = attributes(request), answer["usage"]
    assert found.pop("gen_ai.response.time_to_first_chunk") <= (request.end_time - request.start_time) / 1e9
    assert found == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "lucid-deploy",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": (answer["choices"][0]["finish_reason"],),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "http.response.status_code": 200,
    }
    assert {name for name in attributes(request) if name.startswith("gen_ai.")} <= CONVENTIONS
    everything = json.dumps(json.loads(request.to_json()))  # no text, of the client or the model
    words = {*PROMPT.split(), *answer["choices"][0]["text"].split(), "zebra"}
    assert not [word for word in words if len(word) > 2 and word in everything]


def test_refused_and_failed_requests(tmp_path: Path) -> None:
    async def bad(http: httpx.AsyncClient) -> None:
        await http.post("/v1/completions", content=b"{secret", headers=HEADERS)

    async def good(http: httpx.AsyncClient) -> None:
        await http.post("/v1/completions", content=completion("w1 w2"), headers=HEADERS)

    async def stream(http: httpx.AsyncClient) -> None:
        await http.post("/v1/completions", content=completion("w1 w2", stream=True), headers=HEADERS)

    late: list[Any] = [
        [RowMark(0, phase, place) for place, phase in enumerate(PHASES, 1)],
        [TextPiece(0, "a", 1)],
        [RowEnd(0, "error", "secret")],
    ]
    cases: list[tuple[Use, list[Any], int, str, StatusCode]] = [
        (bad, [], 400, "invalid_json", StatusCode.UNSET),
        (good, [[Refusal("queue_full", "secret")]], 429, "queue_full", StatusCode.UNSET),
        (good, [[RowMark(0, "queue", 1)], [RowEnd(0, "error", "secret")]], 500, "engine_error", StatusCode.ERROR),
        (stream, late, 500, "engine_error", StatusCode.ERROR),
    ]
    for use, script, status, error, code in cases:
        (span,) = scripted(tmp_path, use, *script)
        found = attributes(span)
        assert (found["http.response.status_code"], found["error.type"]) == (status, error)
        assert span.status.status_code is code
        assert "secret" not in span.to_json()
    assert [event.name for event in span.events] == PHASES


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ([("traceparent", f"00-{TRACE}-{PARENT}-00")], 0),  # the client says that it is not to be recorded
        ([("traceparent", "no")], 1),
        ([("traceparent", f"00-{TRACE}-{PARENT}-00")] * 2, 1),  # two are none
        ([], 1),
    ],
)
def test_the_client_context(headers: list[tuple[str, str]], count: int, tmp_path: Path) -> None:
    async def use(http: httpx.AsyncClient) -> None:
        sent = [*headers, ("Content-Type", "application/json")]
        await http.post("/v1/completions", content=completion("w1"), headers=sent)

    spans = scripted(tmp_path, use, [RowMark(0, "queue", 1)], [TextPiece(0, "a", 1), RowEnd(0, "stop")])
    assert len(spans) == count
    assert all(span.parent is None for span in spans)


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


def test_a_collector_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20key")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        tracing = open_tracing(f"http://127.0.0.1:{collector.server_port}")
        model = SimpleNamespace(setup=SimpleNamespace(model="m"))
        asked: Any = SimpleNamespace(
            headers=Headers(), kind="chat", service=model, began_at=1, status=200, answer=None, marks=[]
        )
        tracing.record(asked)
        tracing.close()
        collector.shutdown()
    ((path, key, sent),) = Collector.taken
    assert (path, key) == ("/v1/traces", "Bearer key")
    (resource,) = sent.resource_spans
    named = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert (named["service.name"], named["deployment.environment.name"]) == ("lucid-deploy", "test")
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["chat m"]


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:4318", "grpc://localhost:4317", "http://", "http://a:b@c", "http://c?d"],
)
def test_what_is_no_collector_is_refused(endpoint: str) -> None:
    with pytest.raises(LucidError, match="otlp-endpoint"):
        open_tracing(endpoint)
