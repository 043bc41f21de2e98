"""The options of sampling become one ``Sampling``."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest
from click.testing import CliRunner, Result

from lucid_deploy.batching.prompt_file import PromptDefaults
from lucid_deploy.cli._generation_options import answer_options
from lucid_deploy.generation.sampling import Sampling

seen: list[tuple[Sampling, tuple[str, ...]]] = []


@click.command()
@answer_options(8, None, "Chunk.")
def command(answers: PromptDefaults, prefill_chunk: int | None) -> None:
    assert (answers.max_new_tokens, answers.stop_at_eos, prefill_chunk) == (8, True, None)
    seen.append((answers.sampling, answers.bad_words))


def run(words: str) -> Result:
    seen.clear()
    return CliRunner().invoke(command, words.split())


def test_every_field_has_its_option() -> None:
    wanted = Sampling(0.5, 3, 0.9, 7, 0.1, 1.0, -1.0, 1.2, ((5, -100.0), (6, 2.5)))
    unset = [item.name for item in fields(Sampling) if getattr(wanted, item.name) == getattr(Sampling(), item.name)]
    assert unset == ["bad_words"]  # texts, which only a tokenizer makes tokens
    words = "--temperature 0.5 --top-k 3 --top-p 0.9 --seed 7 --min-p 0.1 --presence-penalty 1 --frequency-penalty -1"
    run(f"{words} --repetition-penalty 1.2 --logit-bias 5=-100 --logit-bias 6=2.5 --bad-word a --bad-word b")
    assert seen == [(wanted, ("a", "b"))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--logit-bias 5", "such as 15=-100, not '5'"),
        ("--logit-bias =5", "is no token id"),
        ("--logit-bias 5=1 --logit-bias 5=2", "names a token twice"),
        ("--logit-bias 5=nan", "bias of token 5 must be -100 to 100"),
        ("--min-p 2", "min_p must be 0 to 1"),
    ],
)
def test_wrong_values_are_refused(words: str, said: str) -> None:
    assert said in str(run(words).exception) and seen == []
