"""The Python API: what ``import lucid_deploy as ld`` gives. ``export`` and ``verify`` do what the commands do."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import Artifact as OpenedArtifact
from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.generation.drafting import MakeDrafter
    from lucid_deploy.generation.generate import Generation
    from lucid_deploy.parity.results import Verification
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session


@dataclass(frozen=True)
class Artifact(OpenedArtifact):
    """An exported artifact: a directory with ONNX graphs, a file of weights and a manifest.

    Attributes:
        directory: The artifact's directory.
        manifest: Says which model, graphs and files the artifact holds.
    """

    def verify(self, **options: Any) -> Verification:
        """Check the artifact's files, weights and results, as ``lucid-deploy verify`` does; see :func:`verify`."""
        return verify(self, **options)

    def open(self, runtime: str = "auto", **options: Any) -> Model:
        """Open the artifact in a runtime; see :func:`open`."""
        return open(self, runtime, **options)


@dataclass(frozen=True)
class Answer:
    """What a model generated.

    Attributes:
        text: The new text, up to a stop string; empty for a model without a tokenizer.
        ids: The new token ids, including those of a stop string.
        finish_reason: ``eos``, ``stop``, ``length`` (``max_new_tokens``) or ``context`` (no room left).
        prompt_tokens: How many tokens the prompt has.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_tokens: int


class Model:
    """An artifact opened in a runtime, as :func:`open` returns it; also a context manager that closes it.

    Attributes:
        artifact: The opened artifact.
        session: The runtime's session, for callers who run prefill and decode with caches of their own.
        tokenizer: The artifact's tokenizer; None if it has none, and prompts must then be token ids.
    """

    def __init__(
        self,
        artifact: OpenedArtifact,
        session: Session[Any],
        tokenizer: TextTokenizer | None,
        runtime: RuntimeOptions | None = None,
    ) -> None:
        self.artifact, self.session, self.tokenizer = artifact, session, tokenizer
        self._runtime = runtime  # draft models are opened with it too
        self._drafters: dict[tuple[str, str], MakeDrafter | None] = {}  # so that a draft model is opened once
        self._closed = False

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        stop: str | Iterable[str] | None = None,
        **options: Any,
    ) -> Answer:
        """Continue a prompt.

        Args:
            prompt: Text, or token ids: a list, or an array or tensor of one dimension.
            max_new_tokens: Upper bound of new tokens.
            stop: A string, or several, that end the text and are not part of it; None: none.
            options: ``temperature`` (0, the default, is greedy), ``top_k``, ``top_p``, ``min_p``, ``seed``;
                ``presence_penalty``, ``frequency_penalty``, ``repetition_penalty``, ``logit_bias`` (by token id) and
                ``bad_words`` (a text or several); ``prefill_chunk`` and ``stop_at_eos``; ``speculate`` (``lookup``, or
                ``draft`` with a draft model's artifact as the option ``draft``), which changes the speed.

        Raises:
            LucidError: An empty prompt, one that is longer than the context, a token outside the vocabulary, text for a
                model without a tokenizer, an impossible option, bad words that rule out every token, or a closed model.
            CheckFailed: The model's logits are not finite.
            TypeError: A prompt of another type, or an option that does not exist.
        """
        run = _GenerationRun(self, prompt, max_new_tokens, stop, options)
        text = "".join(run.pieces())
        return Answer(text, run.ids, run.generation.finish_reason, len(run.generation.prompt_ids))

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        stop: str | Iterable[str] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue a prompt and yield the text as it comes; arguments and errors are those of :meth:`generate`.

        Raises:
            LucidError: :meth:`generate` would raise one, or the model has no tokenizer, so that there is no text.
        """
        if self.tokenizer is None:
            raise LucidError(f"{self.artifact.directory} has no tokenizer.json, so there is no text to stream.")
        return _GenerationRun(self, prompt, max_new_tokens, stop, options).pieces()

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Return a prompt's token ids, including those that the tokenizer adds; token ids become a list of integers.

        Raises:
            LucidError: The prompt is text and the model has no tokenizer, or the model is closed.
            TypeError: The prompt is neither text nor integers.
        """
        self.check_open()
        if not isinstance(prompt, str):
            return [operator.index(token) for token in prompt]  # also integers of numpy and PyTorch
        if self.tokenizer is None:
            raise LucidError(f"{self.artifact.directory} has no tokenizer.json: give the prompt as token ids.")
        return self.tokenizer.encode(prompt)

    def drafters(self, speculate: str, draft: str | Path | None) -> MakeDrafter | None:
        """Call :func:`~lucid_deploy.generation.drafting.open_drafters` once per mode and draft; return its result.

        Raises:
            LucidError: That function raises one, or the model is closed.
        """
        from lucid_deploy.generation.drafting import open_drafters

        self.check_open()
        key = (speculate, str(draft))
        if key not in self._drafters:
            self._drafters[key] = open_drafters(speculate, self.artifact, draft, self._runtime)
        return self._drafters[key]

    def close(self) -> None:
        """Close the session and those of draft models; the model cannot be used afterwards."""
        from lucid_deploy.generation.drafting import ModelDrafters

        self._closed = True
        for made in self._drafters.values():
            if isinstance(made, ModelDrafters):
                made.close()
        self.session.close()

    def check_open(self) -> None:
        """Raise a LucidError if the model is closed."""
        if self._closed:
            raise LucidError(f"The model of {self.artifact.directory} is closed; open the artifact again to use it.")

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _GenerationRun:
    """One generation: :meth:`pieces` runs it and yields the text; ``ids`` holds the new tokens so far."""

    def __init__(
        self,
        model: Model,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        stop: str | Iterable[str] | None,
        options: dict[str, Any],
    ) -> None:
        from lucid_deploy.generation.generate import Generation
        from lucid_deploy.generation.sampling import Sampling, bad_word_ids
        from lucid_deploy.generation.text_stream import AnswerText

        model.check_open()
        self._model = model
        stops = _texts(stop)
        if model.tokenizer is None and (stops or options.get("bad_words")):
            raise LucidError(
                f"{model.artifact.directory} has no tokenizer.json, so it has no text for stop strings and bad words."
            )
        sampling = {item.name: options.pop(item.name) for item in fields(Sampling) if item.name in options}
        if "logit_bias" in sampling:
            sampling["logit_bias"] = tuple(dict(sampling["logit_bias"]).items())
        if model.tokenizer is not None and "bad_words" in sampling:
            sampling["bad_words"] = bad_word_ids(_texts(sampling["bad_words"]), model.tokenizer)
        if isinstance(prompt, str) and not prompt:  # a tokenizer may add a first token even to no text
            raise LucidError("The prompt is empty: it has no text.")
        drafters = model.drafters(options.pop("speculate", "off"), options.pop("draft", None))
        ids = model.encode(prompt)
        self.generation: Generation = Generation(model.session, ids, max_new_tokens, Sampling(**sampling), **options)
        self.generation.drafter = None if drafters is None else drafters()
        self.ids: list[int] = []
        self._text = None if model.tokenizer is None else AnswerText(model.tokenizer, stops)

    def pieces(self) -> Iterator[str]:
        """Run the model and yield the text as it comes; without a tokenizer, yield nothing."""
        for token in self._tokens():
            self.ids.append(token)
            if self._text is None:
                continue
            if piece := self._text.push(token):
                yield piece
            if self._text.stopped:
                break
        if self._text is not None:
            if piece := self._text.finish():
                yield piece
            if self._text.stopped:
                self.generation.finish_reason = "stop"

    def _tokens(self) -> Iterator[int]:
        """Yield new tokens; raise a LucidError once the model is closed."""
        self._model.check_open()
        for token in self.generation:
            yield token
            self._model.check_open()


def export(
    checkpoint: str | Path | PreTrainedModel,
    output: str | Path,
    progress: Callable[[str, int, int], None] | None = None,
    tokenizer: Any = None,
    keep_checkpoint: str | Path | None = None,
    **options: Any,
) -> Artifact:
    """Export a checkpoint, as ``lucid-deploy export`` does. The output appears complete or not at all.

    Args:
        checkpoint: A directory, the word ``demo``, ``org/name`` for a model of the Hugging Face Hub, or a transformers
            model in memory, even of a class of your own.
        output: The directory to make.
        progress: Called with (what is being done, steps or bytes done, steps or bytes in all).
        tokenizer: With a model in memory: its tokenizer; None: the artifact has none.
        keep_checkpoint: With a model in memory: a new directory to save it to, which ``verify`` reads; None: it is
            saved for the time of the export only.
        options: Fields of :class:`~lucid_deploy.export.ExportOptions`: ``dtype``, ``cache``, ``cache_dtype``,
            ``overwrite``, ``quantize`` (a :class:`~lucid_deploy.export.quantize.options.QuantizeOptions`) and others.

    Raises:
        LucidError: The checkpoint is unreadable or unsupported, an option is wrong, or the output exists.
    """
    from lucid_deploy.export import ExportOptions
    from lucid_deploy.export import export as export_checkpoint

    if not isinstance(checkpoint, str | Path):
        from lucid_deploy.model.transformers_class.live import save_checkpoint

        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(keep_checkpoint or f"{scratch}/checkpoint")
            save_checkpoint(checkpoint, tokenizer, directory)
            return export(directory, output, progress, **options)
    if tokenizer is not None or keep_checkpoint is not None:
        raise LucidError("tokenizer and keep_checkpoint are for a model in memory; a checkpoint has its own tokenizer.")
    made = export_checkpoint(checkpoint, Path(output), progress=progress, options=ExportOptions(**options))
    return Artifact(made.directory, made.manifest)


def open(artifact: str | Path | OpenedArtifact, runtime: str = "auto", **options: Any) -> Model:
    """Open an artifact in a runtime.

    Args:
        artifact: Its directory, or an opened artifact.
        runtime: ``auto`` (onnxruntime), ``onnxruntime``, ``openvino``, ``torch``, ``tensorrt``, or
            another that an installed package or your program has registered.
        options: Other fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions`: ``device``, ``threads``,
            ``allow_extrapolation``, ``provider``, ``kernels``, ``ablate``, ``adapter`` (the name of a LoRA adapter).

    Raises:
        LucidError: No artifact, a damaged manifest, a wrong option or runtime, a package that is not installed, or an
            opened artifact whose directory now holds another artifact.
        CheckFailed: A file is missing, of another size or unlike what the manifest records.
    """
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.runtimes import open_session
    from lucid_deploy.runtimes.options import RuntimeOptions

    opened = _opened(artifact)
    has_tokenizer = opened.path("tokenizer.json").is_file()
    running = RuntimeOptions(runtime, **options)
    return Model(
        opened,
        open_session(opened, running),
        TextTokenizer(opened.directory) if has_tokenizer else None,
        running,
    )


def verify(artifact: str | Path | OpenedArtifact, **options: Any) -> Verification:
    """Check an artifact's files, its weights and what it computes; where it is wrong, find where errors start.

    Args:
        artifact: Its directory, or an opened artifact.
        options: Fields of :class:`~lucid_deploy.parity.options.VerifyOptions`, such as ``quick``, ``checkpoint`` and
            ``explain``, and those of RuntimeOptions, as for :func:`open`: ``runtime``, ``device``, ``kernels`` …

    Returns:
        The result; ``verify(…).raise_if_failed()`` raises CheckFailed, with the first failure, unless it passed.

    Raises:
        LucidError: Nothing can be verified: the checkpoint is missing or another model's, the runtime is unknown, an
            option is wrong, or the directory of an opened artifact now holds another artifact.
        CheckFailed: A file is missing, of another size or unlike the manifest, or the artifact was replaced meanwhile.
    """
    from lucid_deploy.parity.verification import VerifyOptions, verify_artifact
    from lucid_deploy.runtimes.options import RuntimeOptions

    how_to_run = {item.name for item in fields(RuntimeOptions)} & options.keys()
    running = RuntimeOptions(**{name: options.pop(name) for name in how_to_run})
    return verify_artifact(_opened(artifact), VerifyOptions(runtime=running, **options))


def _opened(artifact: str | Path | OpenedArtifact) -> OpenedArtifact:
    """Open the artifact in a directory; or check that an opened one is still in its directory, and return it."""
    if not isinstance(artifact, OpenedArtifact):
        return open_artifact(artifact)
    found = open_artifact(artifact.directory).manifest
    if artifact.manifest not in (found, *found.each_form()):
        raise LucidError(
            f"{artifact.directory} holds another artifact than when this object was made: it was exported again or "
            "replaced. Give the directory, or the object that the newer export returned."
        )
    return artifact


def _texts(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return one text or several as a tuple; None is no text, as in OpenAI's API."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
