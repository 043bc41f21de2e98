"""Which options mean which numbers; what each of them writes is tested in its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.numbers import (
    learned_numbers,
    plan_numbers,
    rows_to_learn_from,
    settle_options,
)
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint
from tests.model.packed.packing import write_packed


def test_of_a_checkpoint_in_floats(make_checkpoint: Any, tmp_path: Path) -> None:
    source, nearest = Checkpoint(make_checkpoint()), QuantizeOptions("int4")
    assert settle_options(source, None, "float32") is None
    assert settle_options(source, nearest, "float32") == nearest
    plan = plan_numbers(source, nearest, "float32")
    assert plan.method.name == "rtn" and rows_to_learn_from(source, nearest, plan, None) is None
    learned = QuantizeOptions("int4", method="gptq", gptq_order="stored", gptq_damping=0.5)
    with pytest.raises(LucidError, match="learns from text"):
        rows_to_learn_from(source, learned, plan, None)
    (tmp_path / "ids.jsonl").write_text(str(list(range(97)) * 2))
    rows = rows_to_learn_from(source, learned, plan, tmp_path / "ids.jsonl")
    record, found = learned_numbers(source, learned, plan, rows, "float32")
    assert record is not None and found is not None
    assert record.method.settings == {"damping": 0.5, "activation_order": False}
    assert found.parts.keys() == record.tensors.keys() and not found.folded
    assert learned_numbers(source, nearest, plan, None, "float32") == (plan, None)


def test_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "gptq")
    source = Checkpoint(tmp_path / "c")
    options = settle_options(source, None, "float16")
    assert options == QuantizeOptions("stored")
    assert plan_numbers(source, options, "float16").method.name == "stored"
    with pytest.raises(LucidError, match="no bfloat16 kernel"):
        plan_numbers(source, options, "bfloat16")
