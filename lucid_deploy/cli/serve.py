"""The command ``lucid-deploy serve``: serve an artifact over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command, is_verbose
from lucid_deploy.cli._console import console_err, note
from lucid_deploy.cli._generation_options import SpeculationOptions, speculation_options
from lucid_deploy.cli._options import Decorator, NumberRange, artifact_argument, choice_option, runtime_options
from lucid_deploy.cli._sources import refuse_given
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.processors import usable_cores

if TYPE_CHECKING:
    from lucid_deploy.serving.engine import EngineOptions
    from lucid_deploy.serving.front import ApiOptions
    from lucid_deploy.serving.ray_cluster import ClusterOptions

LOCAL, RAY = "local", "ray"
ENGINE_OPTIONS = {  # options that only one value of --engine takes
    LOCAL: ("max_connections", "idle_timeout"),
    RAY: ("replicas", "min_replicas", "max_replicas", "replica_cpus", "replica_gpus", "ray_address"),
}
RUNTIME_FIELDS = ("runtime", "device", "provider", "kernels", "threads")
_NOT_IN_A_CONFIGURATION = ("host", "port", "engine", "ray_address", "allow_host")  # refused in Ray's configuration file


def _count(*names: str, low: int = 1, high: int | None = None, default: int | None = None, help: str) -> Decorator:
    kind = click.IntRange(low, high)
    return click.option(*names, type=kind, default=default, show_default=default is not None, help=help)


def _amount(name: str, default: float | None, help: str, above_zero: bool = False) -> Decorator:
    kind = NumberRange(0, min_open=above_zero)
    return click.option(name, type=kind, default=default, show_default=default is not None, help=help)


@click.command("serve", cls=Command)
@artifact_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every network.")
@_count("--port", low=0, high=65535, default=8000, help="Port; 0 is a free one.")
@runtime_options(*RUNTIME_FIELDS)
@_count("--rows", high=1024, default=8, help="Generations that run together.")
@_count("--max-queue", low=0, high=100_000, default=64, help="Further generations that may wait.")
@_count("--prefill-budget", default=32, help="Prompt tokens of a step in which others decode, or 6 per row if more.")
@_count(
    "--prefix-cache-tokens", "prefix_tokens", low=0, help="Tokens kept for reuse; default: 65536 or what 1 GiB holds."
)
@speculation_options
@_count("--max-prompt-tokens", help="Longest prompt; the model's context if not given.")
@_count("--max-new-tokens", help="Longest answer; the model's context if not given.")
@_count("--max-choices", high=1024, help="Most generations of a request, prompts times n; default: --rows less one.")
@_count("--max-body", "max_body_bytes", default=4 << 20, help="Largest request in bytes.")
@_count("--readers", high=64, default=2, help="Processes that parse bodies, render chat templates and tokenize.")
@_amount("--timeout", 300.0, "Seconds for a request, its time in the queue included.", above_zero=True)
@_count("--max-connections", high=100_000, help="Open connections; default: 2 × (--rows + --max-queue) + 100.")
@_amount("--idle-timeout", 30.0, "Seconds that a connection may be silent.", above_zero=True)
@_amount("--grace", 30.0, "Seconds that running requests get to finish after SIGTERM, SIGHUP or Ctrl-C.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare files' sha256 before loading.")
@click.option("--served-model-name", "model", metavar="NAME", help="Name in requests; default: the directory's.")
@click.option("--api-key-file", type=click.Path(), help="File of accepted API keys, one a line; # begins a comment.")
@click.option("--metrics-key-file", type=click.Path(), help="File of keys for /metrics, which then accepts no others.")
@click.option("--share-prefix-cache", "share_prefixes", is_flag=True, help="Reuse stored prefixes among API keys.")
@click.option("--ui/--no-ui", "pages", default=True, show_default=True, help="Pages for browsers: / to try it, /docs.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Without API keys: also answer under this name.")
@choice_option("--engine", [LOCAL, RAY], help="One process, or replicas on a Ray cluster.")
@_count("--replicas", help="With ray: engines; 1 if not given.")
@_count("--min-replicas", low=0, help="With ray: scale between this many engines …")
@_count("--max-replicas", help="With ray: … and this many, by load.")
@_amount("--replica-cpus", None, "With ray: processors that an engine reserves, and its threads; default: 1.")
@_amount("--replica-gpus", 0.0, "With ray: GPUs that an engine reserves.")
@click.option("--ray-address", metavar="ADDRESS", help="With ray: a running cluster; default: one on this machine.")
def command(artifact: str, **options: Any) -> None:
    """Serve an artifact over HTTP, as OpenAI's API.

    Answers /v1/completions, /v1/chat/completions, /v1/responses and /v1/models, /healthz and /metrics. Stops at
    SIGTERM, SIGHUP or Ctrl-C once running requests are done.

    Example: lucid-deploy serve ./artifact --port 8000
    """
    engine = options["engine"]
    _check_engine(click.get_current_context(), engine)
    for package in ("starlette", "uvicorn", "prometheus_client"):
        _check_package(package, "serve", "serve an artifact")
    from lucid_deploy.serving.security import is_loopback
    from lucid_deploy.serving.server import set_up_logging

    engine_options, api = _checked_options(artifact, options)
    host = options["host"]
    if not api.keys and not is_loopback(host):
        click.echo(
            f"WARNING: listening on {host} without API keys: everyone who reaches this port can use the model. "
            "Give keys with --api-key-file, or listen on 127.0.0.1.",
            err=True,
        )
    options["log_level"] = "debug" if is_verbose() else "warning" if console_err.quiet else "info"
    set_up_logging(options["log_level"])
    (_serve_on_ray if engine == RAY else _serve_here)(engine_options, api, options)


def _check_engine(context: click.Context, engine: str) -> None:
    other = RAY if engine == LOCAL else LOCAL
    reason = "; with ray, Ray's proxies handle the connections" if other == LOCAL else ""
    refuse_given(context, ENGINE_OPTIONS[other], f"is for --engine {other}{reason}")


def _check_package(package: str, extra: str, purpose: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise missing_extra(package.partition(".")[0], extra, purpose) from error


def _checked_options(artifact: str, options: dict[str, Any]) -> tuple[EngineOptions, ApiOptions]:
    """Return the engine's and the API's options, after checking what can be checked without loading a model."""
    from lucid_deploy.serving.engine import EngineOptions, open_checked
    from lucid_deploy.serving.front import ApiOptions, reader_setup
    from lucid_deploy.serving.security import ApiKeys, is_loopback, read_api_keys

    speculation = options["speculation"]
    speculation.check(open_checked(artifact))
    key_file, metrics_file = options["api_key_file"], options["metrics_key_file"]
    keys = ApiKeys() if key_file is None else read_api_keys(key_file)
    hosts = frozenset(name.lower() for name in options["allow_host"])
    engine = EngineOptions(
        artifact,
        speculate=speculation.mode,
        draft=speculation.draft,
        most_step_seconds=options["timeout"],
        share_queue=len(keys) > 1,
        **_fields_of(EngineOptions, options),
    )
    api = ApiOptions(
        seconds=options["timeout"],
        keys=keys,
        hosts=hosts if is_loopback(options["host"]) and not keys else None,
        metrics_keys=ApiKeys() if metrics_file is None else read_api_keys(metrics_file, "--metrics-key-file"),
        **_fields_of(ApiOptions, options),
    )
    reader_setup(engine, api)  # refuses a name that an adapter has
    if api.model is not None and not api.model.strip():
        raise LucidError("--served-model-name is empty. Name the model, or leave the option out.")
    if api.share_prefixes and not (api.keys and engine.prefix_tokens != 0):
        raise LucidError(
            "--share-prefix-cache shares stored prefixes among API keys: it needs --api-key-file, and more than 0 "
            "--prefix-cache-tokens."
        )
    if hosts and api.hosts is None:
        raise LucidError(
            "--allow-host is for a server without API keys that listens on this machine alone; any other server "
            "accepts every host name. Leave it out."
        )
    return engine, api


def _fields_of(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that have the names of a dataclass's fields."""
    return {field.name: options[field.name] for field in fields(kind) if field.name in options}


