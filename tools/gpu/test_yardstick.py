"""The yardstick computes attention."""

import pytest

from tools.gpu.yardstick_runs import run_yardstick


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_yardstick_is_attention(dtype: str, interpret) -> None:
    result = interpret(run_yardstick, dtype)
    assert result["error"] <= 4 * result["baseline"]
