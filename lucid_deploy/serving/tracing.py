"""OpenTelemetry spans: one a request, a child of the client's ``traceparent``, with one for each phase of a generation.

OpenTelemetry is imported only where tracing is turned on. Attributes are those of its conventions for generative AI,
and ``lucid.*`` for what they do not name. No attribute has text of a prompt, an answer or an error.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.jobs import Event, Job, RowEnd, RowTimes
from lucid_deploy.serving.requests import Kind, PreparedRequest
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

OTLP_PATH = "/v1/traces"
OPERATIONS: dict[Kind, str] = {"completion": "text_completion", "chat": "chat", "response": "chat"}
SAMPLING = ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed")


def traces_url(endpoint: str) -> str:
    """Return the URL that spans are sent to, given the URL of a collector."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", endpoint):
        raise LucidError(
            f"--otlp-endpoint {endpoint!r} is not the URL of a collector; give one such as http://localhost:4318, "
            "without query or password (OTEL_EXPORTER_OTLP_HEADERS takes credentials)."
        )
    return endpoint.rstrip("/").removesuffix(OTLP_PATH) + OTLP_PATH


def open_tracing(endpoint: str) -> Tracing:
    """Return what sends spans to a collector by OTLP over HTTP."""
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

    def begin(self, headers: Headers, kind: Kind, model: str, started: float) -> RequestTrace:
        """Begin the span of a request that came at ``started``, by :func:`time.perf_counter`."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = Context()
        if len(headers.getlist("traceparent")) == 1:  # several count as none, as W3C has it
            context = TraceContextTextMapPropagator().extract(headers, context)
        begun = time.time_ns() - round(1e9 * (time.perf_counter() - started))
        name = OPERATIONS[kind]
        span = self._tracer.start_span(f"{name} {model}", context, SpanKind.SERVER, start_time=begun)
        facts = {"operation.name": name, "provider.name": "lucid-deploy", "request.model": model}
        span.set_attributes({f"gen_ai.{key}": value for key, value in facts.items()})
        return RequestTrace(self._tracer, span, begun)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestTrace:
    """The spans of one request, which began at ``begun``, in nanoseconds since 1970."""

    def __init__(self, tracer: Any, span: Any, begun: int) -> None:
        self._tracer, self._span, self._begun = tracer, span, begun
        self._request: PreparedRequest | None = None
        self._read = 0  # when the body was read
        self._times: dict[int, RowTimes] = {}
        self._tokens: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}

    def prepared(self, request: PreparedRequest, answer: str) -> None:
        """Note the request once its body is read; not stops, biases and bad words, which are the client's text."""
        self._request, self._read = request, time.time_ns()
        job = request.job
        given = {name: value for name in SAMPLING if (value := getattr(job.sampling, name)) is not None}
        given |= {"max_tokens": job.max_new_tokens, "stream": request.stream, "choice.count": job.n}
        self._span.set_attributes({f"gen_ai.request.{name}": value for name, value in given.items()})
        self._span.set_attribute("gen_ai.response.id", answer)

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, RowTimes):
                self._times[event.row] = event
            elif isinstance(event, RowEnd):
                self._reasons[event.row] = event.reason
            elif isinstance(event, TextPiece) and event.tokens:
                if not self._tokens:
                    seconds = (time.time_ns() - self._begun) / 1e9
                    self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
                self._tokens[event.row] += event.tokens

    def end(self, status: int, error: str) -> None:
        """End the request's span and make those of its phases; ``error`` is the code of one that the client got."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        now, span, request = time.time_ns(), self._span, self._request
        span.set_attribute("http.response.status_code", status)
        if status >= 400:
            span.set_attribute("error.type", error or str(status))
        if status >= 500:  # by the conventions, 4xx is not a server error
            span.set_status(StatusCode.ERROR)
        if self._reasons:
            reasons = [self._reasons[row] for row in sorted(self._reasons)]
            span.set_attribute("gen_ai.response.finish_reasons", reasons)
        if request is not None:
            parent = set_span_in_context(span)
            self._phase("read", parent, self._begun, self._read, {})
            for times in self._times.values():
                self._row(parent, times, request.job, now)
            if self._times:
                counts = {"input": request.prompt_tokens, "output": self._tokens.total()}
                counts["cache_read.input"] = sum(times.reused for times in self._times.values())
                span.set_attributes({f"gen_ai.usage.{name}_tokens": count for name, count in counts.items()})
        span.end(now)

    def _row(self, parent: Context, times: RowTimes, job: Job, now: int) -> None:
        """Make the spans of one generation; a phase that did not end lasts until the request does."""
        row, at = times.row, times.at
        prompt = {"lucid.prompt_tokens": len(job.prompts[row // job.n]), "lucid.reused_tokens": times.reused}
        phases: list[tuple[str, str, str, dict[str, Any]]] = [
            ("queue", "queue", "prefill", {}),
            ("prefill", "prefill", "decode", prompt),
            ("decode", "decode", "end", {"lucid.new_tokens": self._tokens[row]}),
            ("detokenize", "text", "text_end", {"lucid.seconds_spent": at.get("text_spent", 0) / 1e9}),
        ]
        for name, begin, end, attributes in phases:
            if begin in at:
                last = at.get(end, at.get("end", now))
                self._phase(name, parent, at[begin], last, {"lucid.row": row, **attributes})

    def _phase(self, name: str, parent: Context, begin: int, end: int, attributes: dict[str, Any]) -> None:
        self._tracer.start_span(name, parent, attributes=attributes, start_time=begin).end(max(begin, end))
