"""Train the bundled checkpoint: a small LUCID model that finds one entry of a list again.

The task and its held-out prompts are in lucid_deploy/recall.py. A training sequence is a list and several questions
with their answers. Lists start short and grow. Two things make the lookup quick to learn: parameters start out so that
the first layer looks back a few tokens and the others attend to similar words, and for the first half of the training
two attention heads are shown where to look. After that the loss counts the answers alone. The result is a checkpoint in
the published layout.

Measured for the bundled checkpoint (all options at their defaults, PyTorch 2.13, two CPU cores shared with other
work): 15 minutes, the last 1000 steps in 3 of them; 2000 of 2000 held-out prompts right.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid_deploy import recall
from lucid_deploy.model.config import LucidConfig, parse_config
from lucid_deploy.model.lucid import LucidForCausalLM, inverse_frequencies, rotate

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *recall.vocabulary()))}
ENTRY = 5  # tokens of one entry: animal, verb, adjective, thing, sign
QUESTIONS = 12  # in one training sequence
TOKENS_PER_STEP = 2048
PEAK_RATE, WARMUP = 3e-3, 100  # of AdamW; steps
LOOK_BACK = 5.0  # how sharply the first layer's heads look back at the start
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
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
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


@dataclass(frozen=True)
class Batch:
    """Training sequences of one shape.

    Attributes:
        inputs: Token ids, int64 ``(batch, tokens)``.
        labels: The next token within answers and ``IGNORED`` elsewhere, int64 ``(batch, tokens)``. The last word of
            each answer is labelled ``<eos>``, whatever the input goes on with.
        positions: Of the tokens that come before a word of an answer, int64 ``(2 · questions,)``.
        sources: Positions of that word in the list, int64 ``(batch, 2 · questions)``.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sources: torch.Tensor


