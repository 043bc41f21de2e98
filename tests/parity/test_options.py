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
