"""What may be asked of a verification."""

from lucid_deploy.parity.measure.extent import FULL, QUICK
from lucid_deploy.parity.options import VerifyOptions


def test_everything_is_run_unless_it_is_to_be_quick():
    assert VerifyOptions().extent == FULL
    assert VerifyOptions(quick=True).extent == QUICK


def test_steps_are_kept_where_they_are_given():
    assert VerifyOptions(quick=True, steps=3).extent.steps == 3
    assert VerifyOptions(quick=True, steps=3).extent.prompt_tokens == QUICK.prompt_tokens
    assert VerifyOptions(steps=3).extent.steps == 3


def test_prompts_are_as_long_as_they_are_asked_for():
    extent = VerifyOptions(quick=True, prompt_tokens=4096).extent
    assert (extent.prompt_tokens, extent.steps, extent.schedules) == (4096, QUICK.steps, QUICK.schedules)
    assert not any(sentence.startswith("Prompts have") for sentence in extent.left_out())
    assert "Prompts have 99 tokens at most, not 250" in next(VerifyOptions(prompt_tokens=99).extent.left_out())
