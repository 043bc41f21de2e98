"""``lucid-deploy serve``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._engine_options import LOCAL, RAY, EngineOption, check_engine
from lucid_deploy.cli._generation_options import SpeculationOptions, speculation_options
from lucid_deploy.cli._options import NumberRange, artifact_argument, choice_option, runtime_options
from lucid_deploy.cli._sources import is_given, long_name, origins

if TYPE_CHECKING:
    from lucid_deploy.serving.loading import ApiOptions, EngineOptions


RUNTIME_FIELDS = ("runtime", "device", "provider", "kernels", "threads")
_NOT_IN_A_CONFIGURATION = ("host", "port", "engine", "ray_address", "allow_host")  # beside what is for LOCAL alone


@click.command("serve", cls=Command)
@artifact_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 is a free one.")
@runtime_options(*RUNTIME_FIELDS)
@click.option(
    "--rows", type=click.IntRange(1, 1024), default=8, show_default=True, help="Generations that run together."
)
@click.option(
    "--max-queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    help="Further generations that may wait.",
)
@click.option("--prefill-chunk", type=click.IntRange(1), default=512, show_default=True, help="Prompt tokens per step.")
@click.option(
    "--prefix-cache-tokens", type=click.IntRange(0), default=0, show_default=True, help="Prompt tokens kept for reuse."
)
@speculation_options
@click.option("--max-prompt-tokens", type=click.IntRange(1), help="Longest prompt; the model's context if not given.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer; the model's context if not given.")
@click.option(
    "--max-choices",
    type=click.IntRange(1, 1024),
    help="Most generations of one request, its prompts times n; one less than --rows if not given.",
)
@click.option(
    "--max-body", type=click.IntRange(1), default=4 << 20, show_default=True, help="Largest request in bytes."
)
@click.option(
    "--readers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Processes that parse bodies, render chat templates and tokenize.",
)
@click.option(
    "--timeout",
    type=NumberRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds for a request, its time in the queue included.",
)
@click.option(
    "--max-connections",
    cls=EngineOption,
    engine=LOCAL,
    type=click.IntRange(1, 100_000),
    help="Open connections; twice --rows and --max-queue and 100 more if not given.",
)
@click.option(
    "--idle-timeout",
    cls=EngineOption,
    engine=LOCAL,
    type=NumberRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that a connection may be silent.",
)
@click.option(
    "--grace",
    type=NumberRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running requests get to finish after SIGTERM, SIGHUP or Ctrl-C.",
)
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Compare the sha256 of every file before loading."
)
@click.option("--served-model-name", metavar="NAME", help="Name in requests; the artifact directory's if not given.")
@click.option("--api-key-file", type=click.Path(), help="Keys that may ask, one a line; # begins a comment.")
@click.option(
    "--metrics-key-file",
    type=click.Path(),
    help="Keys that may read /metrics; no other key may then, and counts are exact.",
)
@click.option("--share-prefix-cache", is_flag=True, help="Reuse stored prefixes among different API keys.")
@click.option("--ui/--no-ui", default=True, show_default=True, help="Serve pages for browsers: / to try it, /docs.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Without API keys: a further name that the Host header may have; may be repeated.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least important message to log to stderr; info has a line per request.  [default: info; warning with "
    "--quiet, debug with --verbose]",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="OpenTelemetry collector that gets a span per request and phase (OTLP over HTTP), as http://localhost:4318.",
)
@choice_option("--engine", [LOCAL, RAY], help="One process, or replicas on a Ray cluster.")
@click.option(
    "--replicas", cls=EngineOption, engine=RAY, type=click.IntRange(1), help="With ray: engines; 1 if not given."
)
@click.option(
    "--min-replicas",
    cls=EngineOption,
    engine=RAY,
    type=click.IntRange(0),
    help="With ray: scale between this many engines …",
)
@click.option(
    "--max-replicas", cls=EngineOption, engine=RAY, type=click.IntRange(1), help="With ray: … and this many, by load."
)
@click.option(
    "--replica-cpus",
    cls=EngineOption,
    engine=RAY,
    type=NumberRange(0),
    help="With ray: processors that an engine reserves, and threads that it computes with; 1 if not given, and on this "
    "machine's own cluster a share of its cores as threads.",
)
@click.option(
    "--replica-gpus",
    cls=EngineOption,
    engine=RAY,
    type=NumberRange(0),
    default=0.0,
    show_default=True,
    help="With ray: GPUs that an engine reserves.",
)
@click.option(
    "--ray-address",
    cls=EngineOption,
    engine=RAY,
    metavar="ADDRESS",
    help="With ray: a running cluster; one on this machine if not given.",
)
def command(artifact: str, engine: str, log_level: str | None, **options: Any) -> None:
    """Serve an artifact over HTTP, as OpenAI's API.

    Answers /v1/completions, /v1/chat/completions and /v1/models, /healthz and /metrics. Stops at SIGTERM, SIGHUP or
    Ctrl-C once running requests are done.

    Example: lucid-deploy serve ./artifact --port 8000
    """
    check_engine(click.get_current_context(), engine)
    _check_extra()
    _check_tracing(options["otlp_endpoint"])
    from lucid_deploy.serving.logs import set_up_logging

    engine_options, api = _checked_options(artifact, options)
    _warn_if_open(options["host"], bool(api.keys))
    log_level = log_level or _log_level()
    set_up_logging(log_level)
    if engine == RAY:
        _serve_on_ray(engine_options, api, log_level, options)
    else:
        _serve_here(engine_options, api, options)


def _checked_options(artifact: str, options: dict[str, Any]) -> tuple[EngineOptions, ApiOptions]:
    """Return what is to be served and how, after what can be checked without loading a model.

    Raises:
        LucidError: The artifact cannot be served so, or an option would have no effect.
    """
    from lucid_deploy.errors import LucidError
    from lucid_deploy.serving.loading import check_limits, open_checked

    opened = open_checked(artifact)
    options["speculation"].check(opened)
    engine, api = _engine_options(artifact, options), _api_options(options)
    check_limits(opened, api)
    if api.model is not None and not api.model.strip():
        raise LucidError("--served-model-name is empty. Name the model, or leave the option out.")
    if api.share_prefixes and not (api.keys and engine.prefix_tokens):
        raise LucidError(
            "--share-prefix-cache shares stored prefixes among API keys: it needs --prefix-cache-tokens and "
            "--api-key-file. Give both, or leave it out."
        )
    if options["allow_host"] and api.hosts is None:
        raise LucidError(
            "--allow-host is for a server without API keys that listens on this machine alone; any other one answers "
            "under every name. Leave it out."
        )
    return engine, api


def _log_level() -> str:
    from lucid_deploy.cli._command import is_verbose
    from lucid_deploy.cli._console import console_err

    return "debug" if is_verbose() else "warning" if console_err.quiet else "info"


def _check_extra() -> None:
    from lucid_deploy.errors import missing_extra

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_extra(package, "serve", "serve an artifact") from error


def _check_tracing(endpoint: str | None) -> None:
    """Refuse a wrong URL, or say what is to be installed, before anything is loaded."""
    if endpoint is not None:
        from lucid_deploy.serving.tracing import open_tracing

        open_tracing(endpoint).close()


def _engine_options(artifact: str, options: dict[str, Any]) -> EngineOptions:
    from lucid_deploy.serving.loading import EngineOptions

    return EngineOptions(
        artifact,
        options["runtime"],
        options["rows"],
        options["max_queue"],
        options["prefill_chunk"],
        options["prefix_cache_tokens"],
        options["check"],
        options["speculation"].mode,
        options["speculation"].draft,
        options["timeout"],
    )


def _api_options(options: dict[str, Any]) -> ApiOptions:
    from lucid_deploy.serving.loading import ApiOptions
    from lucid_deploy.serving.security import ApiKeys, is_loopback, read_api_keys

    keys = ApiKeys() if options["api_key_file"] is None else read_api_keys(options["api_key_file"])
    metrics = options["metrics_key_file"]
    names = frozenset(name.lower() for name in options["allow_host"])
    return ApiOptions(
        options["served_model_name"],
        options["max_prompt_tokens"],
        options["max_new_tokens"],
        options["max_choices"],
        options["max_body"],
        options["timeout"],
        options["readers"],
        keys,
        names if is_loopback(options["host"]) and not keys else None,
        ApiKeys() if metrics is None else read_api_keys(metrics, "--metrics-key-file"),
        options["share_prefix_cache"],
        options["ui"],
        options["otlp_endpoint"],
    )


def _warn_if_open(host: str, has_keys: bool) -> None:
    from lucid_deploy.serving.security import is_loopback

    if not has_keys and not is_loopback(host):
        click.echo(
            f"WARNING: listening on {host} without API keys: everyone who reaches this port can use the model. "
            "Give keys with --api-key-file, or listen on 127.0.0.1.",
            err=True,
        )


def _serve_here(engine: EngineOptions, api: ApiOptions, options: dict[str, Any]) -> None:
    from lucid_deploy.cli._console import note
    from lucid_deploy.serving.backend import LocalBackend
    from lucid_deploy.serving.loading import make_backend, make_service
    from lucid_deploy.serving.server import ListenOptions, bind, serve
    from lucid_deploy.serving.service import Service

    opened = bind(options["host"], options["port"])
    url = _url(options["host"], opened.getsockname()[1])

    def make() -> tuple[Service, LocalBackend]:
        backend = make_backend(engine)
        return make_service(engine, api, backend), backend

    with opened:
        note(f"Loading {engine.directory}")
        listening = ListenOptions(opened, options["grace"], options["max_connections"], options["idle_timeout"])
        serve(make, listening, lambda: click.echo(f"Serving on {url}"))
    note("Stopped.")


def _serve_on_ray(engine: EngineOptions, api: ApiOptions, log_level: str, options: dict[str, Any]) -> None:
    from lucid_deploy.cli._console import note
    from lucid_deploy.errors import missing_extra

    try:
        from ray import serve as _serve  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise missing_extra("ray", "ray", "serve on a Ray cluster") from error
    from lucid_deploy.serving.ray_cluster import ClusterOptions, serve_on_ray

    url = _url(options["host"], options["port"])
    cluster = ClusterOptions(
        options["host"],
        options["port"],
        options["ray_address"],
        *_scale(options, here=options["ray_address"] is None),
        options["grace"],
        log_level,
    )
    serve_on_ray(engine, api, cluster, lambda: click.echo(f"Serving on {url}"))
    note("Stopped.")


def ray_application(args: dict[str, str]) -> Any:
    """Return the application for a configuration of Ray Serve, where this function is the ``import_path``.

    Args:
        args: ``options``: the words of ``lucid-deploy serve`` behind its name.

    Raises:
        LucidError: The options cannot be read, are not for this place, or the artifact cannot be served.
    """
    from lucid_deploy.errors import LucidError
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.serving.ray_cluster import ClusterOptions, application

    if set(args) != {"options"}:
        raise LucidError(f"args must be options, the words of lucid-deploy serve, and nothing else, not {list(args)}.")
    try:
        context = command.make_context("serve", shlex.split(args["options"]))
    except (click.ClickException, ValueError) as error:
        reason = error.format_message() if isinstance(error, click.ClickException) else str(error)
        raise LucidError(f"options: {reason}") from error
    options = context.params
    for option in command.params:
        if option.name in _NOT_IN_A_CONFIGURATION and is_given(context, option.name):
            reason = f"has no meaning here; Ray's configuration says it.{origins(context, [option])}"
            raise LucidError(f"options: {long_name(option)} {reason}")
    check_engine(context, RAY)
    options["runtime"] = RuntimeOptions(**{field: options[field] for field in RUNTIME_FIELDS})
    options["speculation"] = SpeculationOptions(options["speculate"], options["draft"])
    options["host"] = "0.0.0.0"  # under any name: Ray's proxies listen
    engine, api = _checked_options(options["artifact"], options)
    level = options["log_level"] or "info"
    scale = _scale(options, here=False)
    return application(engine, api, ClusterOptions("0.0.0.0", 0, None, *scale, options["grace"], level))


def _scale(options: dict[str, Any], here: bool) -> tuple[int, int, float, float, int | None]:
    """Return how many engines at least and at most, the processors and GPUs of each, and its threads.

    Args:
        options: The command's.
        here: Whether all engines run on this machine, and nothing else does.
    """
    from lucid_deploy.errors import LucidError
    from lucid_deploy.processors import usable_cores

    gpus = options["replica_gpus"]
    if gpus > 1 and gpus != int(gpus):
        raise LucidError(f"--replica-gpus {gpus:g}: Ray reserves a part of one GPU, or whole ones.")
    low, high = _replicas(options)
    cpus, threads = options["replica_cpus"], 1
    if cpus is not None:
        threads = max(1, int(cpus))
    elif here:
        threads = max(1, usable_cores() // high)
    return low, high, 1.0 if cpus is None else cpus, gpus, None if gpus or cpus == 0 else threads


def _replicas(options: dict[str, Any]) -> tuple[int, int]:
    """Return the least and the most engines."""
    from lucid_deploy.errors import LucidError

    fixed, low, high = options["replicas"], options["min_replicas"], options["max_replicas"]
    if fixed is not None and (low is not None or high is not None):
        raise LucidError("Give --replicas, or --min-replicas and --max-replicas, not both.")
    if (low is None) != (high is None):
        raise LucidError("--min-replicas and --max-replicas go together.")
    if low is None:
        return fixed or 1, fixed or 1
    if low > high:
        raise LucidError(f"--min-replicas {low} is more than --max-replicas {high}.")
    return low, high


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
