"""OpenTelemetry: one span a request, a child of the client's ``traceparent``, with an event for each phase.

Spans are made when a request has ended; OpenTelemetry is imported only where tracing is turned on. Attributes are those
of its conventions for generative AI, and ``lucid.*`` for what they do not name. None has text of a prompt, an answer or
an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from lucid_deploy.serving.front import Exchange


def open_tracing(endpoint: str) -> TracerProvider:
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
    ours = {"service.name": "lucid-deploy", "service.version": __version__}
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())  # the user's names win
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    url = endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


def record(provider: TracerProvider, exchange: Exchange) -> None:
    """Make the span of a request that has ended."""
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    name = "text_completion" if exchange.kind == "completion" else "chat"
    model, answer = exchange.service.setup.models[0], exchange.answer
    found: dict[str, Any] = {"operation.name": name, "provider.name": "lucid-deploy", "request.model": model}
    if answer is not None:  # its attributes have no stops, biases and bad words, which are the client's text
        found["request.max_tokens"] = answer.job.request.max_new_tokens
        found["request.temperature"] = answer.job.request.sampling.temperature
        found["request.stream"] = answer.job.stream
        found["request.choice.count"] = answer.job.n
        found["response.id"] = answer.id
        found["response.finish_reasons"] = [reason for _, reason in sorted(exchange.reasons.items())]
        found["usage.input_tokens"] = answer.job.prompt_tokens
        found["usage.output_tokens"] = answer.new_tokens
    if exchange.first_token is not None:
        found["response.time_to_first_chunk"] = exchange.first_token
    attributes = {f"gen_ai.{key}": value for key, value in found.items()}
    attributes["http.response.status_code"] = exchange.status
    if exchange.status >= 400:
        attributes["error.type"] = exchange.error or str(exchange.status)
    tracer = provider.get_tracer("lucid_deploy.serving", __version__)
    context = TraceContextTextMapPropagator().extract(exchange.headers, Context())
    span = tracer.start_span(f"{name} {model}", context, SpanKind.SERVER, attributes, None, exchange.began_at)
    for mark in exchange.marks:
        span.add_event(mark.phase, {"lucid.row": mark.request, "lucid.reused_tokens": mark.reused}, mark.at)
    if exchange.status >= 500:  # by the conventions, 4xx is not a server error
        span.set_status(StatusCode.ERROR)
    span.end()
