"""The command ``lucid-deploy verify``: compare an artifact with PyTorch's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, progress, write_json, write_text
from lucid_deploy.cli._generation_options import read_file
from lucid_deploy.cli._options import artifact_argument, json_option, runtime_options, trust_option
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.parity.results import Verification
    from lucid_deploy.runtimes.options import RuntimeOptions

TOKEN_CHARACTERS = 32  # characters of a text file that are encoded for each wanted token; most tokens are shorter


@click.command("verify", cls=Command)
@artifact_argument
@click.option("--checkpoint", help="The artifact's source, a directory or demo; default: what its manifest names.")
@runtime_options(
    "runtime",
    "device",
    "provider",
    "kernels",
    help="What runs the artifact; auto is onnxruntime. The reference always runs in PyTorch on the CPU.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    help="Tokens of the synthetic prompts, if the context allows; thousands show whether an error grows; default: 250.",
)
@click.option("--steps", type=click.IntRange(1), help="Decode steps after each prompt; default: 32, or 8 with --quick.")
@click.option("-p", "--prompt", help="A real prompt as text, for the greedy run; default: random tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random tokens.")
@click.option(
    "--quick", is_flag=True, help="Verify fewer sequences, steps and forms; the report says what was left out."
)
@click.option("--explain", is_flag=True, help="Look for causes even if nothing fails: by layer, and in the solve.")
@click.option("--text", metavar="FILE", help="Compare the perplexity of a text file too.")
@click.option(
    "--text-tokens",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    help="Tokens of the text at most.",
)
@click.option(
    "--golden",
    metavar="FILE",
    help="Compare with results of the model's own code too: a file that examples/dump_golden.py writes.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME",
    help="Verify with this adapter, or base for none; may be repeated; default: base and all, with --golden only base.",
)
@trust_option
@click.option("--report", "page", metavar="FILE", help="Write everything, causes included, as one HTML page to FILE.")
@json_option("all results")
def command(
    artifact: str,
    runtime: RuntimeOptions,
    adapters: tuple[str, ...],
    page: str | None,
    json_target: str | None,
    **given: Any,
) -> None:
    """Prove that an artifact computes what PyTorch computes.

    Compares logits and every layer's cache (K and Y; K and V with standard attention) with the PyTorch model in
    float64, on random, repeated and correlated tokens: prefill at once, in chunks, padded, in turns with decoding and
    token by token, drafts verified several at a time, teacher-forced decoding and free greedy generation. The allowed
    error is 4 times what PyTorch itself loses in the artifact's precision, in every form of the graphs; with --quick in
    one. The sha256 of every file is checked too. A quantized artifact is compared with the model on its dequantized
    weights, and these with the checkpoint's; what quantization costs is measured with --text. That model is this
    toolkit's own: --golden also compares with results of other code. Exit status 1 if anything fails, 3 if nothing does
    but too little is proven. If a comparison with that model fails or too little is proven, and with --explain or
    --report, every layer is also run on the reference's inputs, to find where the error starts.

    Example: lucid-deploy verify ./artifact --report report.html
    """
    from dataclasses import replace

    from lucid_deploy.cli._process import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.artifact.adapters import BASE
    from lucid_deploy.parity.terminal import render
    from lucid_deploy.parity.verification import VerifyOptions, verify_artifact

    if page == "-":
        raise LucidError("--report needs a file name, not -.")
    opened = open_artifact(artifact)
    base_only = given["golden"] is not None  # a golden file is about the model without adapters
    names = adapters or (BASE, *(() if base_only else (each.name for each in opened.adapters())))
    if page is not None and len(names) > 1:
        raise LucidError(f"--report is a page about one adapter: name it with --adapter, or {BASE} for none.")
    given["explain"] |= page is not None
    if given["text"] is not None:
        given["text"] = read_file("--text", given["text"])[: given["text_tokens"] * TOKEN_CHARACTERS]
    options = VerifyOptions(runtime=runtime, **given)
    found: dict[str, Verification] = {}
    for adapter in names:
        chosen = replace(runtime, adapter=None if adapter == BASE else adapter)
        with progress("Verifying") as listener:
            found[adapter] = verify_artifact(opened, replace(options, runtime=chosen), listener)
        if json_target != "-":
            console_out.print(render(found[adapter]))
    if page is not None and found[names[0]].comparisons:
        from lucid_deploy.parity.page import render_page

        write_text(render_page(found[names[0]]), page)
    if json_target is not None:
        write_json(_data(found), json_target)
    for verification in found.values():
        verification.raise_if_failed()


def _data(found: dict[str, Verification]) -> dict[str, Any]:
    """Return plain data for JSON: the only verification, or ``passed`` of all and ``runs``, each under its adapter."""
    if len(found) == 1:
        return next(iter(found.values())).to_dict()
    runs = {run: verification.to_dict() for run, verification in found.items()}
    return {"passed": all(verification.passed for verification in found.values()), "runs": runs}
