"""Greedy generation: drafts change nothing, and a free run is compared up to the first other token."""

import numpy as np
import pytest
import torch

from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure.compare import record
from lucid_deploy.parity.measure.greedy import follow, free_run, generate
from tests.parity.small_models import VOCAB, session

PROMPT = np.array([5, 9, 2, 9, 11])


@pytest.fixture(scope="module")
def exact(model):
    return session(model, torch.float64)


@pytest.mark.parametrize("wrong", [set(), {0}, {3}, {7}, {0, 1, 2, 3}, {2, 5, 7}, set(range(8))])
def test_drafts_do_not_change_what_the_reference_generates(exact, wrong):
    prompt = PROMPT
    wanted = generate(exact, prompt, 8)
    asked = []

    def draft(tokens, count):
        asked.append(count)
        start = len(tokens) - len(prompt)
        return np.array([(wanted[i] + (i in wrong)) % VOCAB for i in range(start, start + count)])

    np.testing.assert_array_equal(follow(exact, prompt, draft, 8), wanted)
    assert len(asked) == 1 + len(wrong - {7})  # behind the last token there is nothing to draft


def test_nothing_is_generated_in_no_steps(exact):
    assert len(follow(exact, PROMPT, lambda *_: pytest.fail("asked"), 0)) == 0


def run_freely(session, scenario):
    """Feed back what the session prefers, as long as it is the forced token; return its logits."""
    cache = session.empty_cache()
    rows = [session.prefill(scenario.prompt[None], cache)]
    for token in scenario.forced:
        chosen = rows[-1][0, -1].argmax()
        if chosen != token:
            break
        rows.append(session.decode(np.array([[chosen]]), cache))
    return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("wrong", [None, 0, 3, 5])
def test_a_free_run_is_read_off_the_forced_one_up_to_the_token_that_leaves(exact, wrong):
    forced = generate(exact, PROMPT, 6)
    if wrong is not None:
        forced[wrong] = (forced[wrong] + 1) % VOCAB
    scenario = Scenario("x", PROMPT, forced, greedy=True)
    trace = record(exact, scenario)
    found = free_run(trace.tensors[max(trace.tensors)], scenario)
    assert found.values.shape[1] == (7 if wrong is None else wrong + 1) and found.start == len(PROMPT) - 1
    np.testing.assert_array_equal(found.values, run_freely(exact, scenario))
