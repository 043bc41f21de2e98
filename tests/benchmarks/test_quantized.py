"""What benchmarks/quantized.py exports is what export takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import quantized

from lucid_deploy.export.options import ExportOptions, check_request

VARIANTS = {**quantized.VARIANTS, **quantized.FORMS}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_options_that_export_takes(options: ExportOptions, tmp_path: Path) -> None:
    check_request(tmp_path / "artifact", options)


def test_variants_are_named_by_type_and_block() -> None:
    assert list(quantized.VARIANTS) == [
        *("float32", "float16", "int8-32", "int8-128", "int4-32", "int4-128", "int4-32-float"),
    ]
