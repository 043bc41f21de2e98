"""The operators' Triton functions, and the sources that compiled code depends on."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.decode_attention.plan import FLOAT8_KERNEL, plan_decode_attention
from lucid_deploy.plugins.delta_rule.plan import plan_delta_rule
from lucid_deploy.plugins.hosts.triton.kernel_functions import SOURCES, kernel_functions
from lucid_deploy.plugins.hosts.triton.launch import argument_name
from lucid_deploy.plugins.precondition.plan import plan_precondition

PLUGINS = Path(__file__).resolve().parents[4] / "plugins"
PREFIX = "lucid_deploy.plugins."


def with_imports(source: str) -> set[str]:
    """Return a source and all of ours that it imports, as paths below the plugins."""
    tree = ast.parse((PLUGINS / source).read_text())
    wanted = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    ours = [module.removeprefix(PREFIX).replace(".", "/") + ".py" for module in wanted if module.startswith(PREFIX)]
    return {source}.union(*map(with_imports, ours))


def test_every_source_of_the_kernels_is_listed() -> None:
    """One that is left out could change without its kernels being compiled again."""
    kernels = [path.relative_to(PLUGINS).as_posix() for path in PLUGINS.glob("*/kernel.py")]
    assert len(kernels) > 3
    assert set(SOURCES) == set().union(*map(with_imports, kernels))


def test_every_launch_of_a_plan_has_its_function() -> None:
    pytest.importorskip("triton", reason='the kernels need Triton: pip install -e ".[kernels]"')
    functions = kernel_functions()
    for plan in (
        plan_precondition(1, 2, 100, 7, 64, "float16", 1e-5, 90),
        plan_precondition(1, 2, 100, 7, 64, "bfloat16", 1e-5, 86),
        plan_precondition(1, 2, 100, 7, 64, "float32", 1e-5, 90),
        plan_decode_attention(1, 2, 4, 1000, 64, "bfloat16", 1e-5, 90),
        plan_decode_attention(1, 2, 4, 1000, 64, "bfloat16", 1e-5, 90, new=8),
        plan_decode_attention(1, 2, 4, 1000, 64, "bfloat16", 1e-5, 90, float8=True),
        plan_delta_rule(1, 2, 100, 64, 48, "float16", 1.0, 90),
        plan_delta_rule(1, 2, 1, 64, 48, "float16", 1.0, 90),
    ):
        for step in plan.steps:
            wanted = [*map(argument_name, step.pointers), *step.scalars, *step.constants]
            of_float8 = ["p_k_scale", "p_y_scale", "ADD_SQUARES", "Y_BY_FLOAT32"]
            absent = of_float8[2:] if step.kernel == FLOAT8_KERNEL else of_float8  # None without E4M3 …
            absent = [name for name in absent if name not in step.constants]  # … but the squares of half types
            absent = [*absent, *({"INT8", "PARTS", "PAIRS"} - set(step.constants))]  # 0 where E has no part of int8
            absent += ["p_y_past"] if step.kernel == "key_norms_kernel" and step.dtype != "float32" else []
            assert [name for name in functions[step.kernel].arg_names if name not in absent] == wanted


def test_a_missing_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(PREFIX) and name.endswith(".kernel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(LucidError, match=r'triton is needed to test it .*Run: pip install "triton'):
        kernel_functions("test it")
