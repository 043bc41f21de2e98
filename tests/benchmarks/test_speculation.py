"""What benchmarks/speculation.py follows: lists that are copied, needles, and a text in which nothing is."""

from __future__ import annotations

import speculation
from click.testing import CliRunner

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.model.checkpoint import DEMO, resolve


def test_answers_are_those_of_the_prompts() -> None:
    tokenizer, found = TextTokenizer(resolve(DEMO)), speculation.texts(300, 20)
    [(prompt, answer)] = found["recall"]
    listed = tokenizer.decode(prompt)
    entries = [entry.strip() for entry in tokenizer.decode(answer).split(",")]
    assert len(entries) > 20 and all(entry in listed for entry in entries)
    assert len(found["needles"]) == 4
    for prompt, answer in found["needles"]:
        assert tokenizer.decode(answer).rstrip(" .") in tokenizer.decode(prompt) and len(prompt) > 200
    assert len(found["numbers"]) == 4
    for prompt, answer in found["numbers"]:
        places = [i for i in range(len(prompt)) if prompt[i : i + len(answer)] == answer]
        assert len(answer) == 6 and len(places) == 1 and len(prompt) > 200  # five digits and the full stop
    [(prompt, answer)] = found["text"]
    assert len({*prompt, *answer}) == len(prompt) + len(answer) == 320


def test_it_says_how_it_is_used() -> None:
    result = CliRunner().invoke(speculation.main, ["--help"])
    assert result.exit_code == 0 and "--context" in result.stdout
