"""The kind ``window``: described without torch, and made into its module when it is asked to."""

from __future__ import annotations

from tests.model.config_samples import GEMMA, parse
from tests.model.layers.kinds import assert_imports_no_torch, assert_module_has_the_described_weights


def test_describing_it_imports_no_torch() -> None:
    assert_imports_no_torch("window")


def test_its_description_and_its_module_agree() -> None:
    found = assert_module_has_the_described_weights("window", parse(GEMMA))
    assert not found.solves and {tensor.sort for tensor in found.cache} == {"ring"}
