"""Train the bundled checkpoint: a small LUCID model that finds one entry of a list again.

The task and its held-out prompts are in ``lucid_deploy/recall.py``. One training sequence is a list and several questions
with their answers; the loss counts the answers alone. Lists start short and grow. The result is a checkpoint in the
published layout, which everything else here loads.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid_deploy import recall
from lucid_deploy.model.config import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *recall.vocabulary()))}
MAX_QUESTIONS = 16
TOKENS_PER_STEP = 4096
PEAK_RATE, WARMUP = 2e-3, 100  # of AdamW; steps
IGNORED = -100  # the label that cross_entropy leaves out


def config_json(attention: str) -> dict[str, Any]:
    """Return ``config.json``: Hugging Face's Llama keys and the four that LUCID adds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_type": attention,
        "which_rmsnorm": "exp_k_norm",
        "use_rope": True,
        "use_beta": False,
        "use_forget_gate": False,
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": VOCABULARY[PAD],
        "bos_token_id": VOCABULARY[BOS],
        "eos_token_id": VOCABULARY[EOS],
        "torch_dtype": "float32",
    }


def build_tokenizer() -> Tokenizer:
    """Return a tokenizer of whole words and signs that puts ``<bos>`` first and decodes to readable text."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # splits off signs too: "lamp, owl" is three tokens
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before signs
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, VOCABULARY[BOS])]
    )
    return tokenizer


def training_batch(rng: np.random.Generator, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw sequences of one list and some questions, about ``TOKENS_PER_STEP`` tokens in all.

    Args:
        rng: Source of randomness.
        pairs: Entries in each list.

    Returns:
        Input ids and labels, int64 ``(batch, tokens)``; labels are ``IGNORED`` outside answers, and each answer's last
        word is labelled ``<eos>``, whatever the input goes on with.
    """
    questions = int(rng.integers(1, min(pairs, MAX_QUESTIONS) + 1)) if rng.random() < 0.25 else min(pairs, MAX_QUESTIONS)
    batch = max(1, TOKENS_PER_STEP // (5 * (pairs + questions)))
    lists = recall.sample_lists(rng, pairs, questions, batch)
    entries = np.stack(
        [
            _ids(recall.ANIMALS)[lists.animals],
            np.full_like(lists.animals, VOCABULARY[recall.VERB]),
            _ids(recall.ADJECTIVES)[lists.adjectives],
            _ids(recall.THINGS)[lists.things],
            np.full_like(lists.animals, VOCABULARY[recall.COMMA]),
        ],
        axis=2,
    )  # (batch, pairs, 5)
    asked = np.take_along_axis(entries, lists.asked[:, :, None], axis=1)  # (batch, questions, 5)
    entries[:, -1, 4] = asked[:, :, 4] = VOCABULARY[recall.STOP]
    labels = np.full_like(asked, IGNORED)
    labels[:, :, 1:3] = asked[:, :, 2:4]
    labels[:, :, 3] = VOCABULARY[EOS]
    bos = np.full((batch, 1), VOCABULARY[BOS])
    inputs = np.concatenate([bos, entries.reshape(batch, -1), asked.reshape(batch, -1)], axis=1)
    ignored = np.full((batch, 1 + 5 * pairs), IGNORED)
    targets = np.concatenate([ignored, labels.reshape(batch, -1)], axis=1)
    # The full stop after the last answer never comes before anything.
    return torch.from_numpy(inputs[:, :-1]), torch.from_numpy(targets[:, :-1])


def _ids(words: tuple[str, ...]) -> np.ndarray:
    return np.array([VOCABULARY[word] for word in words])


class Curriculum:
    """Draws list lengths: short lists until the model answers them, then longer ones, two entries at a time."""

    PATIENCE, ENOUGH = 20, 0.95  # steps to average over; share of answer tokens that must be right

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.longest, self.recent = rng, 6, []

    def draw(self) -> int:
        """Return the number of entries for the next step."""
        return int(self.rng.integers(recall.MIN_PAIRS, self.longest + 1))

    def record(self, right: float) -> None:
        """Take note of the share of answer tokens that was right in this step."""
        self.recent = [*self.recent, right][-self.PATIENCE :]
        if len(self.recent) == self.PATIENCE and np.mean(self.recent) > self.ENOUGH:
            self.longest, self.recent = min(self.longest + 2, recall.MAX_PAIRS), []


def initialize(model: LucidForCausalLM) -> None:
    """Draw the parameters. The head starts as a copy of the embedding, since the task is to copy words."""
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data /= math.sqrt(2 * config.num_hidden_layers)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data / 4)


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on ``PEAK_RATE``: a linear warm-up, then a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / min(WARMUP, steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(attention: str, steps: int, seed: int) -> LucidForCausalLM:
    """Train a model from nothing and print the progress.

    Args:
        attention: ``lucid`` or ``llama``.
        steps: Optimizer steps.
        seed: Of the parameters and the data.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = LucidForCausalLM(parse_config(config_json(attention), "config.json"), implementation="reference")
    initialize(model)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.97))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    start, losses, hits = time.monotonic(), [], []
    curriculum = Curriculum(rng)
    for step in range(1, steps + 1):
        pairs = curriculum.draw()
        inputs, labels = training_batch(rng, pairs)
        logits, _ = model(inputs)  # (batch, tokens, vocab)
        answered = labels != IGNORED
        loss = F.cross_entropy(logits[answered], labels[answered])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        hits.append((logits[answered].argmax(-1) == labels[answered]).float().mean().item())
        curriculum.record(hits[-1])
        if step % 50 == 0 or step == steps:
            print(
                f"step {step:5d}/{steps}  lists up to {curriculum.longest:2d}  loss {np.mean(losses):.4f}  right {np.mean(hits):7.2%} of tokens"
                f"  {time.monotonic() - start:5.0f} s",
                flush=True,
            )
            losses, hits = [], []
    return model.eval().requires_grad_(False)


def save(model: LucidForCausalLM, output: Path) -> None:
    """Write the checkpoint: configuration, weights, tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", config_json(model.config.attention_type))
    generation = {key: VOCABULARY[token] for key, token in zip(("pad_token_id", "bos_token_id", "eos_token_id"), SPECIAL)}
    _write_json(output / "generation_config.json", {**generation, "do_sample": False, "max_new_tokens": 8})
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True)),
    }
    _write_json(output / "tokenizer_config.json", tokenizer)
    build_tokenizer().save(str(output / "tokenizer.json"))
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def accuracy(model: LucidForCausalLM, examples: list[recall.Example]) -> dict[int, tuple[int, int]]:
    """Answer prompts greedily, through prefill and cached decode.

    Returns:
        For each list length, right answers (both words and ``<eos>``) and prompts.
    """
    tokenizer = build_tokenizer()
    by_length = defaultdict(list)
    for example in examples:
        by_length[example.pairs].append(example)
    result = {}
    for pairs, group in sorted(by_length.items()):
        prompts = torch.tensor([tokenizer.encode(e.prompt).ids for e in group])
        wanted = torch.tensor(
            [[*tokenizer.encode(e.answer, add_special_tokens=False).ids, VOCABULARY[EOS]] for e in group]
        )
        logits, past = model(prompts, last_only=True)
        answer = [logits.argmax(-1)]  # (batch, 1) each
        while len(answer) < wanted.shape[1]:
            logits, past = model(answer[-1], past, decode=True)
            answer.append(logits.argmax(-1))
        result[pairs] = (int((torch.cat(answer, dim=1) == wanted).all(dim=1).sum()), len(group))
    return result


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write to.")
@click.option("--attention", type=click.Choice(["lucid", "llama"]), default="lucid", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Optimizer steps.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--prompts", type=click.IntRange(min=1), default=2000)
def main(output: Path, attention: str, steps: int, seed: int, prompts: int) -> None:
    torch.set_num_threads(2)
    model = train(attention, steps, seed)
    save(model, output)
    for pairs, (right, count) in accuracy(model, recall.held_out(prompts)).items():
        print(pairs, right, count)


if __name__ == "__main__":
    main()
