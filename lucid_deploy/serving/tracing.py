"""OpenTelemetry spans: one a request, a child of the client's ``traceparent``, with one for each phase of a generation.

They are made when a request has ended. OpenTelemetry is imported only where tracing is turned on. Attributes are those
of its conventions for generative AI, and ``lucid.*`` for what they do not name. No attribute has text of a prompt, an
answer or an error.
"""

from __future__ import annotations

import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.serving.jobs import RowMark
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from lucid_deploy.serving.front import Exchange

OTLP_PATH = "/v1/traces"
PHASES = ("queue", "prefill", "decode", "end")  # of a generation
SAMPLING = ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed")


def open_tracing(endpoint: str) -> Tracing:
    """Return what sends spans to a collector by OTLP over HTTP."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", endpoint):
        raise LucidError(
            f"--otlp-endpoint {endpoint!r} is not the URL of a collector; give one such as http://localhost:4318, "
            "without query or password (OTEL_EXPORTER_OTLP_HEADERS takes credentials)."
        )
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
    url = endpoint.rstrip("/").removesuffix(OTLP_PATH) + OTLP_PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)


class Tracing:
    """Makes the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lucid_deploy.serving", __version__)

    def record(self, exchange: Exchange) -> None:
        """Make the spans of a request that has ended."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        now, context = time.time_ns(), Context()
        if len(exchange.headers.getlist("traceparent")) == 1:  # several count as none, as W3C has it
            context = TraceContextTextMapPropagator().extract(exchange.headers, context)
        name = "text_completion" if exchange.kind == "completion" else "chat"
        model = exchange.service.setup.model
        span = self._tracer.start_span(f"{name} {model}", context, SpanKind.SERVER, start_time=exchange.began_at)
        facts = {"operation.name": name, "provider.name": "lucid-deploy", "request.model": model, **_facts(exchange)}
        span.set_attributes({f"gen_ai.{key}": value for key, value in facts.items()})
        span.set_attribute("http.response.status_code", exchange.status)
        if exchange.status >= 400:
            span.set_attribute("error.type", exchange.error or str(exchange.status))
        if exchange.status >= 500:  # by the conventions, 4xx is not a server error
            span.set_status(StatusCode.ERROR)
        if exchange.answer is not None:
            parent = set_span_in_context(span)
            self._phase("read", parent, exchange.began_at, exchange.read_at, {})
            self._phases(exchange, parent, now)
        span.end(now)

    def _phases(self, exchange: Exchange, parent: Context, now: int) -> None:
        """Make the spans of all generations; a phase that did not end lasts until the request does."""
        assert exchange.answer is not None
        job, rows = exchange.answer.request.job, dict[int, dict[str, RowMark]]()
        for mark in exchange.marks:  # of a phase that a generation entered twice, the latest counts
            rows.setdefault(mark.row, {})[mark.phase] = mark
        for row, marks in rows.items():
            for phase, following in pairwise(PHASES):
                if phase not in marks:
                    continue
                attributes = {"lucid.row": row}
                if phase == "prefill":
                    attributes |= {"lucid.prompt_tokens": len(job.prompts[row // job.n])}
                    attributes |= {"lucid.reused_tokens": marks[phase].reused}
                end = marks.get(following, marks.get("end"))
                self._phase(phase, parent, marks[phase].at, now if end is None else end.at, attributes)

    def _phase(self, name: str, parent: Context, begin: int, end: int, attributes: dict[str, Any]) -> None:
        self._tracer.start_span(name, parent, attributes=attributes, start_time=begin).end(max(begin, end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _facts(exchange: Exchange) -> dict[str, Any]:
    """Return attributes of a request; not stops, biases and bad words, which are the client's text."""
    answer, facts = exchange.answer, dict[str, Any]()
    if answer is None:
        return facts
    job = answer.request.job
    given = {name: value for name in SAMPLING if (value := getattr(job.sampling, name)) is not None}
    given |= {"max_tokens": job.max_new_tokens, "stream": answer.request.stream, "choice.count": job.n}
    facts = {f"request.{name}": value for name, value in given.items()}
    facts["response.id"] = answer.id
    if exchange.reasons:
        facts["response.finish_reasons"] = [reason for _, reason in sorted(exchange.reasons.items())]
    if exchange.first_token is not None:
        facts["response.time_to_first_chunk"] = exchange.first_token
    if exchange.marks:
        facts["usage.input_tokens"] = answer.request.prompt_tokens
        facts["usage.output_tokens"] = answer.new_tokens
        facts["usage.cache_read.input_tokens"] = sum(mark.reused for mark in exchange.marks)
    return facts