def _serve_here(engine: EngineOptions, api: ApiOptions, options: dict[str, Any]) -> None:
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.serving.front import Service, reader_setup
    from lucid_deploy.serving.jobs import make_backend
    from lucid_deploy.serving.server import bind, serve

    opened = bind(options["host"], options["port"])
    url = _url(options["host"], opened.getsockname()[1])

    async def run() -> None:
        backend = make_backend(engine)
        service = Service(api, reader_setup(engine, api), backend)
        limits = (options["grace"], options["max_connections"], options["idle_timeout"])
        await serve(service, backend.engine, opened, lambda: click.echo(f"Serving on {url}"), *limits)

    with opened:
        note(f"Loading {engine.directory}: {open_artifact(engine.directory).manifest.numbers}")
        asyncio.run(run())
    note("Stopped.")


def _serve_on_ray(engine: EngineOptions, api: ApiOptions, options: dict[str, Any]) -> None:
    _check_package("ray.serve", "ray", "serve on a Ray cluster")
    from lucid_deploy.serving.ray_cluster import serve_on_ray

    cluster = _cluster_options(options, here=options["ray_address"] is None)
    url = _url(options["host"], options["port"])
    serve_on_ray(engine, api, cluster, lambda: click.echo(f"Serving on {url}"))
    note("Stopped.")


