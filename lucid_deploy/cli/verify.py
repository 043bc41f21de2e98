"""``lucid-deploy verify``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.parity import Report
    from lucid_deploy.runtime.session import Array, Session


@click.command("verify")
@click.argument("artifact", type=click.Path())
@click.option(
    "--checkpoint",
    help="The checkpoint it was exported from, a directory or the word demo; default: the one its manifest names.",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the artifact; auto is onnxruntime. The model it is held against always runs in PyTorch on the CPU.",
)
@click.option("--device", default="cpu", show_default=True, help="Where it runs: cpu, or cuda with torch or tensorrt.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]),
    default="cpu",
    show_default=True,
    help="With onnxruntime: the execution provider; none is ever replaced by the CPU.",
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
@click.option("--json", "json_target", metavar="FILE", help="Write all results as JSON to FILE; - is stdout, no table.")
def command(
    artifact: str,
    checkpoint: str | None,
    runtime: str,
    device: str,
    provider: str,
    steps: int,
    prompt: str | None,
    seed: int,
    json_target: str | None,
) -> None:
    """Prove that an artifact computes what PyTorch computes.

    Compares logits and every layer's K and Y with the PyTorch model in float64: prefill at once, in chunks, padded and
    token by token, teacher-forced decoding and free greedy generation, on random, repeated and correlated tokens. The
    allowed error is 4 times what PyTorch itself loses in the artifact's precision. The sha256 of every file is checked
    too. Exit status 1 if anything fails.

    Example: lucid-deploy verify ./artifact --json report.json
    """
    from lucid_deploy.artifact import check_hashes, open_artifact
    from lucid_deploy.cli._console import progress, write_json
    from lucid_deploy.errors import CheckFailed
    from lucid_deploy.runtime import open_session

    opened = open_artifact(artifact)
    source = find_checkpoint(opened, checkpoint)
    with progress("Checking sha256") as update:
        check_hashes(opened, update)
    ids = _encode(opened, prompt)
    # Opened before the long run in PyTorch, so that a missing package shows at once.
    candidate = open_session(opened, runtime, device, provider=provider)
    with progress("Verifying") as update:
        report = verify_against(candidate, source, steps, seed, ids, update)
    facts = {
        "artifact": str(opened.directory),
        "checkpoint": str(source.directory),
        "device": device,
        "provider": candidate.provider,
    }
    if json_target is not None:
        write_json({**facts, "hashes_checked": True, **report.to_dict()}, json_target)
    if json_target != "-":
        _show(report)
    if not report.passed:
        raise CheckFailed(f"{opened.directory} failed: {report.verdict()}")


def find_checkpoint(artifact: Artifact, checkpoint: str | None) -> Checkpoint:
    """Open the checkpoint to verify against, and check that it is of the artifact's model.

    Args:
        artifact: The artifact.
        checkpoint: What the user named; None: the source in the manifest.

    Raises:
        LucidError: The source is gone, or the configurations differ (all differing fields are named).
    """
    from dataclasses import fields

    from lucid_deploy.errors import LucidError
    from lucid_deploy.model.checkpoint import Checkpoint, resolve

    name = checkpoint or artifact.manifest.source
    if checkpoint is None and not resolve(name).exists():
        raise LucidError(
            f"{artifact.directory} was exported from {name}, which is not there any more. Say where the checkpoint is: "
            "--checkpoint DIR"
        )
    source = Checkpoint(name)
    differing = [
        f"{field.name} is {getattr(artifact.config, field.name)} in the artifact and "
        f"{getattr(source.config, field.name)} in the checkpoint"
        for field in fields(artifact.config)
        if getattr(artifact.config, field.name) != getattr(source.config, field.name)
    ]
    if differing:
        raise LucidError(
            f"{artifact.directory} was not exported from {source.directory}: {'; '.join(differing)}. Name the right "
            "checkpoint with --checkpoint, or export again."
        )
    return source


def verify_against(
    candidate: Session[Any],
    source: Checkpoint,
    steps: int,
    seed: int,
    prompt: Array | None,
    update: Callable[[str, int, int], None],
) -> Report:
    """Verify a session against its checkpoint. Of the two PyTorch models, one at a time is in memory.

    Args:
        candidate: The session under test.
        source: The checkpoint.
        steps: Decode steps after each prompt.
        seed: For the scenarios.
        prompt: Token ids of a real prompt, or None.
        update: Called with (what is being done, done, in all).
    """
    import torch

    from lucid_deploy.model.checkpoint import load_model
    from lucid_deploy.parity import verify
    from lucid_deploy.runtime.torch_session import TorchSession

    def opener(dtype: str) -> Callable[[], TorchSession]:
        def open_model() -> TorchSession:
            def loading(done: int, total: int) -> None:
                update(f"Loading {dtype}", done, total)

            session = TorchSession(load_model(source, getattr(torch, dtype), progress=loading))
            session.config = candidate.config  # engines may take less context than the model: prompts must fit both
            return session

        return open_model

    return verify(
        candidate,
        opener(candidate.dtype),
        opener("float64"),
        steps=steps,
        seed=seed,
        prompt=prompt,
        embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
        progress=update,
    )


def _encode(artifact: Artifact, prompt: str | None) -> Array | None:
    if prompt is None:
        return None
    import numpy as np

    from lucid_deploy.errors import LucidError
    from lucid_deploy.runtime.tokenizer import TextTokenizer

    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read --prompt with; verify without a prompt.")
    return np.array(TextTokenizer(artifact.directory).encode(prompt), dtype=np.int64)


def _show(report: Report) -> None:
    from lucid_deploy.cli._console import console_out

    console_out.print(report.render())
