"""Kernels in Python run a case's graph; what is off is named."""

from __future__ import annotations

from lucid_deploy.conformance.case_files import CASES, read_case
from lucid_deploy.conformance.plain import PlainKernels
from lucid_deploy.conformance.run_kernels import run_kernels
from lucid_deploy.conformance.wrong_kernels import NormalizedKeysCached, ShiftMissing


def test_what_is_off_is_named_with_its_error() -> None:
    case = read_case(CASES / "decode_attention_past")
    assert run_kernels(case, PlainKernels) == {}
    assert run_kernels(case, ShiftMissing).keys() == {"O", "Y_new"}


def test_a_model_puts_out_the_keys_that_its_kernels_cache() -> None:
    found = run_kernels(read_case(CASES / "model_decode"), NormalizedKeysCached)
    assert found.keys() == {"present.0.key", "present.1.key"} and min(found.values()) > 0.1
