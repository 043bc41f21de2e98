"""The command ``lucid-deploy inspect``: show what an artifact contains and needs."""

from __future__ import annotations

from typing import Any

import click
from rich.markup import escape
from rich.table import Column, Table

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, human_size, note, progress, show, write_results
from lucid_deploy.cli._options import artifact_argument, json_option
from lucid_deploy.errors import CheckFailed, in_one_line


@click.command("inspect", cls=Command)
@artifact_argument
@click.option("--check", is_flag=True, help="Read every file and compare its sha256 with the manifest.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Rows to compute memory for.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens per row to compute memory for; default: the model's maximum."
)
@json_option("everything")
def command(artifact: str, check: bool, batch: int, context: int | None, json_target: str | None) -> None:
    """Show graphs, tensors, operators, sizes and memory needs of an artifact.

    Example: lucid-deploy inspect ./artifact --batch 8 --context 4096
    """
    from lucid_deploy.artifact import check_hashes, open_artifact
    from lucid_deploy.runtimes.inspection import describe

    opened = open_artifact(artifact)
    if check:
        with progress("Checking sha256") as update:
            check_hashes(opened, update)
    made_for = opened.config.max_position_embeddings
    if context is not None and context > made_for:
        note(
            f"Note: the model was made for {made_for} tokens (max_position_embeddings); a context of {context} runs "
            "with --allow-extrapolation only."
        )
    try:
        facts = {**describe(opened, batch, context), "hashes_checked": check}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # of onnx and protobuf
        raise CheckFailed(f"The graphs of {artifact} are not as an export writes them: {in_one_line(error)}") from error
    write_results(facts, json_target, lambda: _show(facts))


def _show(facts: dict[str, Any]) -> None:
    import msgspec

    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.cli._facts import show_quantization

    model = facts["model"]
    show(
        f"{facts['artifact']}: {facts['summary']}, hidden {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads, {model['num_key_value_heads']} key/value heads, head_dim "
        f"{model['head_dim']}, vocabulary {model['vocab_size']}, context {model['max_position_embeddings']}"
    )
    for remark in facts["remarks"]:
        show(remark)
    files = Table("file", "size", "sha256", title="Files" + (" (sha256 checked)" if facts["hashes_checked"] else ""))
    for name, entry in facts["files"].items():
        files.add_row(name, human_size(entry["size"]), entry["sha256"][:16])
    console_out.print(files)
    count = facts["parameters"]
    active = f"; one token reads {count['active']:,} of them" if count["active"] < count["total"] else ""
    show(f"Weights: {count['total']:,}{active}")
    types = ", ".join(f"{kind} {human_size(size)}" for kind, size in facts["weight_types"].items())
    show(f"Weights by type: {types}")
    if facts["quantization"] is not None:
        show_quantization(msgspec.convert(facts["quantization"], Quantization), facts["dtype"], facts["compression"])
    for stage, graph in facts["graphs"].items():
        _show_graph(stage, graph)
    if len(facts["forms"]) > 1:
        show("Forms of these graphs, all with the same weights; each runtime uses the form that it runs best:")
    for form in facts["forms"] if len(facts["forms"]) > 1 else []:
        show(f"- {form['name']} (opset {form['opset']}): {', '.join(form['files'].values())}")
    kernels = facts["kernels"]
    used = "the graph's functions; lucid-deploy plugin build --target onnxruntime makes faster ones"
    if kernels["auto"] == "library":
        used = f"the library {kernels['library']} ({kernels['instructions']})"
    show("Kernels on this machine: " + (kernels["problem"] or used))
    memory = facts["memory"]
    states = f", and states of {human_size(memory['states'])} that do not grow" if memory["states"] else ""
    show(
        f"Memory to decode at batch {memory['batch']}, context {memory['context']}: "
        f"weights {human_size(memory['weights'])}, "
        f"cache {human_size(memory['cache'])} ({memory['cache_per_token']} bytes a token{states}), "
        f"{human_size(memory['cache_while_decoding'])} while a token is computed; "
        f"workspace {human_size(memory['workspace'])}, runtime {human_size(memory['runtime'])}; "
        f"in all {human_size(memory['total'])}. A prompt may take more while it runs: --prefill-chunk bounds that"
    )


def _show_graph(stage: str, graph: dict[str, Any]) -> None:
    name = Column("tensor", min_width=36, overflow="fold")  # if cut, two tensors' names may look the same
    tensors = Table("", name, "type", "shape", title=f"{stage} ({graph['file']}, {graph['weights']} weights)")
    for kind in ("inputs", "outputs"):
        for row in _collapsed(graph[kind]):
            tensors.add_row(kind[:-1], *map(escape, row))
    console_out.print(tensors)
    functions = ", ".join(f"{name} ({count} nodes)" for name, count in graph["functions"].items())
    operators = ", ".join(f"{name} {count}" for name, count in graph["operators"].items())
    show(f"operators: {operators}")
    show(f"functions: {functions or 'none'}")


def _range(numbers: list[int]) -> str:
    """Return the numbers of layers as a text: ``3``, ``{0..5}``, or with gaps ``{0..2,4,6..8}``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ",".join("..".join(map(str, run)) for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def _collapsed(tensors: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return one row (name, type, shape) per kind of tensor: in its name, the layers' numbers become a range."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for item in tensors:
        parts = item["name"].split(".")
        number = int(parts[1]) if len(parts) == 3 else -1
        name = f"{parts[0]}.*.{parts[2]}" if number >= 0 else item["name"]
        shape = "[" + ", ".join(map(str, item["shape"])) + "]"
        layers.setdefault((name, item["dtype"], shape), []).append(number)
    return [(name.replace("*", _range(numbers)), dtype, shape) for (name, dtype, shape), numbers in layers.items()]
