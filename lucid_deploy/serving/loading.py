"""From the options of ``lucid-deploy serve`` to an application with an engine."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact import MANIFEST, Artifact, check_hashes, open_artifact
from lucid_deploy.artifact.read import ArtifactWatch
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.serving.engine import Backend, Engine, LocalBackend
from lucid_deploy.serving.readers import ReaderPool, ReaderSetup
from lucid_deploy.serving.requests import Limits
from lucid_deploy.serving.security import NO_KEYS, ApiKeys
from lucid_deploy.serving.tracing import open_tracing

if TYPE_CHECKING:
    from lucid_deploy.batching import Batcher
    from lucid_deploy.serving.front import Service

DEFAULTS = RuntimeOptions()
log = logging.getLogger("lucid_deploy.serving")
LEAST_CHARACTERS = 16  # per token of the longest prompt: some tokenizers drop blanks, or take any word as unknown


@dataclass(frozen=True)
class EngineOptions:
    """What runs the model, and how much of it at once."""

    directory: str  # the artifact's
    runtime: RuntimeOptions = DEFAULTS  # what runs it
    rows: int = 8  # generations that run at once
    max_queue: int = 64  # generations that may wait beyond them
    prefill_chunk: int = 512  # tokens of a prompt that run between two steps of the others
    prefix_tokens: int = 0  # tokens of finished prompts kept for reuse; 0: none
    check: bool = True  # whether the hashes of all files are compared before the model is loaded
    speculate: str = "off"  # how drafts are made, see :func:`~lucid_deploy.generation.drafting.open_drafters`
    draft: str | None = None  # artifact of the draft model, with ``draft``
    most_step_seconds: float = 300.0  # a step of the model that takes longer fails health checks


@dataclass(frozen=True)
class ApiOptions:
    """What requests may ask for, and who may send them."""

    model: str | None = None  # the served name; None: the directory's name
    max_prompt_tokens: int | None = None  # of one prompt; None: what the context allows
    max_new_tokens: int | None = None  # of one generation; None: what the context allows
    max_choices: int | None = None  # generations of one request; None: one less than run at once
    max_body_bytes: int = 4 << 20  # size of a request
    seconds: float = 300.0  # from a request's first byte to its answer's last
    readers: int = 2  # processes that read bodies
    keys: ApiKeys = NO_KEYS  # who may send requests
    hosts: frozenset[str] | None = None  # names besides this machine's under which it answers; None: any
    metrics_keys: ApiKeys = NO_KEYS  # who may read exact metrics
    share_prefixes: bool = False  # whether stored prefixes are reused among different keys
    pages: bool = True  # whether the pages for browsers are served
    otlp_endpoint: str | None = None  # URL of the collector that gets spans; None: there are none


def open_checked(directory: str) -> Artifact:
    """Open the artifact that is to be served; cheap, before anything starts."""
    artifact = open_artifact(directory)
    if not (artifact.directory / "tokenizer.json").is_file():
        raise LucidError(f"{directory} has no tokenizer.json, without which no text can be served; export it with one.")
    return artifact


def check_runtime(options: EngineOptions, here: bool) -> None:
    """Check, before engines are started elsewhere, that their runtime takes the artifacts."""
    from lucid_deploy.runtimes.open import check_fits

    for directory in filter(None, (options.directory, options.draft)):
        check_fits(open_artifact(directory), options.runtime, here)


def check_limits(artifact: Artifact, api: ApiOptions) -> None:
    """Refuse limits that are larger than the model's context."""
    context = artifact.config.max_position_embeddings
    for option, tokens in (("--max-prompt-tokens", api.max_prompt_tokens), ("--max-new-tokens", api.max_new_tokens)):
        if tokens is not None and tokens > context:
            raise LucidError(
                f"{option} {tokens} is more than the context of {artifact.directory}, {context} tokens for prompt and "
                "answer together. Give less, or leave it out."
            )


def make_engine(options: EngineOptions) -> Engine:
    """Return an engine that loads the artifacts when it is started, and ends when their files change."""
    watches: list[ArtifactWatch] = []

    def open_batcher() -> Batcher:
        from lucid_deploy.batching import Batcher
        from lucid_deploy.generation.drafting import check_drafters, open_drafters
        from lucid_deploy.runtimes import open_session

        artifact = open_checked(options.directory)
        draft = check_drafters(options.speculate, artifact, options.draft)
        for each in [artifact] if draft is None else [artifact, draft]:
            watches.append(ArtifactWatch(each))  # before its weights are read: what changes in between is noticed
            if options.check:
                check_and_tell(each)
        drafters = open_drafters(options.speculate, artifact, options.draft, options.runtime)
        session = open_session(artifact, options.runtime)
        tokenizer, config = TextTokenizer(artifact.directory), session.config
        guides = None  # without the library for it nothing holds answers to constraints
        if find_spec("llguidance") is not None:
            guides = GuideFactory(tokenizer, config.vocab_size, list(config.eos_token_ids))
        return Batcher(session, options.rows, options.prefill_chunk, options.prefix_tokens, guides, drafters)

    def check() -> None:
        for watch in watches:
            watch.check()

    return Engine(open_batcher, options.rows, options.max_queue, check)


def check_and_tell(artifact: Artifact) -> None:
    """Compare the hashes of all files, and log what that took."""
    began = time.perf_counter()
    check_hashes(artifact)
    size = sum(facts["size"] for facts in artifact.manifest.files.values())
    log.info("Hashes of %.1f MiB checked in %.1f s.", size / 2**20, time.perf_counter() - began)


def make_backend(options: EngineOptions) -> LocalBackend:
    """Return a backend in this process, not started."""
    tokenizer = TextTokenizer(Path(options.directory))
    return LocalBackend(make_engine(options), tokenizer, options.most_step_seconds)


def reader_setup(engine: EngineOptions, api: ApiOptions) -> ReaderSetup:
    """Return what the readers of a server read for."""
    artifact = open_checked(engine.directory)
    check_limits(artifact, api)
    context = artifact.config.max_position_embeddings
    tokens = api.max_prompt_tokens or context
    longest = TextTokenizer(artifact.directory).longest_piece + 1  # 1: blanks between words
    limits = Limits(
        context=context,
        vocabulary=artifact.config.vocab_size,
        prompt_tokens=tokens,
        prompt_characters=tokens * max(longest, LEAST_CHARACTERS),
        new_tokens=api.max_new_tokens or context,
        choices=api.max_choices or max(1, engine.rows - 1),
        body_bytes=api.max_body_bytes,
        seconds=api.seconds,
    )
    return ReaderSetup(str(artifact.directory.resolve()), api.model or artifact.directory.resolve().name, limits)


def make_service(engine: EngineOptions, api: ApiOptions, backend: Backend) -> Service:
    """Return the application's state over a backend; its readers are not started. Call it in an event loop."""
    from lucid_deploy.serving.front import Service, Settings

    setup = reader_setup(engine, api)
    manifest = Path(setup.directory) / MANIFEST
    settings = Settings(
        model=setup.model,
        fingerprint="lucid_" + hashlib.sha256(manifest.read_bytes()).hexdigest()[:10],
        limits=setup.limits,
        created=int(manifest.stat().st_mtime),
        **{name: getattr(api, name) for name in ("keys", "hosts", "metrics_keys", "share_prefixes", "pages")},
    )
    tracing = None if api.otlp_endpoint is None else open_tracing(api.otlp_endpoint)
    return Service(settings, backend, ReaderPool(setup, api.readers), tracing)
