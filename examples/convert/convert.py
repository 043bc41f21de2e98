"""Turn some layers of a pretrained Llama into LUCID attention, and train an adapter that makes up for it.

    python examples/smollm2.py smollm2
    python examples/convert/convert.py smollm2 converted
    lucid-deploy export converted/checkpoint --merge-adapter converted/adapter --output artifact

The adapter (LoRA, written by PEFT) learns to give the original's logits: the loss is the KL divergence between its
distributions of next tokens and the original's, so no text needs labels. Without ``--text`` the text is Python's
documentation of modules and language, and Debian's licences; the GPL and its relatives are kept for the test.

After an interruption, the same command continues. ``--control`` trains the same adapter without LUCID. Needs
transformers and peft.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import pydoc_data.topics
import random
import shutil
import sysconfig
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from lucid_deploy.plugins.precondition.torch_operator import precondition

TOKENS = 1024  # of a sequence
RATE, WARMUP = 1e-3, 20  # of AdamW; steps
HELD_OUT = ("asyncio", "email", "unittest")  # packages whose documentation is kept for the test
LICENCES = Path("/usr/share/common-licenses")

converted: set[int] = set()  # layers that are LUCID at the moment


def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, **options: Any) -> tuple[Tensor, None]:
    """Attend, with the interface of transformers' registry: softmax attention, in converted layers over Y, not V."""
    y = precondition(k, v, eps=module.config.rms_norm_eps) if module.layer_idx in converted else v
    x = F.scaled_dot_product_attention(q, k, y, is_causal=True, scale=options["scaling"], enable_gqa=True)
    return x.transpose(1, 2), None


AttentionInterface.register("convert", attend)


def documentation(name: str) -> str:
    """Return the long docstrings of a file or package of Python's standard library."""
    place = Path(sysconfig.get_path("stdlib")) / name
    found = []
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        if "test" in file.parts[-2:-1] or file.name.startswith("test_"):
            continue
        try:
            tree = ast.parse(file.read_text())
        except (SyntaxError, UnicodeDecodeError):  # a few files are invalid on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += [text] if len(text) > 400 else []
    return "\n\n".join(found)


def training_text() -> str:
    """Return the text to learn from."""
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.name for path in library.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    texts = [documentation(name) for name in names if name not in (*HELD_OUT, "test", "pydoc_data", "site-packages")]
    texts += pydoc_data.topics.topics.values()
    texts += [file.read_text() for file in sorted(LICENCES.glob("*")) if "GPL" not in file.name and file.is_file()]
    random.Random(0).shuffle(texts)
    return "\n\n".join(texts)


def held_out_texts() -> dict[str, str]:
    """Return held-out texts of two kinds, by name."""
    texts = {"documentation": "\n\n".join(documentation(name) for name in HELD_OUT)}
    if (LICENCES / "GPL-3").exists():
        texts["GPL"] = (LICENCES / "GPL-3").read_text()
    return texts


def log_probabilities(model: torch.nn.Module, ids: Tensor, layers: set[int]) -> Tensor:
    """Return log-probabilities ``(1, N, V)`` with these layers as LUCID."""
    global converted
    converted = layers
    return model(ids, use_cache=False).logits.float().log_softmax(-1)


def original(model: PeftModel, ids: Tensor) -> Tensor:
    """Return the original's log-probabilities ``(1, N, V)``."""
    with torch.no_grad(), model.disable_adapter():
        return log_probabilities(model, ids, set())


