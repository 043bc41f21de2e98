"""Drafts from repetitions in a text and from a second model, and the arguments of the modes of speculation."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import (
    MOST_DRAFTS,
    DraftLength,
    LookupDrafter,
    ModelDrafter,
    check_draft,
    open_drafters,
)
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from tests.conftest import MIXED


def drafter_of(ids):
    drafter = LookupDrafter()
    drafter.add(ids)
    return drafter


@pytest.mark.parametrize(
    ("ids", "most", "drafts"),
    [
        ([], 5, []),
        ([7], 5, []),
        ([1, 2, 3, 4], 5, []),  # nothing is repeated
        ([1, 2, 3, 9, 1], 5, [2, 3]),  # after one repeated token, two are drafted at first
        ([1, 2, 3, 4, 5, 6, 9, 1, 2], 9, [3, 4, 5, 6]),  # after two, four
        ([1, 2, 3, 4, 5, 6, 9, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 9, 1, 3, 8, 1], 5, [3, 8]),  # the last occurrence counts
        ([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 1, [9]),  # and the longest n-gram before it
        ([4, 4, 4], 8, [4, 4, 4, 4]),  # after the text's end, the copy itself is copied
        ([1, 2, 1, 2, 1], 5, [2, 1, 2, 1, 2]),
    ],
)
def test_lookup_proposes_what_followed_the_longest_repeated_n_gram(ids, most, drafts):
    assert drafter_of(ids).propose(most) == drafts


@pytest.mark.parametrize(("ends", "drafts"), [((), [3, 4, 3, 5]), ((5, 9), [3, 4, 3]), ([4], [3]), ((3,), [])])
def test_a_proposal_stops_before_what_ends_the_answer(ends, drafts):
    drafter = drafter_of([1, 2, 3, 4, 3, 5, 9, 1, 2])
    drafter.ends = ends
    assert drafter.propose(9) == drafts


def test_the_last_occurrence_of_the_longest_n_gram_is_found_in_any_text():
    """Few tokens repeat n-grams of all lengths; each text is searched token by token as well."""
    rng = np.random.default_rng(0)
    for case in range(600):
        ids = rng.integers(0, 1 + case % 7, case % 30).tolist()
        places = [
            place
            for n in (4, 3, 2, 1)
            for place in range(len(ids) - 1, n - 1, -1)
            if ids[place - n : place] == ids[-n:]
        ]
        assert drafter_of(ids).propose(1) == ([ids[places[0]]] if places else []), ids


def test_the_draft_length_follows_what_is_accepted():
    length = DraftLength(4)
    found = []
    for accepted in (4, 8, 15, 15, 6, 0):
        count = length.now()
        found.append(count)
        length.learn(count, accepted)
    assert found == [4, 8, 15, 15, 15, 7] and max(found) == MOST_DRAFTS
    assert [length.now() for _ in range(2)] == [0, 3]  # after a pause of one step


def test_each_n_gram_length_has_its_own_draft_length():
    drafter = drafter_of([1, 2, 3, 9, 1])
    assert drafter.propose(5) == [2, 3]
    drafter.learn(2, 0)
    assert drafter.propose(5) == []  # drafts after a single token pause now
    drafter.add([2])
    assert drafter.propose(5) == [3, 9, 1, 2]  # drafts after two tokens do not


def test_little_is_drafted_where_nothing_is_copied():
    """Words drawn at random, common ones often, repeat n-grams by chance alone.

    A drafted token costs up to 0.15 of a step (docs/performance.md), and all of them may cost 3 % of the steps.
    """
    rng = np.random.default_rng(0)
    ids = rng.choice(5000, 3000, p=(share := 1 / np.arange(1, 5001)) / share.sum()).tolist()
    drafter, proposed = drafter_of(ids[:1000]), 0
    for token, following in itertools.pairwise(ids[1000:]):
        drafter.add([token])
        drafts = drafter.propose(MOST_DRAFTS)
        if drafts:
            proposed += len(drafts)
            drafter.learn(len(drafts), int(drafts[0] == following))
    assert 0.15 * proposed <= 0.03 * 2000


PROMPT = [5, 17, 80, 5, 17, 33, 2, 9]


@pytest.fixture(params=["growing", "static"])
def session(request, exported):
    return open_session(exported(cache=request.param)[1], "onnxruntime", kernels="functions")


def greedy(session, ids, count):
    return list(Generation(session, ids, count, stop_at_eos=False))


def test_a_draft_model_drafts_what_it_would_answer(session):
    drafter, text = ModelDrafter(session, 97), list(PROMPT)
    drafter.add(text)
    for right, other in ((4, 50), (0, 51), (2, 52), (1, 53), (3, 54)):
        drafts = drafter.propose(9)
        while not drafts:  # the drafter pauses after a proposal without accepted tokens
            drafts = drafter.propose(9)
        assert drafts == greedy(session, text, len(drafts))
        right = min(right, len(drafts))
        drafter.learn(len(drafts), right)
        added = [*drafts[:right], other]
        for token in added:
            drafter.add([token])
        text += added


@pytest.mark.parametrize("place", [0, 1])
def test_a_draft_model_stops_before_what_ends_the_answer(session, monkeypatch, place):
    ran, decode = [], session.decode
    answer = greedy(session, PROMPT, 2)
    assert answer[0] != answer[1]
    monkeypatch.setattr(session, "decode", lambda ids, cache: ran.append(int(ids[0, 0])) or decode(ids, cache))
    drafter = ModelDrafter(session, 97)
    drafter.ends = (answer[place], 96)
    drafter.add(PROMPT)
    assert drafter.propose(9) == ran == answer[:place]


def test_a_draft_model_stops_at_the_end_of_its_context_and_at_unknown_tokens(exported):
    session = open_session(exported(max_position_embeddings=20)[1], "onnxruntime", kernels="functions")
    drafter = ModelDrafter(session, 97)
    drafter.add(list(range(5, 23)))
    assert len(drafter.propose(9)) == 2
    drafter.add([9, 9, 9])
    assert drafter.propose(9) == []
    drafter = ModelDrafter(session, 200)
    drafter.add([5, 150])  # the answering model knows more tokens
    assert drafter.propose(9) == []


def test_an_unknown_token_after_rejected_drafts_stops_drafting(exported):
    session = open_session(exported()[1], "onnxruntime", kernels="functions")
    drafter = ModelDrafter(session, 200)
    drafter.add(PROMPT)
    assert len(drafter.propose(9)) == 4
    drafter.learn(4, 2)
    drafter.add([150])  # at a place where the cache holds a draft
    assert drafter.propose(9) == []
    drafter.add([5])
    assert drafter.propose(9) == []


def test_a_draft_model_reads_a_long_text_in_one_chunk_per_proposal(session, monkeypatch):
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


def test_a_draft_model_with_another_tokenizer_is_refused(exported, tmp_path):
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


def test_a_draft_model_whose_cache_cannot_be_cut_back_is_refused(exported):
    with pytest.raises(LucidError, match=r"cannot draft: layer 2 .window. keeps only the last 9 tokens"):
        check_draft(exported()[1], exported(**MIXED)[1])


def test_every_mode_has_its_drafter(exported):
    artifact = exported()[1]
    assert open_drafters("off", artifact) is None
    lookup = open_drafters("lookup", artifact)
    assert isinstance(lookup(), LookupDrafter) and lookup() is not lookup()
    draft = open_drafters("draft", artifact, artifact.directory)
    assert isinstance(draft(), ModelDrafter) and draft() is not draft()


def test_the_draft_model_runs_without_ablation_and_is_closed(exported, monkeypatch):
    artifact, closed = exported()[1], []
    made = open_drafters("draft", artifact, artifact.directory, RuntimeOptions("torch", ablate="preconditioner"))
    plain, logits = open_session(artifact, "torch"), []
    for session in (made.session, plain):
        logits.append(session.prefill(np.array([[5, 6, 5, 7]]), session.empty_cache(1)))
    assert np.array_equal(*logits)
    monkeypatch.setattr(made.session, "close", lambda: closed.append(True))
    made.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("mode", "draft", "message"),
    [
        ("always", None, "speculate must be off, lookup, draft, not 'always'"),
        ("draft", None, "go together"),
        ("lookup", "x", "go together"),
        ("off", "x", "go together"),
        ("draft", "nowhere", "There is no artifact at nowhere"),
    ],
)
def test_invalid_combinations_of_mode_and_draft_are_refused(exported, mode, draft, message):
    with pytest.raises(LucidError, match=message):
        open_drafters(mode, exported()[1], draft)
