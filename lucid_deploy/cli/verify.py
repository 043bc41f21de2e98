"""``lucid-deploy verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._options import artifact_argument, json_option, runtime_options

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.parity import Report
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Array

TOKEN_CHARACTERS = 32  # of a text file are read for every token wanted; tokens are shorter


@click.command("verify")
@artifact_argument
@click.option(
    "--checkpoint",
    help="The checkpoint it was exported from, a directory or the word demo; default: the one its manifest names.",
)
@runtime_options(
    "runtime",
    "device",
    "provider",
    "kernels",
    help="What runs the artifact; auto is onnxruntime. The model it is held against always runs in PyTorch on the CPU.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Decode steps after each prompt; fewer if the model's context is too short.",
)
@click.option("-p", "--prompt", help="A real prompt as text, for the greedy run; default: random tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="For the random tokens.")
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="Allow a relative L2 error of X at every position, in place of gates derived from PyTorch; it is recorded.",
)
@click.option("--explain", is_flag=True, help="Look for causes too if nothing fails: layer by layer, and in the solve.")
@click.option("--text", metavar="FILE", help="Compare the perplexity of a text file too.")
@click.option(
    "--text-tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Tokens of the text at most.",
)
@click.option("--report", "page", metavar="FILE", help="Write everything, causes included, as one HTML page to FILE.")
@json_option("all results", ", no table")
def command(
    artifact: str,
    checkpoint: str | None,
    runtime: RuntimeOptions,
    steps: int,
    prompt: str | None,
    seed: int,
    tolerance: float | None,
    explain: bool,
    text: str | None,
    text_tokens: int,
    page: str | None,
    json_target: str | None,
) -> None:
    """Prove that an artifact computes what PyTorch computes.

    Compares logits and every layer's K and Y with the PyTorch model in float64: prefill at once, in chunks, padded and
    token by token, teacher-forced decoding and free greedy generation, on random, repeated and correlated tokens. The
    allowed error is 4 times what PyTorch itself loses in the artifact's precision. The sha256 of every file is checked
    too. A quantized artifact is held against the model on its dequantized weights, these against the checkpoint's, and
    what quantization cost is reported. Exit status 1 if anything fails; then, and with --explain or --report, every
    layer is also run on the inputs that the reference has there, which tells its own error from what it inherits.

    Example: lucid-deploy verify ./artifact --report report.html
    """
    from lucid_deploy.artifact import check_hashes, open_artifact
    from lucid_deploy.cli._console import progress, write_json, write_text
    from lucid_deploy.errors import CheckFailed
    from lucid_deploy.parity.measure.memory import available
    from lucid_deploy.parity.measure.quantization import check_weights
    from lucid_deploy.parity.measure.targets import check_tolerance
    from lucid_deploy.parity.verification import Closer, check_memory, find_checkpoint, verify_against
    from lucid_deploy.runtimes import find_runtime, open_session
    from lucid_deploy.runtimes.open_layers import open_layers

    if tolerance is not None:
        check_tolerance(tolerance)
    if page is not None:
        _check_page(page)
    opened = open_artifact(artifact)
    source = find_checkpoint(opened, checkpoint)
    can = find_runtime(runtime.runtime).capabilities(runtime)
    check_memory(opened, source, can, steps, explain or page is not None, available())
    with progress("Checking sha256") as update:
        check_hashes(opened, update)
    ids = _encode(opened, prompt)
    # Opened before the long run in PyTorch, so that a missing package shows at once.
    candidate = open_session(opened, runtime)
    closer = Closer(
        tolerance=tolerance,
        always=explain or page is not None,
        text=None if text is None else _read_text(opened, text, text_tokens),
        layers=lambda: open_layers(candidate, opened),
    )
    with progress("Verifying") as update:
        if opened.manifest.quantization is not None:
            check_weights(opened, source, update)
        report = verify_against(candidate, source, steps, seed, ids, update, closer, opened)
    facts = {
        "artifact": str(opened.directory),
        "checkpoint": str(source.directory),
        "device": runtime.device,
        **candidate.facts(),
    }
    if page is not None:
        from lucid_deploy.parity.show.page import render_page

        write_text(render_page(report, {**facts, **_artifact_facts(opened)}), page)
    if json_target is not None:
        write_json({**facts, "hashes_checked": True, **report.to_dict()}, json_target)
    if json_target != "-":
        _show(report)
    if not report.passed:
        raise CheckFailed(f"{opened.directory} failed: {report.verdict()} {report.cause()}".rstrip())


def _check_page(page: str) -> None:
    """Refuse a page that could not be written, before the long run and not after it."""
    from pathlib import Path

    from lucid_deploy.errors import LucidError

    path = Path(page)
    if page == "-" or path.is_dir() or not path.resolve().parent.is_dir():
        raise LucidError(f"--report {page} is no file that can be written: name a file in a directory that exists.")


def _artifact_facts(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    sizes = sum(facts["size"] for facts in manifest.files.values())
    return {
        "model": manifest.config.to_dict(),
        "cache": f"{manifest.cache}, {manifest.cache_dtype}",
        "files": len(manifest.files),
        "bytes": sizes,
        "exported_with": manifest.versions,
    }


def _read_text(artifact: Artifact, name: str, limit: int) -> Array:
    """Return the first tokens of a text file.

    Raises:
        LucidError: It cannot be read, is no UTF-8 text, or the artifact has no tokenizer.
    """
    import numpy as np

    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.errors import LucidError

    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read --text with; verify without a text.")
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read(limit * TOKEN_CHARACTERS)
    except UnicodeDecodeError as error:
        raise LucidError(f"{name} is no UTF-8 text (byte {error.start}); --text takes a text file.") from error
    except OSError as error:
        raise LucidError(f"The text {name} cannot be read: {error.strerror or error}.") from error
    ids = TextTokenizer(artifact.directory).encode(text)[:limit]
    if len(ids) < 2:
        raise LucidError(f"The text {name} has {len(ids)} tokens; a perplexity takes at least 2.")
    return np.array(ids, dtype=np.int64)


def _encode(artifact: Artifact, prompt: str | None) -> Array | None:
    if prompt is None:
        return None
    if not prompt:
        from lucid_deploy.errors import LucidError

        raise LucidError("The prompt to verify with is empty. Give it some text, or leave --prompt out.")
    import numpy as np

    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.errors import LucidError

    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read --prompt with; verify without a prompt.")
    return np.array(TextTokenizer(artifact.directory).encode(prompt), dtype=np.int64)


def _show(report: Report) -> None:
    from lucid_deploy.cli._console import console_out

    console_out.print(report.render())
