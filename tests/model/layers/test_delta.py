"""The kind ``delta``: described without torch, and made into its module when it is asked to."""

from __future__ import annotations

from tests.model.config_samples import parse
from tests.model.families.flash_model import MODELS, SMALL
from tests.model.layers.kinds import assert_imports_no_torch, assert_module_has_the_described_weights


def test_describing_it_imports_no_torch() -> None:
    assert_imports_no_torch("delta")


def test_its_description_and_its_module_agree() -> None:
    for given in MODELS.values():
        if given["model_type"] == "delta_net":
            found = assert_module_has_the_described_weights("delta", parse({**SMALL, **given}))
            assert not found.solves and {tensor.sort for tensor in found.cache} == {"state"}
            assert found.uses("DeltaRule", "prefill") and found.uses("DeltaRule", "decode")
