"""OpenTelemetry spans of requests; OpenTelemetry is imported only where tracing is turned on.

One span a request, a child of the client's by W3C's ``traceparent``, and under it one for each phase of each
generation. Attributes are those of OpenTelemetry's semantic conventions for generative AI, and ``lucid.*`` for what
they do not name. No attribute has text of a prompt, an answer or an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.serving.jobs import Event, RowEnd, RowTimes, TextPiece
from lucid_deploy.serving.requests import Kind, PreparedRequest
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

OTLP_PATH = "/v1/traces"
CLOSE_SECONDS = 5.0  # for the last spans, at the end of the server
OPERATIONS: dict[Kind, str] = {"completion": "text_completion", "chat": "chat", "response": "chat"}


def traces_url(endpoint: str) -> str:
    """Return where spans are sent, by the URL of a collector.

    Raises:
        LucidError: It is no such URL.
    """
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or parts.username is not None:
        raise LucidError(
            f"--otlp-endpoint {endpoint!r} is not the URL of a collector; give one such as http://localhost:4318, "
            "without query or password (OTEL_EXPORTER_OTLP_HEADERS takes credentials)."
        )
    base = endpoint.rstrip("/")
    return base if base.endswith(OTLP_PATH) else base + OTLP_PATH


def open_tracing(endpoint: str) -> Tracing:
    """Return what sends spans to a collector by OTLP over HTTP.

    Raises:
        LucidError: The endpoint is not a URL, or the packages are missing.
    """
    url = traces_url(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise missing_extra("opentelemetry", "otel", "send traces") from error
    ours = Resource({"service.name": "lucid-deploy", "service.version": __version__})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())  # the user's names win
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)


class Tracing:
    """Begins the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lucid_deploy.serving", __version__)

    def begin(self, headers: Sequence[tuple[bytes, bytes]], kind: Kind, model: str, started: float) -> RequestTrace:
        """Begin a request's span.

        Args:
            started: When it came, by :func:`time.perf_counter`.
        """
        from opentelemetry.trace import SpanKind

        attributes = {
            "gen_ai.operation.name": OPERATIONS[kind],
            "gen_ai.provider.name": "lucid-deploy",
            "gen_ai.request.model": model,
        }
        begun = _nanoseconds(started)
        span = self._tracer.start_span(
            f"{OPERATIONS[kind]} {model}",
            _context(headers),
            SpanKind.SERVER,
            attributes,
            start_time=begun,
        )
        return RequestTrace(self._tracer, span, started, begun)

    def close(self) -> None:
        """Send what is left, unless that takes too long."""
        ending = threading.Thread(target=self._provider.shutdown, name="lucid-traces", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


class RequestTrace:
    """The spans of one request.

    Args:
        started: When it came, by :func:`time.perf_counter`.
        begun: The same moment, in nanoseconds since 1970.
    """

    def __init__(self, tracer: Any, span: Span, started: float, begun: int) -> None:
        self._tracer = tracer
        self._span = span
        self._started, self._begun = started, begun
        self._request: PreparedRequest | None = None
        self._read = 0
        self._times: dict[int, RowTimes] = {}
        self._tokens: dict[int, int] = {}
        self._reasons: dict[int, str] = {}
        self._error = ""

    def prepared(self, request: PreparedRequest) -> None:
        """Note what is asked for, once the body is read."""
        self._request, self._read = request, time.time_ns()
        self._span.set_attributes(_asked(request))

    def answering(self, answer: str) -> None:
        """Note the id of the answer."""
        self._span.set_attribute("gen_ai.response.id", answer)

    def take(self, events: Sequence[Event]) -> None:
        """Note what came from the engine."""
        for event in events:
            if isinstance(event, RowTimes):
                self._times[event.row] = event
            elif isinstance(event, RowEnd):
                self._reasons[event.row] = event.reason
            elif isinstance(event, TextPiece) and event.tokens:
                if not self._tokens:
                    seconds = time.perf_counter() - self._started
                    self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
                self._tokens[event.row] = self._tokens.get(event.row, 0) + event.tokens

    def fail(self, code: str) -> None:
        """Note an error, by its code."""
        self._error = code

    def end(self, status: int) -> None:
        """End the request's span and make those of its phases."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        now = time.time_ns()
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attributes(self._answered())
        if status >= 400 or self._error:
            self._span.set_attribute("error.type", self._error or str(status))
        if status >= 500:  # by the conventions, 4xx is no error of a server
            self._span.set_status(Status(StatusCode.ERROR))
        if self._span.is_recording():
            parent = set_span_in_context(self._span)
            if self._read:
                self._phase("read", parent, self._begun, self._read, {})
            for times in self._times.values():
                self._row(parent, times, now)
        self._span.end(now)

    def _row(self, parent: Context, times: RowTimes, now: int) -> None:
        """Make the spans of one generation; a phase that did not end lasts until the request does."""
        assert self._request is not None  # it came before any event
        job = self._request.job
        row, ended = {"lucid.row": times.row}, times.ended or now
        self._phase("queue", parent, times.queued, times.prefill or ended, row)
        if times.prefill:
            counts = {"lucid.prompt_tokens": len(job.prompts[times.row // job.n]), "lucid.reused_tokens": times.reused}
            self._phase("prefill", parent, times.prefill, times.decode or ended, {**row, **counts})
        if times.decode:
            new = {"lucid.new_tokens": self._tokens.get(times.row, 0)}
            self._phase("decode", parent, times.decode, ended, {**row, **new})
        if times.text_began:
            spent = {"lucid.seconds_spent": times.text_spent / 1e9}
            self._phase("detokenize", parent, times.text_began, times.text_ended, {**row, **spent})

    def _phase(self, name: str, parent: Context, begin: int, end: int, attributes: dict[str, Any]) -> None:
        self._tracer.start_span(name, parent, attributes=attributes, start_time=begin).end(max(begin, end))

    def _answered(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self._request is not None and self._times:
            out["gen_ai.usage.input_tokens"] = self._request.prompt_tokens
            out["gen_ai.usage.output_tokens"] = sum(self._tokens.values())
            out["gen_ai.usage.cache_read.input_tokens"] = sum(times.reused for times in self._times.values())
        if self._reasons:
            out["gen_ai.response.finish_reasons"] = [self._reasons[row] for row in sorted(self._reasons)]
        return out


def _asked(request: PreparedRequest) -> dict[str, Any]:
    """Return the attributes of what a request asks for. Stops, biases and words have text of the client's: left out."""
    job, sampling = request.job, request.job.sampling
    out: dict[str, Any] = {
        "gen_ai.request.max_tokens": job.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.stream": request.stream,
        "gen_ai.request.choice.count": job.n,
    }
    return out if sampling.seed is None else {**out, "gen_ai.request.seed": sampling.seed}


def _context(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """Return the client's context; an empty one if it sent none, or more than one, as W3C has it."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    def sent(name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in headers if key.lower() == name]

    parents = sent(b"traceparent")
    if len(parents) != 1:
        return Context()
    carrier = {"traceparent": parents[0], "tracestate": ",".join(sent(b"tracestate"))}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _nanoseconds(moment: float) -> int:
    """Return a moment by :func:`time.perf_counter` as nanoseconds since 1970."""
    return time.time_ns() - round(1e9 * (time.perf_counter() - moment))