def divergence(told: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean KL divergence of a token, in nats."""
    return F.kl_div(told, wanted, reduction="none", log_target=True).sum(-1).mean()


def cheapest(model: PeftModel, ids: Tensor, count: int) -> list[int]:
    """Return one layer of each of ``count`` groups of neighbours: the one that, alone converted, diverges least."""
    wanted, layers = original(model, ids), model.config.num_hidden_layers
    with torch.no_grad():
        costs = [float(divergence(log_probabilities(model, ids, {layer}), wanted)) for layer in range(layers)]
    borders = [round(group * layers / count) for group in range(count + 1)]
    return [min(range(low, high), key=costs.__getitem__) for low, high in itertools.pairwise(borders)]


def evaluate(model: PeftModel, tokenizer: Any, layers: set[int], windows: int = 4) -> dict[str, dict[str, float]]:
    """Return, for each held-out text, perplexities and the divergence from the original."""
    result = {}
    for name, text in held_out_texts().items():
        ids = torch.tensor(tokenizer(text).input_ids)
        losses, others, kl = [], [], []
        for part in ids.split(TOKENS)[:windows]:
            wanted, target = original(model, part[None]), part[1:, None]
            with torch.no_grad():
                told = log_probabilities(model, part[None], layers)
            losses.append(-told[0, :-1].gather(1, target))
            others.append(-wanted[0, :-1].gather(1, target))
            kl.append(F.kl_div(told, wanted, reduction="none", log_target=True).sum(-1)[0, :-1])
        result[name] = {
            "tokens": len(torch.cat(kl)),
            "perplexity": math.exp(torch.cat(losses).mean()),
            "original": math.exp(torch.cat(others).mean()),
            "kl": float(torch.cat(kl).mean()),
        }
    return result


def write_checkpoint(base: Path, output: Path, layers: list[int]) -> None:
    """Copy the original with a configuration that says which layers are LUCID."""
    shutil.copytree(base, output, dirs_exist_ok=True)
    config = json.loads((output / "config.json").read_text())
    kinds = ["lucid" if layer in layers else "standard" for layer in range(config["num_hidden_layers"])]
    config |= {"attention_type": "lucid", "layer_kinds": kinds}
    (output / "config.json").write_text(json.dumps(config, indent=2))


def load(base: Path, dtype: torch.dtype) -> Any:
    """Load the original with our attention."""
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="convert", dtype=dtype)


def save(file: Path, state: dict[str, Any]) -> None:
    """Write the state of training; a kill leaves the one before."""
    new = file.with_suffix(".new")
    torch.save(state, new)
    new.replace(file)


@click.command(help=__doc__.splitlines()[0])
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--layers", "count", type=click.IntRange(min=1), default=8, show_default=True, help="How many layers become LUCID."
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=300, show_default=True, help=f"Sequences of {TOKENS} tokens."
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Rank of the adapter, on q, k, v and o of these layers.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Type of frozen weights.")
@click.option("--text", type=click.Path(path_type=Path, exists=True), multiple=True, help="Text to learn from.")
@click.option("--control", is_flag=True, help="Train the same adapter on the original's attention.")
def main(
    base: Path, output: Path, count: int, steps: int, rank: int, dtype: str, text: tuple[Path, ...], control: bool
) -> None:
    """Convert, train, evaluate."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    given = "\n\n".join(file.read_text() for file in text) if text else training_text()
    rows = torch.tensor(tokenizer(given).input_ids).split(TOKENS)[:-1]
    if not rows:
        raise click.UsageError(f"The text has fewer than {TOKENS} tokens, which one step reads.")
    order = random.Random(1).sample(range(len(rows)), len(rows))
    click.echo(f"{len(rows) * TOKENS:,} tokens of text; {steps * TOKENS:,} are read")
    output.mkdir(parents=True, exist_ok=True)
    plan_file, state_file = output / "plan.json", output / "state.pt"
    if not plan_file.exists():
        plain = get_peft_model(load(base, torch.float32), LoraConfig(target_modules=["q_proj"]))
        layers = cheapest(plain, rows[order[0]][None], count)
        write_checkpoint(base, output / "checkpoint", [] if control else layers)
        untrained = evaluate(plain, tokenizer, set() if control else set(layers))
        plan_file.write_text(json.dumps({"layers": layers, "untrained": untrained}, indent=2))
    plan = json.loads(plan_file.read_text())
    click.echo(f"LUCID in layers {plan['layers']}; untrained: {plan['untrained']}")
    lucid = set() if control else set(plan["layers"])

    options = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        layers_to_transform=plan["layers"],
    )
    model = get_peft_model(load(base, getattr(torch, dtype)), options)
    learned = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    begun, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["adapter"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begun, seconds = state["step"], state["seconds"]
    for step in range(begun, steps):
        start = time.process_time()
        ids = rows[order[step % len(order)]][None]
        loss = divergence(log_probabilities(model, ids, lucid), original(model, ids))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
        if step % 10 == 9 or step == steps - 1:
            click.echo(f"{step + 1}: divergence {loss.item():.4f}, {seconds / 3600:.2f} hours of processor time")
            state = {"step": step + 1, "seconds": seconds, "optimizer": optimizer.state_dict()}
            state["adapter"] = {name: each for name, each in model.state_dict().items() if "lora" in name}
            save(state_file, state | {"schedule": schedule.state_dict()})
    model.save_pretrained(str(output / "adapter"))

    saved = PeftModel.from_pretrained(load(base, torch.float32), output / "adapter")
    trained = evaluate(saved, tokenizer, lucid)
    result = {"steps": steps, "tokens": steps * TOKENS, "hours": seconds / 3600, **plan, "trained": trained}
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
