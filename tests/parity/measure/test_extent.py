"""How much is run, and what is said to be left out."""

from dataclasses import replace

from lucid_deploy.model.scenarios import SCHEDULES
from lucid_deploy.parity.measure.extent import FULL, QUICK


def test_a_whole_verification_leaves_nothing_out():
    assert list(FULL.left_out()) == []
    assert FULL.schedules == SCHEDULES


def test_a_quick_one_says_everything_that_it_leaves_out():
    words = " ".join(QUICK.left_out())
    for part in (
        "140 tokens",
        "not 250",
        "8 tokens are decoded",
        "not 32",
        "one token, correlated",
        "by token or in turns",
    ):
        assert part in words
    assert "Decoding is tried after 140 tokens and more" in words


def test_only_what_differs_is_named():
    assert not any("decoded" in line for line in replace(QUICK, steps=32).left_out())
    assert list(replace(FULL, steps=4).left_out()) == ["4 tokens are decoded after each prompt, not 32."]


def test_a_quick_one_takes_a_fraction_of_the_tokens():
    def tokens(extent):
        return len(extent.schedules) * (extent.prompt_tokens + extent.steps)

    assert 3 * tokens(QUICK) < tokens(FULL)
    assert QUICK.prompt_tokens > 128  # it still ends inside the second block


def test_a_cache_that_rounds_has_all_steps_in_every_way_of_feeding():
    whole = FULL.with_all_steps()
    assert [schedule.name for schedule in whole.schedules] == [schedule.name for schedule in FULL.schedules]
    assert all(schedule.steps is None for schedule in whole.schedules) and list(whole.left_out()) == []
