"""The constants that the model chooses, and that the stored ones are what it chose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.triton.model_choice import Modelled, best, candidates, model
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport
from lucid_deploy.plugins.precondition.plan import TUNED
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, Choice, choice
from lucid_deploy.plugins.table import FLOATS

REPORT = KernelReport("solve", 90, 4, 255, 0, 0, 0, 8, 400, 0, {"issue": 400.0}, 400.0, "issue")


def modelled(rows: int, columns: int, cycles: float | None, loop_spills: int = 0) -> Modelled:
    return Modelled(Choice(rows, columns, 4, 2), replace(REPORT, cycles=cycles, loop_spills=loop_spills))


def test_cycles_are_compared_for_the_same_number_of_elements() -> None:
    small, large = modelled(32, 32, 300.0), modelled(64, 64, 800.0)
    assert (small.cycles, large.cycles) == (300, 200)
    assert best([small, large]) == large


def test_what_spills_is_chosen_only_if_all_do() -> None:
    spills, clean = modelled(64, 64, 400.0, loop_spills=2), modelled(64, 64, 900.0)
    assert best([spills, clean]) == clean
    assert best([spills, modelled(64, 64, 500.0, loop_spills=1)]) == spills


def test_what_is_not_known_is_not_chosen() -> None:
    refused, unknown = Modelled(Choice(64, 64, 4, 2), None, "too much shared memory"), modelled(64, 64, None)
    assert best([refused, unknown, modelled(32, 32, 900.0)]).cycles == 900
    with pytest.raises(LucidError, match="knows none of the candidates"):
        best([refused, unknown])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("padded", PADDED_WIDTHS)
def test_candidates_are_tiles_that_the_kernel_takes(dtype: str, padded: int) -> None:
    for each in candidates(dtype, padded):
        assert each.block_m % each.block_n == 0 and each.block_n >= 16
        assert each.chunk == 0 or (padded % each.chunk == 0 and each.chunk < padded)


def test_what_cannot_be_compiled_says_why(tmp_path: Path) -> None:
    no_power_of_two = Choice(64, 16, 4, 1, 24)
    [found] = model(86, "float32", 64, choices=[no_power_of_two], cache=tmp_path)
    assert found.report is None and found.reason.startswith("Triton failed to compile precondition_float32_d64_u4")


# Of the stored entries the two whose candidates compile fastest: one that spilled, one of another generation.
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "dtype", "padded"), [(80, "float32", 64), (90, "float32", 64)])
def test_the_stored_table_is_what_the_model_chooses(arch: int, dtype: str, padded: int) -> None:
    assert f"{arch} {dtype} {padded}" in json.loads(TUNED.read_text())["chosen_by_model"]
    chosen = best(model(arch, dtype, padded))
    assert chosen.report.loop_spills == 0
    assert choice(TUNED, arch, dtype, padded) == chosen.choice


def test_no_entry_claims_to_be_measured_and_modelled() -> None:
    tuned = json.loads(TUNED.read_text())
    assert not {name.split()[0] for name in tuned["chosen_by_model"]} & set(tuned["measured_on"])
    for name in tuned["chosen_by_model"]:
        arch, dtype, padded = name.split()
        assert choice(TUNED, int(arch), dtype, int(padded)) in candidates(dtype, int(padded))