def training_batch(rng: np.random.Generator, pairs: int) -> Batch:
    """Draw sequences of one list of ``pairs`` entries and ``QUESTIONS`` questions, about ``TOKENS_PER_STEP`` in all."""
    batch = max(1, TOKENS_PER_STEP // (ENTRY * (pairs + QUESTIONS)))
    lists = recall.sample_lists(rng, pairs, QUESTIONS, batch)
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
    bos, unlabelled = np.full((batch, 1), VOCABULARY[BOS]), np.full((batch, 1 + ENTRY * pairs), IGNORED)
    inputs = np.concatenate([bos, entries.reshape(batch, -1), asked.reshape(batch, -1)], axis=1)
    labels = np.concatenate([unlabelled, labels.reshape(batch, -1)], axis=1)
    positions = 1 + ENTRY * (pairs + np.arange(QUESTIONS)[:, None]) + np.array([1, 2])
    sources = 1 + ENTRY * lists.asked[:, :, None] + np.array([2, 3])
    # The full stop after the last answer comes before nothing.
    arrays = inputs[:, :-1], labels[:, :-1], positions.reshape(-1), sources.reshape(batch, -1)
    return Batch(*(torch.from_numpy(array) for array in arrays))


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


@torch.no_grad()
def initialize(model: LucidForCausalLM) -> None:
    """Draw the parameters, arranged so that lookups are quick to learn.

    The head starts as a copy of the embedding and attention heads write back what they read, since the task is to copy
    words. The first layer's heads look 1, 2, 3 and 4 tokens back; later layers attend to tokens with similar content.
    """
    config, embedding = model.config, model.model.embed_tokens.weight
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    common = F.normalize(torch.randn(config.hidden_size), dim=0)  # what all words share: look-back heads attend by it
    words = F.normalize(embedding - (embedding @ common)[:, None] * common, dim=1)
    embedding.copy_(words + 0.8 * common)
    model.lm_head.weight.copy_(words / 2)
    signs = words[: len(SPECIAL) + 3]  # with the verb: tokens that tell entries apart in no way
    empty = torch.linalg.qr(torch.cat([common[None], signs]).T)[0]  # (C, 8), the directions that say nothing
    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        value = 0.35 * _orthogonal_rows(attention.v_proj.weight)
        attention.v_proj.weight.copy_(value if i else value - value @ empty @ empty.T)
        attention.o_proj.weight.copy_(_per_query_head(value, config).T)
        if i:
            key = 1.1 * _orthogonal_rows(attention.k_proj.weight)
            key[_fast_rows(config)] *= 0.1  # content has to match at any distance
            key -= key @ empty @ empty.T
            attention.k_proj.weight.copy_(key)
            attention.q_proj.weight.copy_(_per_query_head(key, config))
    _look_back(model, common)


@torch.no_grad()
def start_random(model: LucidForCausalLM) -> None:
    """Draw every matrix from a normal distribution of width ``initializer_range``, as Llama's training does."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=config_json("")["initializer_range"])


def _look_back(model: LucidForCausalLM, common: torch.Tensor) -> None:
    """Let head h of the first layer attend h + 1 tokens back.

    Keys are one fixed vector along ``common``; the query of head h is that vector rotated back by h + 1 positions, in
    the faster half of the rotary frequencies, which tell neighbours apart.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    frequencies, half = inverse_frequencies(config), config.head_dim // 2
    fast = (torch.arange(half) < half // 2) * LOOK_BACK / math.sqrt(config.hidden_size)  # (D/2,)
    keys = torch.cat([fast, torch.zeros(half)]).repeat(config.num_key_value_heads)  # (KV·D,)
    angles = frequencies * torch.arange(1, config.num_attention_heads + 1)[:, None]  # (H, D/2)
    queries = torch.cat([fast * angles.cos(), -fast * angles.sin()], dim=1).flatten()  # (H·D,)
    attention.k_proj.weight.copy_(torch.outer(keys, common))
    attention.q_proj.weight.mul_(0.2).add_(torch.outer(queries, common))


def _orthogonal_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return a random matrix of the shape of ``weight`` whose rows are orthonormal."""
    return torch.nn.init.orthogonal_(torch.empty_like(weight))


def _per_query_head(rows: torch.Tensor, config: LucidConfig) -> torch.Tensor:
    """Repeat the rows of each key/value head for its query heads: ``(KV·D, C)`` to ``(H·D, C)``."""
    heads = rows.unflatten(0, (-1, config.head_dim))
    return heads.repeat_interleave(config.query_groups, dim=0).flatten(0, 1)


def _fast_rows(config: LucidConfig) -> torch.Tensor:
    """Return which rows of the key projection rotate with the faster half of the frequencies, boolean ``(KV·D,)``."""
    half = config.head_dim // 2
    return (torch.arange(half) < half // 2).repeat(2 * config.num_key_value_heads)


class Guide:
    """Attention supervision: shows the second layer's first head of each group which token holds the next word.

    The loss on answers alone finds the lookup after very many steps, this one after a hundred. Its weight falls to zero
    half way through training; from there the answers alone count.
    """

    def __init__(self, model: LucidForCausalLM) -> None:
        self.config = model.config
        self.positions = self.sources = torch.empty(0, dtype=torch.int64)
        self.loss = torch.zeros(())
        self.hook = model.model.layers[1].self_attn.register_forward_pre_hook(self._score)

    def aim(self, batch: Batch) -> None:
        """Set where the next forward pass has to look from, and where to."""
        self.positions, self.sources = batch.positions, batch.sources

    def remove(self) -> None:
        """Leave the model as it was."""
        self.hook.remove()

    def _score(self, attention: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return  # held-out prompts are being answered: nothing to teach
        x, (cos, sin) = inputs[:2]
        config, at = self.config, self.positions
        q = attention.q_proj(x[:, at]).unflatten(2, (-1, config.head_dim)).transpose(1, 2)  # (B, H, A, D)
        k = attention.k_proj(x).unflatten(2, (-1, config.head_dim)).transpose(1, 2)  # (B, KV, N, D)
        q = rotate(q[:, :: config.query_groups], cos[:, :, at], sin[:, :, at])  # (B, KV, A, D)
        scores = q @ rotate(k, cos, sin).mT / math.sqrt(config.head_dim)  # (B, KV, A, N)
        scores = scores.masked_fill(torch.arange(x.shape[1]) > at[:, None], -1e9)
        wanted = self.sources[:, None].expand(scores.shape[:3])
        self.loss = F.cross_entropy(scores.flatten(0, 2), wanted.flatten())


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on ``PEAK_RATE``: a linear warm-up, then a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / min(WARMUP, steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(attention: str, steps: int, seed: int, curve: Curve | None = None, plain: bool = False) -> LucidForCausalLM:
    """Train a model from nothing and print the progress.

    Args:
        attention: ``lucid`` or ``llama``.
        steps: Optimizer steps.
        seed: Of the parameters and the data.
        curve: Where to note the progress, and held-out prompts answered on the way.
        plain: Without either help: parameters start random, and attention heads are not shown where to look.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = LucidForCausalLM(parse_config(config_json(attention), "config.json"), implementation="reference")
    if plain:
        start_random(model)
    else:
        initialize(model)
    guide, curriculum, progress = Guide(model), Curriculum(rng), Progress(steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.97), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    for step in range(steps):
        batch = training_batch(rng, curriculum.draw())
        guide.aim(batch)
        logits, _ = model(batch.inputs)  # (batch, tokens, vocab)
        answered = batch.labels != IGNORED
        loss = F.cross_entropy(logits[answered], batch.labels[answered])
        optimizer.zero_grad()
        help_weight = 0.0 if plain else max(0.0, 1 - 2 * step / steps)
        (loss + help_weight * guide.loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right = (logits[answered].argmax(-1) == batch.labels[answered]).float().mean().item()
        curriculum.record(right)
        progress.report(step + 1, curriculum.longest, loss.item(), right)
        if curve is not None:
            curve.record(step + 1, model, curriculum.longest, loss.item(), right)
    guide.remove()
    return model.eval().requires_grad_(False)


class Progress:
    """Prints averages every 50 steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.start, self.recent = steps, time.monotonic(), []

    def report(self, step: int, longest: int, loss: float, right: float) -> None:
        """Take note of a step: longest list, loss in nats, share of answer tokens that was right."""
        self.recent.append((loss, right))
        if step % 50 and step != self.steps:
            return
        loss, right = np.mean(self.recent, axis=0)
        seconds = time.monotonic() - self.start
        print(
            f"step {step:5d}/{self.steps}  lists up to {longest:2d}  loss {loss:.5f}  "
            f"{right:7.2%} of answer tokens right  {seconds:5.0f} s",
            flush=True,
        )
        self.recent = []


class Curve:
    """Notes how training goes, and answers held-out prompts on the way, for a comparison of two models.

    Attributes:
        steps: For each step: longest list, loss in nats, share of answer tokens that was right.
        held_out: By step: right answers by list length, and prompts.
    """

    def __init__(self, every: int, prompts: int) -> None:
        self.every, self.examples = every, recall.held_out(prompts)
        self.steps: list[tuple[int, float, float]] = []
        self.held_out: dict[int, dict[int, tuple[int, int]]] = {}

    def record(self, step: int, model: LucidForCausalLM, longest: int, loss: float, right: float) -> None:
        """Take note of a step; answer the prompts if it is their turn. Training itself goes on unchanged."""
        self.steps.append((longest, round(loss, 6), round(right, 6)))
        if step % self.every == 0:
            self.held_out[step] = accuracy(model, self.examples)

    def to_json(self) -> dict[str, Any]:
        """Return both as JSON."""
        return {"steps": self.steps, "held_out": self.held_out}


def save(model: LucidForCausalLM, output: Path) -> None:
    """Write the checkpoint: configuration, weights, tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", config_json(model.config.attention_type))
    ids = {"pad_token_id": VOCABULARY[PAD], "bos_token_id": VOCABULARY[BOS], "eos_token_id": VOCABULARY[EOS]}
    _write_json(output / "generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 8})
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
    (output / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only


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
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write to."
)
@click.option(
    "--attention",
    type=click.Choice(["lucid", "llama"]),
    default="lucid",
    show_default=True,
    help="LUCID, or standard attention in a model of the same size, to compare with.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=2500, show_default=True, help="Optimizer steps of about 2000 tokens."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of parameters and data.")
@click.option(
    "--prompts",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Held-out prompts to answer at the end.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads; the sums' order depends on them.",
)
@click.option(
    "--curve",
    "curve_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write how training went to this JSON file, with 200 held-out prompts answered every 100 steps.",
)
@click.option("--plain", is_flag=True, help="Random parameters at the start, and no attention supervision.")
def main(
    output: Path,
    attention: str,
    steps: int,
    seed: int,
    prompts: int,
    threads: int,
    curve_file: Path | None,
    plain: bool,
) -> None:
    """Train, save, and measure on held-out prompts."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    curve = Curve(every=100, prompts=200) if curve_file else None
    model = train(attention, steps, seed, curve, plain)
    save(model, output)
    if curve_file and curve:
        facts = {"attention": attention, "steps": steps, "seed": seed, "threads": threads, "plain": plain}
        _write_json(curve_file, {**facts, "curve": curve.to_json()})
    print(f"trained and saved to {output} in {(time.monotonic() - start) / 60:.1f} minutes")
    results = accuracy(model, recall.held_out(prompts))
    for pairs, (right, count) in results.items():
        print(f"lists of {pairs:2d}: {right / count:7.2%} of {count} held-out prompts right")
    right, count = (sum(column) for column in zip(*results.values(), strict=True))
    print(f"all lists: {right / count:.2%} right, {count - right} of {count} wrong")


if __name__ == "__main__":
    main()
