"""Speculative decoding gives what plain decoding gives: the same tokens, or tokens of the same distribution."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import Drafter, LookupDrafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.speculation import is_near_tie, near_share
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Cache

PROMPT = [5, 9, 40, 5, 9, 40, 5, 9]


class Oracle(Drafter):
    """Drafts the answer, but every third token is wrong; end tokens do not stop a draft."""

    def __init__(self, answer):
        self._answer, self._said, self.heard = answer, 0, []

    def add(self, tokens):
        self._said += len(tokens)

    def propose(self, most):
        done = self._said - len(PROMPT)
        ahead = self._answer[done : done + min(most, 5)]
        return [(token + 1) % 90 if (done + i) % 3 == 2 else token for i, token in enumerate(ahead)]

    def learn(self, proposed, accepted):
        self.heard.append((proposed, accepted))


@pytest.fixture(params=["growing", "static"])
def session(request, exported):
    return open_session(exported(cache=request.param)[1], "onnxruntime", kernels="functions")


def generation(session, drafter=None, count=24, **fields):
    sampling = fields.pop("sampling", Sampling())
    return Generation(session, PROMPT, count, sampling, stop_at_eos=False, drafter=drafter, **fields)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(1.0, seed=5),
        Sampling(0.8, top_k=20, top_p=0.9, seed=1, presence_penalty=1.0, repetition_penalty=1.2),
        Sampling(frequency_penalty=0.5, bad_words=((33,), (5, 9))),
    ],
    ids=["greedy", "seed", "filters and penalties", "greedy with penalties"],
)
def test_the_tokens_are_those_of_plain_decoding(session, sampling):
    plain = list(generation(session, sampling=sampling))
    oracle = Oracle(plain)
    guessed = generation(session, oracle, sampling=sampling)
    assert list(guessed) == plain
    assert 0 < guessed.drafts.accepted < guessed.drafts.proposed
    assert sum(accepted for _, accepted in oracle.heard) <= guessed.drafts.accepted
    assert list(generation(session, LookupDrafter(), sampling=sampling)) == plain


@pytest.mark.parametrize("stop_after", [1, 5, 6, 24])
def test_the_cache_is_left_as_plain_decoding_leaves_it(session, stop_after):
    plain = list(generation(session))
    cache = session.empty_cache(1)
    tokens = iter(generation(session, Oracle(plain), cache=cache))
    assert list(itertools.islice(tokens, stop_after)) == plain[:stop_after]
    tokens.close()
    assert cache.length == len(PROMPT) + stop_after - 1 and cache.mask.all()
    if stop_after < 24:
        logits = session.decode(np.array([[plain[stop_after - 1]]]), cache)
        assert int(logits[0, -1].argmax()) == plain[stop_after]


class Right(Oracle):
    """Drafts five right tokens; the model adds one of its own after them."""

    def propose(self, most):
        done = self._said - len(PROMPT)
        return self._answer[done : done + min(most, 5)]


@pytest.mark.parametrize("stop_after", [1, 6, 8])
def test_only_tokens_that_the_caller_took_count_as_accepted(session, stop_after):
    """Drafts that are left when the caller stops, as at a stop string, do not count."""
    plain = list(generation(session))
    guessed = generation(session, Right(plain))
    tokens = iter(guessed)
    assert list(itertools.islice(tokens, stop_after)) == plain[:stop_after]
    tokens.close()
    assert guessed.drafts.accepted == sum(place % 6 != 0 for place in range(stop_after))


def test_an_answer_with_drafts_ends_where_the_context_ends(exported):
    session = open_session(exported(max_position_embeddings=20)[1], "onnxruntime", kernels="functions")
    plain = generation(session, count=50)
    tokens = list(plain)
    for drafter in (Oracle([*tokens, *tokens]), Right([*tokens, *tokens]), LookupDrafter()):
        guessed = generation(session, drafter, count=50)
        assert list(guessed) == tokens and guessed.finish_reason == plain.finish_reason == "context"


class Markov:
    """A model with five tokens, whose logits depend on the last two. It keeps the tokens, its cache only the mask."""

    config = SimpleNamespace(vocab_size=5, eos_token_ids=())
    dtype, cache_dtype, rounded_inputs = "float32", "float32", None
    multi_token_unsupported_reason, cuts_freely, context_limit, prefill_chunk = None, True, None, None
    LOGITS = np.random.default_rng(3).normal(0, 1.5, (5, 5, 5)).astype(np.float32)

    def __init__(self):
        self.tokens = []

    def prepare_several(self):
        pass

    def check_length(self, tokens):
        pass

    def empty_cache(self, batch):
        return Cache(np.ones((batch, 0), bool), [])

    def decode(self, ids, cache):
        logits = []
        for token in ids[0]:
            self.tokens.append(int(token))
            logits.append(self.LOGITS[self.tokens[-2:][0], self.tokens[-1]])
        cache.mask = np.ones((1, len(self.tokens)), bool)
        return np.array([logits])

    decode_several = decode

    def prefill(self, ids, cache, **_):
        return self.decode(ids, cache)[:, -1:]

    def truncate(self, cache, length):
        del self.tokens[length:]
        cache.mask = cache.mask[:, :length]


class Guess(Drafter):
    """Drafts the likeliest tokens, which are often wrong."""

    def add(self, tokens):
        self._text = [*tokens][-2:] if len(tokens) > 1 else [self._text[-1], *tokens]

    def propose(self, most):
        pair = list(self._text)
        for _ in range(min(most, 4)):
            pair.append(int(Markov.LOGITS[pair[-2], pair[-1]].argmax()))
        return pair[2:]

    def learn(self, proposed, accepted):
        pass


def sampled(count, seed, speculate):
    """Return tokens drawn from one chain, with or without drafts."""
    sampling = Sampling(1.2, top_p=0.95, seed=seed)
    chain = Generation(Markov(), [0, 1, 2], count, sampling, drafter=Guess() if speculate else None)
    tokens = list(chain)
    assert not speculate or 0.2 < chain.drafts.accepted / chain.drafts.proposed < 0.9
    return tokens


def test_sampled_tokens_have_the_distribution_of_plain_sampling():
    """Chi-square of two samples of triples: four standard deviations above its mean would be no coincidence."""
    count, triples = 12000, []
    for seed, speculate in ((1, False), (2, True)):
        tokens = np.array(sampled(count, seed, speculate))
        triples.append(np.bincount(tokens[:-2] * 25 + tokens[1:-1] * 5 + tokens[2:], minlength=125))
    one, other = (each[triples[0] + triples[1] >= 10].astype(float) for each in triples)
    statistic = ((one - other) ** 2 / (one + other)).sum()
    freedom = len(one) - 1
    assert freedom > 60 and statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("second", "dtype", "cache_dtype", "expected"),
    [
        (9.9999, "float32", "float32", True),
        (9.998, "float32", "float32", False),
        (9.95, "float16", "float16", True),
        (9.89, "float16", "float16", False),
        (9.72, "bfloat16", "bfloat16", True),  # an answer differed at 9.897
        (9.68, "bfloat16", "bfloat16", False),
        (9.7, "float32", "int8", True),  # answers differed first at such gaps
        (9.68, "float32", "int8", False),
    ],
)
def test_near_ties_are_gaps_within_the_rounding_of_the_model_and_its_cache(second, dtype, cache_dtype, expected):
    for logits in (np.array([1.0, 10.0, second]), np.array([second, 10.0, -2.0])):
        assert is_near_tie(logits, logits, near_share(dtype, cache_dtype)) is expected


def test_a_repetition_penalty_widens_near_ties():
    adjusted, logits = np.array([10.0, 9.998, -1.0]), np.array([10.0, 5.0, -1.0])
    assert not is_near_tie(adjusted, logits, 1e-4)
    assert is_near_tie(adjusted, logits, 1e-4, 3.0) and is_near_tie(adjusted, logits, 1e-4, 1 / 3)


@pytest.mark.parametrize(
    ("cache", "cache_dtype"),
    [("growing", "float16"), ("growing", "int8"), ("static", "int8")],
)
def test_answers_with_rounded_caches_differ_only_at_near_ties(exported, cache, cache_dtype):
    """New tokens may see each other before they are rounded, so a token may differ where two are almost equal."""
    session, rng = open_session(exported(cache=cache, cache_dtype=cache_dtype)[1], threads=1), np.random.default_rng(2)
    share, equal = near_share(session.dtype, session.cache_dtype, session.rounded_inputs), 0
    for _ in range(8):
        prompt = [*map(int, rng.integers(3, session.config.vocab_size, len(PROMPT)))]
        plain = list(Generation(session, prompt, 24, Sampling(), stop_at_eos=False))
        guessed = Generation(session, prompt, 24, Sampling(), stop_at_eos=False, drafter=Oracle(plain))
        found = list(guessed)
        assert guessed.drafts.accepted > 0
        if found == plain:
            equal += 1
            continue
        at = next(i for i, (ours, theirs) in enumerate(zip(found, plain, strict=True)) if ours != theirs)
        logits = session.prefill(np.array([prompt + plain[:at]]), session.empty_cache())[0, -1]
        assert is_near_tie(logits, logits, share) and guessed.drafts.near_ties > 0
    assert equal >= 4  # otherwise only near ties were tested


def test_a_step_that_fails_removes_no_tokens_from_the_cache(session, monkeypatch):
    plain = list(generation(session))
    cache, run = session.empty_cache(1), session.decode_several

    def fail_later(ids, held):
        if held.mask.sum() > len(PROMPT) + 5:
            raise LucidError("The runtime failed.")
        return run(ids, held)

    monkeypatch.setattr(session, "decode_several", fail_later)
    tokens = []
    with pytest.raises(LucidError, match="The runtime failed"):
        tokens.extend(itertools.chain(token for token in generation(session, Oracle(plain), cache=cache)))
    assert cache.length > len(PROMPT) + 5
    logits = session.decode(np.array([[plain[cache.length - len(PROMPT)]]]), cache)
    assert int(logits[0, -1].argmax()) == plain[cache.length - len(PROMPT)]


def test_nan_of_a_rejected_draft_stays_out_of_the_answer(session, monkeypatch):
    """A draft's rows of K and Y that are not finite are dropped: with a weight of 0 they would still give NaN."""
    plain, run = list(generation(session)), session.decode_several

    def broken(ids, cache):
        logits = run(ids, cache)
        kept, new = cache.length - 1, ids.shape[1]
        arrays = [tuple(x.copy() for x in layer) for layer in session.layer_arrays(cache)]
        for layer in arrays:
            for x in layer:
                x[:, :, kept:] = np.nan  # the rows of the last draft, which is wrong
        cache.layers = session.cache_from_arrays(arrays, cache.mask).layers
        logits[0, new - 1] = np.nan
        return logits

    class Wrong(Oracle):
        def propose(self, most):
            ahead = super().propose(most)[:2]
            return [*ahead[:-1], (plain[self._said - len(PROMPT) + len(ahead) - 1] + 1) % 90] if ahead else []

    monkeypatch.setattr(session, "decode_several", broken)
    guessed = generation(session, Wrong(plain))
    assert list(guessed) == plain and guessed.drafts.proposed > 9
