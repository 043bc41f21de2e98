"""examples/train_needles.py: training sequences, and a training that goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import train_needles
from click.testing import CliRunner
from needle_training.data import to_batch
from needle_training.state import NAME, Settings
from needle_training.texts import KINDS, draw
from needle_training.words import VOCABULARY
from numpy.random import default_rng
from recall_training.data import IGNORED
from recall_training.words import EOS, build_tokenizer

from lucid_deploy.model.checkpoint import load_model

TINY = ["--steps", "6", "--context", "128", "--batch-tokens", "256", "--hidden", "32", "--threads", "1"]
SETTINGS = Settings("lucid", 6, 1, 128, 256, 32, False, 1)


def run(output: Path, *more: str, rc: int = 0) -> str:
    result = CliRunner().invoke(train_needles.main, ["--output", str(output), *TINY, *more])
    assert result.exit_code == rc, result.output
    assert rc == 0 or (result.exception is None or isinstance(result.exception, SystemExit))
    return result.output


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_model(output).state_dict()


@pytest.mark.parametrize("task", KINDS)
def test_labels_are_the_answers_and_sources_their_words(task):
    texts = [draw(default_rng(seed), task, sentences=12) for seed in range(3)]
    batch, tokenizer = to_batch(texts), build_tokenizer(VOCABULARY)
    assert batch.inputs.shape == batch.labels.shape == (3, 12 * 6 + KINDS[task].questions * KINDS[task].words)
    for row, text in enumerate(texts):
        labels = batch.labels[row]
        labelled = tokenizer.decode(labels[labels != IGNORED].tolist(), skip_special_tokens=False).split(f" {EOS}")
        answers = [tokenizer.decode([VOCABULARY[word] for word in question.answer]) for question in text.questions]
        assert [answer.strip() for answer in labelled] == [*answers, ""]
        # Where a head is shown to look stands the word that is labelled.
        assert batch.inputs[row, batch.sources[row]].tolist() == labels[batch.positions].tolist()
        inside = (labels != IGNORED) & (labels != VOCABULARY[EOS])
        assert batch.inputs[row, 1:][inside[:-1]].tolist() == labels[inside].tolist()


@pytest.mark.parametrize("attention", ["lucid", "llama"])
def test_a_stopped_training_gives_the_weights_of_one_that_was_not(tmp_path, attention):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert "min left" in run(whole, "--attention", attention)
    assert "stopped after step 2 of 6" in run(parts, "--attention", attention, "--stop-after", "2")
    assert not (parts / "config.json").exists()
    assert "saved" in run(parts, "--attention", attention)
    expected, found = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    untrained = tmp_path / "one"
    run(untrained, "--attention", attention, "--stop-after", "1")
    state = torch.load(untrained / NAME, weights_only=True)
    assert any((state["model"][name] != expected[name]).any() for name in expected)


def test_a_killed_training_goes_on_from_the_last_state(tmp_path, monkeypatch):
    """Whatever happens between two states, the file on disk is one of them."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    step = train_needles.train_step

    def fail_at_5(*arguments):
        if arguments[4] == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(train_needles, "train_step", fail_at_5)
    run(killed, "--save-every", "2", rc=1)
    assert torch.load(killed / NAME, weights_only=True)["step"] == 4
    assert [path.name for path in killed.iterdir()] == [NAME]
    monkeypatch.undo()
    run(killed, "--save-every", "2")
    expected, found = weights(whole), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_both_attentions_have_equal_size_and_data(tmp_path):
    models = [train_needles.new_model(train_needles.model_json(SETTINGS)) for _ in range(2)]
    lucid = {name: value.shape for name, value in models[0].state_dict().items()}
    standard = Settings("llama", *list(vars(SETTINGS).values())[1:])
    other = train_needles.new_model(train_needles.model_json(standard))
    assert lucid == {name: value.shape for name, value in other.state_dict().items()}
    assert (models[0].config.attention_type, other.config.attention_type) == ("lucid", "llama")