def ray_application(args: dict[str, str]) -> Any:
    """Return the application for a configuration of Ray Serve, where this function is the ``import_path``.

    ``args["options"]`` is what would follow ``lucid-deploy serve`` on the command line, as one text.
    """
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.serving.ray_cluster import application

    if set(args) != {"options"}:
        raise LucidError(f"args must be options, the words of lucid-deploy serve, and nothing else, not {list(args)}.")
    try:
        context = command.make_context("serve", shlex.split(args["options"]))
    except (click.ClickException, ValueError) as error:
        reason = error.format_message() if isinstance(error, click.ClickException) else str(error)
        raise LucidError(f"options: {reason}") from error
    options = context.params
    refuse_given(context, _NOT_IN_A_CONFIGURATION, "cannot be set here; Ray's configuration sets it")
    _check_engine(context, RAY)
    options["runtime"] = RuntimeOptions(**{field: options[field] for field in RUNTIME_FIELDS})
    options["speculation"] = SpeculationOptions(options.pop("speculate"), options.pop("draft"))
    # Ray's proxies listen, and answer requests for any host name.
    options |= {"host": "0.0.0.0", "port": 0, "ray_address": None, "log_level": "info"}
    engine, api = _checked_options(options["artifact"], options)
    return application(engine, api, _cluster_options(options, here=False))


def _cluster_options(options: dict[str, Any], here: bool) -> ClusterOptions:
    """Return the options of a Ray cluster; ``here``: it runs on this machine, whose cores its engines divide."""
    from lucid_deploy.serving.ray_cluster import ClusterOptions

    fixed, low, high = options["replicas"], options["min_replicas"], options["max_replicas"]
    if fixed is not None and (low is not None or high is not None):
        raise LucidError("Give --replicas, or --min-replicas and --max-replicas, not both.")
    if (low is None) != (high is None):
        raise LucidError("--min-replicas and --max-replicas go together.")
    if low is None:
        low = high = fixed or 1
    if low > high:
        raise LucidError(f"--min-replicas {low} is more than --max-replicas {high}.")
    cpus, gpus, threads = options["replica_cpus"], options["replica_gpus"], 1
    if gpus > 1 and gpus != int(gpus):
        raise LucidError(f"--replica-gpus {gpus:g}: Ray reserves a part of one GPU, or whole ones.")
    if cpus is not None:
        threads = max(1, int(cpus))
    elif here:
        threads = max(1, usable_cores() // high)
    return ClusterOptions(
        options["host"],
        options["port"],
        options["ray_address"],
        low,
        high,
        cpus=1.0 if cpus is None else cpus,
        gpus=gpus,
        threads=None if gpus or cpus == 0 else threads,
        grace=options["grace"],
        log_level=options["log_level"],
    )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
