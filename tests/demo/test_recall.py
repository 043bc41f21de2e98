"""The recall task, the bundled checkpoint that was trained on it, and the script that trained it."""

import importlib
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from lucid_deploy.demo import recall
from lucid_deploy.model.checkpoint import DEMO, load_model, resolve
from lucid_deploy.model.lucid import LucidForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("train_recall")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(resolve(DEMO) / "tokenizer.json"))


def entries(prompt):
    """The (animal, adjective, thing) entries of a prompt's list."""
    return re.findall(r"(\w+) has (\w+) (\w+)[,.]", prompt)


def answers(model, prompts, new_tokens):
    """Greedy tokens through prefill and cached decode: ``(batch, tokens)`` to ``(batch, new_tokens)``."""
    logits, past = model(prompts, last_only=True)
    tokens = [logits.argmax(-1)]
    while len(tokens) < new_tokens:
        logits, past = model(tokens[-1], past, decode=True)
        tokens.append(logits.argmax(-1))
    return torch.cat(tokens, dim=1)


def wrong_answers(model, tokenizer, examples):
    (eos,) = model.config.eos_token_ids
    by_length = defaultdict(list)
    for example in examples:
        by_length[example.pairs].append(example)
    wrong = []
    for group in by_length.values():
        found = answers(model, torch.tensor([tokenizer.encode(example.prompt).ids for example in group]), 3)
        for example, row in zip(group, found.tolist(), strict=True):
            if (tokenizer.decode(row[:2]), row[2]) != (example.answer, eos):
                wrong.append((example, tokenizer.decode(row)))
    return wrong


@pytest.fixture(scope="module")
def wrong_in_torch(tokenizer):
    """What the bundled checkpoint gets wrong of 200 held-out prompts."""
    return wrong_answers(load_model(DEMO), tokenizer, recall.held_out(200))


def test_the_bundled_checkpoint_answers_held_out_prompts(wrong_in_torch):
    assert max(example.pairs for example in recall.held_out(200)) == recall.MAX_PAIRS
    assert len(wrong_in_torch) <= 2, wrong_in_torch


def test_the_answers_depend_on_the_preconditioner(tokenizer):
    """Otherwise right answers would not show that the solve is right."""
    lucid = load_model(DEMO)
    model = LucidForCausalLM(replace(lucid.config, attention_type="llama"))
    model.load_state_dict(lucid.state_dict())
    assert len(wrong_answers(model, tokenizer, recall.held_out(100))) > 50


def test_the_tokenizer_reads_every_word_and_writes_readable_text(tokenizer):
    example = recall.held_out(50)[-1]
    ids = tokenizer.encode(example.prompt).ids
    assert tokenizer.decode(ids) == example.prompt
    assert tokenizer.encode(example.prompt.upper()).ids == ids
    assert tokenizer.token_to_id("<unk>") not in tokenizer.encode(" ".join(recall.vocabulary())).ids
    assert tokenizer.token_to_id("<unk>") in tokenizer.encode("a word it never saw").ids


def test_prompts_state_their_answer_once_and_are_reproducible():
    examples = recall.held_out(100)
    assert examples == recall.held_out(100)
    assert examples != recall.held_out(100, seed=1)
    assert {example.pairs for example in examples} == set(range(recall.MIN_PAIRS, recall.MAX_PAIRS + 1))
    for example in examples:
        listed = entries(example.prompt)
        asked = re.search(r"(\w+) has$", example.prompt).group(1)
        assert len(listed) == len({animal for animal, _, _ in listed}) == example.pairs
        assert [f"{how} {what}" for who, how, what in listed if who == asked] == [example.answer]


def test_held_out_prompts_share_no_entry_with_training():
    held = {entry for example in recall.held_out(500) for entry in entries(example.prompt)}
    rng = np.random.default_rng(0)
    lists = recall.sample_lists(rng, recall.MAX_PAIRS, questions=12, batch=2000)
    rows = zip(lists.animals.flat, lists.adjectives.flat, lists.things.flat, strict=True)
    trained = {(recall.ANIMALS[i], recall.ADJECTIVES[j], recall.THINGS[k]) for i, j, k in rows}
    assert len(held) > 3000 and len(trained) > 25_000
    assert not held & trained
    assert all(recall.is_held_out(*entry) for entry in held)


def test_training_sequences_begin_with_a_prompt_and_label_its_answer(script, tokenizer):
    batch = script.training_batch(np.random.default_rng(0), pairs=5)
    inputs, labels = batch.inputs, batch.labels
    first = int((labels[0] != script.IGNORED).nonzero()[0])  # the prompt's last token
    prompt = tokenizer.decode(inputs[0, : first + 1].tolist())
    assert tokenizer.encode(prompt).ids == inputs[0, : first + 1].tolist()
    asked = prompt.split()[-2]
    answer = next(f"{how} {what}" for who, how, what in entries(prompt) if who == asked)
    assert tokenizer.decode(labels[0, first : first + 2].tolist()) == answer
    assert tokenizer.decode(labels[0, first + 2 : first + 3].tolist(), skip_special_tokens=False) == "<eos>"
    assert tokenizer.decode(inputs[0, batch.sources[0, :2]].tolist()) == answer
    assert batch.positions[:2].tolist() == [first, first + 1]


@pytest.mark.parametrize(
    ("attention", "more", "kinds"),
    [("lucid", ["--hybrid"], ("delta", "lucid", "delta")), ("llama", [], ("standard",) * 3)],
)
def test_the_training_script_writes_a_checkpoint(script, tmp_path, monkeypatch, attention, more, kinds):
    """Runs with one thread, whatever the script sets: on a busy machine two would wait for each other for long."""
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    command = ["--output", str(tmp_path), "--attention", attention, "--steps", "3", "--prompts", "30", *more]
    result = CliRunner().invoke(script.main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert threads == [2]
    assert "right" in result.output
    model = load_model(tmp_path)
    assert (model.config.attention_type, model.config.kinds) == (attention, kinds)
    names = {path.name for path in resolve(DEMO).iterdir() if path.suffix in (".json", ".safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert model(torch.tensor([[1, 7, 8]]))[0].isfinite().all()
