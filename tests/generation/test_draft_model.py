"""Drafts of a second model: its own greedy answer, whatever of it was rejected before."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import ModelDrafter, check_draft
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import open_session
from tests.conftest import MIXED

PROMPT = [5, 17, 80, 5, 17, 33, 2, 9]


@pytest.fixture(params=["growing", "static"])
def session(request, exported):
    return open_session(exported(cache=request.param)[1], "onnxruntime", kernels="functions")


def greedy(session, ids, count):
    return list(Generation(session, ids, count, stop_at_eos=False))


def test_it_drafts_what_it_would_answer(session):
    drafter, text = ModelDrafter(session, 97), list(PROMPT)
    drafter.add(text)
    for right, other in ((4, 50), (0, 51), (2, 52), (1, 53), (3, 54)):
        drafts = drafter.propose(9)
        while not drafts:  # it pauses where nothing was accepted
            drafts = drafter.propose(9)
        assert drafts == greedy(session, text, len(drafts))
        right = min(right, len(drafts))
        drafter.learn(len(drafts), right)
        added = [*drafts[:right], other]
        for token in added:
            drafter.add([token])
        text += added


@pytest.mark.parametrize("place", [0, 1])
def test_it_stops_before_what_ends_the_answer(session, monkeypatch, place):
    ran, decode = [], session.decode
    answer = greedy(session, PROMPT, 2)
    assert answer[0] != answer[1]
    monkeypatch.setattr(session, "decode", lambda ids, cache: ran.append(int(ids[0, 0])) or decode(ids, cache))
    drafter = ModelDrafter(session, 97)
    drafter.ends = (answer[place], 96)
    drafter.add(PROMPT)
    assert drafter.propose(9) == ran == answer[:place]


def test_it_stops_at_the_end_of_its_context_and_of_its_vocabulary(exported):
    session = open_session(exported(max_position_embeddings=20)[1], "onnxruntime", kernels="functions")
    drafter = ModelDrafter(session, 97)
    drafter.add(list(range(5, 23)))
    assert len(drafter.propose(9)) == 2
    drafter.add([9, 9, 9])
    assert drafter.propose(9) == []
    drafter = ModelDrafter(session, 200)
    drafter.add([5, 150])  # the answering model knows more tokens
    assert drafter.propose(9) == []


def test_a_token_it_does_not_know_is_seen_behind_rejected_drafts(exported):
    session = open_session(exported()[1], "onnxruntime", kernels="functions")
    drafter = ModelDrafter(session, 200)
    drafter.add(PROMPT)
    assert len(drafter.propose(9)) == 4
    drafter.learn(4, 2)
    drafter.add([150])  # where the cache holds a draft
    assert drafter.propose(9) == []
    drafter.add([5])
    assert drafter.propose(9) == []


def test_a_long_text_runs_in_chunks_one_at_each_chance(session, monkeypatch):
    ran, prefill = [], session.prefill
    monkeypatch.setattr(session, "prefill", lambda ids, cache: ran.append(ids.shape[1]) or prefill(ids, cache))
    drafter, text = ModelDrafter(session, 97), [*PROMPT, *PROMPT, *PROMPT]
    drafter.chunk = 10
    drafter.add(text)
    for token in (9, 41):
        assert drafter.propose(9) == []
        drafter.add([token])
        text.append(token)
    assert ran == [10, 10]
    drafts = drafter.propose(9)
    assert ran == [10, 10, 6]
    monkeypatch.undo()
    assert drafts == greedy(session, text, 4)


def with_tokenizer(artifact, folder, **content):
    shutil.copytree(artifact.directory, folder)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return open_artifact(folder)


def test_tokenizers_are_compared(exported, tmp_path):
    artifact = exported()[1]
    one = with_tokenizer(artifact, tmp_path / "one", model={"vocab": {"a": 1}}, truncation=None)
    same = with_tokenizer(artifact, tmp_path / "same", model={"vocab": {"a": 1}}, truncation={"max_length": 9})
    other = with_tokenizer(artifact, tmp_path / "other", model={"vocab": {"b": 1}})
    check_draft(one, same)
    check_draft(artifact, artifact)
    for draft in (other, artifact):
        with pytest.raises(LucidError, match=f"--draft {draft.directory} has another tokenizer"):
            check_draft(one, draft)
    (tmp_path / "other" / "tokenizer.json").write_text("[")
    with pytest.raises(LucidError, match="is not a tokenizer"):
        check_draft(one, other)


def test_models_without_tokenizers_have_vocabularies_of_one_size(exported):
    artifact = exported()[1]
    config = dataclasses.replace(artifact.config, vocab_size=96)
    other = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, config=config))
    with pytest.raises(LucidError, match="a vocabulary of 96 tokens"):
        check_draft(artifact, other)


def test_layers_that_cannot_go_back_cannot_draft(exported):
    with pytest.raises(LucidError, match=r"cannot draft: layer 2 .window. keeps the last 9 tokens only"):
        check_draft(exported()[1], exported(**MIXED)[1])
