"""The kind ``standard``: described without torch, and made into its module when it is asked to."""

from __future__ import annotations

from tests.model.config_samples import LLAMA, parse
from tests.model.layers.kinds import assert_imports_no_torch, assert_module_has_the_described_weights


def test_describing_it_imports_no_torch() -> None:
    assert_imports_no_torch("standard")


def test_its_description_and_its_module_agree() -> None:
    found = assert_module_has_the_described_weights("standard", parse(LLAMA))
    assert not found.solves and {tensor.sort for tensor in found.cache} == {"rows"}
