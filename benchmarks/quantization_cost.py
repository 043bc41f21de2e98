"""What quantization costs a pretrained model: perplexity and KL divergence beside float32, size, and time.

Each way to quantize is measured twice: on the checkpoint, and on other weights that compute the same (gains of norms
moved into the weights after them, channels multiplied and divided by factors of 0.5 to 2). The only pretrained weights
that come with a package come from a 4-bit grid, which flatters formats with the same grid; the rewritten ones do not.

    python examples/smollm2.py smollm2
    python benchmarks/quantization_cost.py smollm2 --calibration FILE --text OTHER

``--form experts`` computes the same as a mixture of four experts of which a token takes two: each is the MLP with other
weights. With ``--adapter`` the checkpoint is one of examples/convert, with LUCID in some layers.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from common import write_result
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import lucid_deploy as ld
from lucid_deploy.export.companions import read_tokenizer
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.parity.perplexity import cost_on_text, session_logits, windows
from lucid_deploy.runtimes import open_session

WINDOW = 512  # tokens that are read together
WAYS: dict[str, QuantizeOptions] = {
    "int8 rtn": QuantizeOptions("int8", method="rtn"),
    "int8": QuantizeOptions("int8"),
    "int4 rtn": QuantizeOptions("int4", method="rtn"),
    "int4 hqq": QuantizeOptions("int4", method="hqq"),
    "int4": QuantizeOptions("int4"),
    "int4 with calibration": QuantizeOptions("int4"),
}


def rewrite(checkpoint: Path, output: Path) -> None:
    """Write a Llama with other weights that compute the same: gains are moved, channels scaled by random factors."""
    model, draw = AutoModelForCausalLM.from_pretrained(checkpoint), torch.Generator().manual_seed(0)
    config = model.config

    def factors(count: int) -> torch.Tensor:
        return torch.exp2(2 * torch.rand(count, generator=draw) - 1)

    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            scale = factors(mlp.up_proj.out_features)
            mlp.up_proj.weight *= scale[:, None]
            mlp.down_proj.weight /= scale
            scale = factors(attention.v_proj.out_features)
            attention.v_proj.weight *= scale[:, None]
            repeated = config.num_attention_heads // config.num_key_value_heads
            attention.o_proj.weight /= (
                scale.unflatten(0, (config.num_key_value_heads, -1)).repeat_interleave(repeated, 0).flatten()
            )
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight *= norm.weight
                norm.weight.fill_(1)
    save(model, checkpoint, output)


def upcycle(checkpoint: Path, output: Path) -> None:
    """Write a Mixtral that computes what a Llama does: each expert is the Llama's MLP, and chosen gates sum to 1."""
    llama, draw = AutoModelForCausalLM.from_pretrained(checkpoint), torch.Generator().manual_seed(1)
    kept = llama.config.to_dict().keys() & MixtralConfig().to_dict().keys() - {"architectures", "model_type"}
    config = MixtralConfig(**{key: getattr(llama.config, key) for key in kept}, num_local_experts=4)
    state = {name: value for name, value in llama.state_dict().items() if ".mlp." not in name}
    for index, layer in enumerate(llama.model.layers):
        gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight.data for name in ("gate", "up", "down"))
        first, second = [], []
        for _ in range(config.num_local_experts):
            order = torch.randperm(len(up), generator=draw)
            scale = torch.exp2(2 * torch.rand(len(up), 1, generator=draw) - 1)
            first.append(torch.cat([gate[order], (up * scale)[order]]))
            second.append((down / scale.T)[:, order])
        prefix = f"model.layers.{index}.mlp."
        state[f"{prefix}experts.gate_up_proj"], state[f"{prefix}experts.down_proj"] = map(torch.stack, (first, second))
        state[f"{prefix}gate.weight"] = torch.randn(len(first), config.hidden_size, generator=draw) / 20
    model = MixtralForCausalLM(config)
    model.load_state_dict(state)
    save(model, checkpoint, output)


def save(model: Any, checkpoint: Path, output: Path) -> None:
    """Write a model, and beside it the files of ``checkpoint`` that it lacks, such as the tokenizer."""
    model.save_pretrained(output)
    for file in checkpoint.iterdir():
        if not (output / file.name).exists():
            shutil.copy(file, output)


def measure(
    checkpoint: Path, name: str, calibration: Path, pieces: list[Any], original: Any, **more: Any
) -> dict[str, Any]:
    """Export quantized in the way ``name``, and compare size, answers and time with float32."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        text: dict[str, Any] = {"calibration": calibration} if name.endswith("calibration") else {}
        artifact = ld.export(checkpoint, Path(folder, "artifact"), quantize=WAYS[name], logits="all", **text, **more)
        seconds = time.process_time() - began
        size = artifact.path("weights.bin").stat().st_size
        cost = cost_on_text(session_logits(open_session(artifact)), original, pieces, lambda: None)
    return {
        "mib": size / 2**20,
        "perplexity": cost.own,
        "of_float32": cost.own / cost.original,
        "kl": cost.kl,
        "same_best_token": cost.same,
        "export_seconds": seconds,
    }


FORMS = {"published": None, "rewritten": rewrite, "experts": upcycle}


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", type=click.Path(exists=True, path_type=Path), required=True, help="Text to measure on.")
@click.option("--calibration", type=click.Path(exists=True, path_type=Path), required=True, help="Text to learn from.")
@click.option("--adapter", type=click.Path(exists=True, path_type=Path), help="Adapter to merge into the weights.")
@click.option("--form", "forms", multiple=True, type=click.Choice(list(FORMS)), default=["published", "rewritten"])
@click.option("--only", multiple=True, type=click.Choice(list(WAYS)), help="Measure these ways alone.")
def main(
    checkpoint: Path,
    text: Path,
    calibration: Path,
    adapter: Path | None,
    forms: tuple[str, ...],
    only: tuple[str, ...],
) -> None:
    """Measure CHECKPOINT, a Llama with standard attention, in several forms."""
    more: dict[str, Any] = {"merge_adapter": adapter} if adapter else {}
    pieces = windows(torch.tensor(read_tokenizer(checkpoint).encode(text.read_text(encoding="utf-8"))).numpy(), WINDOW)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        exact = ld.export(checkpoint, Path(folder, "exact"), logits="all", **more)
        original = session_logits(open_session(exact))
        for form in ["lucid"] if adapter else forms:
            source = checkpoint
            if form in FORMS and (write := FORMS[form]) is not None:
                source = Path(folder, form)
                write(checkpoint, source)
            for name in only or WAYS:
                found = measure(source, name, calibration, pieces, original, **more)
                results.setdefault(form, {})[name] = found
                click.echo(
                    f"{form:10}{name:32}{found['mib']:6.1f} MiB  perplexity {found['perplexity']:.2f} "
                    f"({found['of_float32']:.3f} of float32's)  KL {found['kl']:.3f}  "
                    f"best token {found['same_best_token']:.1%}  {found['export_seconds']:.0f} s"
                )
    name = "quantization_cost_lucid" if adapter else "quantization_cost"
    write_result(name, {"model": checkpoint.name, "tokens": sum(map(len, pieces)), "ways": results})


if __name__ == "__main__":
    main()
