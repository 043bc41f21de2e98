"""Drafts from what a text repeats, and how their length adapts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_deploy.generation.drafting import MOST_DRAFTS, DraftLength, LookupDrafter


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
        ([1, 2, 3, 9, 1], 5, [2, 3]),  # behind one token, two are drafted at first
        ([1, 2, 3, 4, 5, 6, 9, 1, 2], 9, [3, 4, 5, 6]),  # behind two, four
        ([1, 2, 3, 4, 5, 6, 9, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 9, 1, 3, 8, 1], 5, [3, 8]),  # the last place counts
        ([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 1, [9]),  # and the longest n-gram before it
        ([4, 4, 4], 8, [4, 4, 4, 4]),  # behind the end of the text, what is copied goes on itself
        ([1, 2, 1, 2, 1], 5, [2, 1, 2, 1, 2]),
    ],
)
def test_what_is_proposed(ids, most, drafts):
    assert drafter_of(ids).propose(most) == drafts


@pytest.mark.parametrize(("ends", "drafts"), [((), [3, 4, 3, 5]), ((5, 9), [3, 4, 3]), ([4], [3]), ((3,), [])])
def test_a_proposal_stops_before_what_ends_the_answer(ends, drafts):
    drafter = drafter_of([1, 2, 3, 4, 3, 5, 9, 1, 2])
    drafter.ends = ends
    assert drafter.propose(9) == drafts


def test_the_longest_and_last_place_is_found_in_any_text():
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


def test_a_text_may_grow_to_any_length():
    rng = np.random.default_rng(0)
    ids, drafter = rng.permutation(70_000).tolist(), drafter_of([])
    for first in range(0, len(ids), 999):
        drafter.add(ids[first : first + 999])
        assert drafter.propose(3) == []  # no token was there before
    drafter.add(ids[500:504])
    assert drafter.propose(3) == ids[504:507]


def test_a_text_told_token_by_token_is_the_text_told_at_once():
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 3, 1, 4, 1]
    slow = drafter_of([])
    for token in ids:
        slow.add([token])
    assert slow.propose(9) == drafter_of(ids).propose(9) == [5, 9, 2, 6, 5, 3, 5, 3]


def test_the_length_follows_what_is_accepted():
    length = DraftLength(4)
    found = []
    for accepted in (4, 8, 15, 15, 6, 0):
        count = length.now()
        found.append(count)
        length.learn(count, accepted)
    assert found == [4, 8, 15, 15, 15, 7] and max(found) == MOST_DRAFTS
    assert [length.now() for _ in range(2)] == [0, 3]  # one chance is passed over


def test_a_text_without_repetition_is_left_alone_more_and_more():
    length, tries = DraftLength(2), 0
    for _ in range(1000):
        count = length.now()
        if count:
            tries += 1
            length.learn(count, 0)
    assert tries <= 1000 / 64 + 8


def test_each_length_of_n_gram_learns_for_itself():
    drafter = drafter_of([1, 2, 3, 9, 1])
    assert drafter.propose(5) == [2, 3]
    drafter.learn(2, 0)
    assert drafter.propose(5) == []  # a single token is not trusted now
    drafter.add([2])
    assert drafter.propose(5) == [3, 9, 1, 2]  # two are


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
