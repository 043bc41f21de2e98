"""Stand-ins for compiled kernels and for libcuda, and a harness that runs the plugins with them."""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.plugins.decode_attention.plan import plan_decode_attention
from lucid_deploy.plugins.delta_rule.plan import plan_delta_rule
from lucid_deploy.plugins.hosts.tensorrt.build import (
    build_plugin,
    find_compiler,
    find_cuda_headers,
    find_tensorrt_headers,
)
from lucid_deploy.plugins.hosts.triton.aot import ptx_architecture, variants
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from lucid_deploy.plugins.precondition.plan import plan_precondition
from lucid_deploy.plugins.shared.plan import Plan, Step, Variant
from lucid_deploy.plugins.table import DECODE_ATTENTION_FLOAT8, DELTA_RULE, FLOATS, OPERATORS, PRECONDITION
from tests.patience import PATIENCE

HERE = Path(__file__).parent
SHARED_BYTES = {80: 50_000, 86: 40_000, 90: 90_000}  # above and below the 48 KiB that need no attribute


@functools.cache
def signatures() -> dict[tuple[str, str], str]:
    """Return one letter for each argument of each kernel, by its name and type, from the plans."""
    plans = [
        plan
        for dtype in FLOATS
        for plan in (
            plan_precondition(1, 1, 1, 0, 64, dtype, 1e-5, 80),
            plan_precondition(1, 1, 1, 0, 64, dtype, 1e-5, 90),
            plan_decode_attention(1, 1, 1, 0, 64, dtype, 1e-5, 80),
            plan_decode_attention(1, 1, 1, 0, 64, dtype, 1e-5, 80, new=2),
            plan_delta_rule(1, 1, 1, 64, 64, dtype, 1.0, 80),
            plan_delta_rule(1, 1, 2, 64, 64, dtype, 1.0, 80),
        )
    ]
    half = [dtype for dtype in FLOATS if dtype != "float32"]
    plans += [plan_decode_attention(1, 1, 1, 0, 64, dtype, 1e-5, 89, float8=True) for dtype in half]
    return {(step.kernel, step.dtype): signature(step) for plan in plans for step in plan.steps}


def signature(step: Step) -> str:
    scalars = ("f" if isinstance(value, float) else "i" for value in step.scalars.values())
    return "p" * len(step.pointers) + "".join(scalars) + "pp"  # two scratch pointers come last


def stand_in(variant: Variant, arch: int, is_ptx: bool = False) -> CompiledKernel:
    image = f"{variant.name} {'ptx' if is_ptx else arch} {signatures()[variant.kernel, variant.dtype]}\0"
    shared = SHARED_BYTES.get(arch, 1000)
    constants = dict(variant.constants)
    return CompiledKernel(
        variant.name, arch, is_ptx, variant.kernel, shared, variant.num_warps, constants, [], image.encode()
    )


def stand_ins(archs: Iterable[int], ptx: bool = True) -> list[CompiledKernel]:
    kernels = [stand_in(variant, arch) for arch in archs for variant in variants(arch)]
    return kernels + [
        stand_in(variant, arch, is_ptx=True)
        for arch in (86, 89)
        for variant in variants(arch)
        if ptx and arch == ptx_architecture(variant)
    ]


@dataclass(frozen=True)
class Problem:
    """One call of an operator; for DeltaRule ``epsilon`` is the scale, and values have the width ``value_width``."""

    operator: str
    dtype: str = "float16"
    batch: int = 1
    heads: int = 2
    groups: int = 1
    new: int = 1
    past: int = 0
    width: int = 64
    epsilon: float = 1e-5
    diagonal: float | None = None  # None: the node has no such attribute
    value_width: int = 64

    def plan(self, arch: int) -> Plan:
        if self.operator == DELTA_RULE.name:
            widths = (self.width, self.value_width)
            return plan_delta_rule(self.batch, self.heads, self.new, *widths, self.dtype, self.epsilon, arch)
        rest = (self.past, self.width, self.dtype, self.epsilon, arch, None, self.diagonal or 0.0)
        if self.operator == PRECONDITION.name:
            return plan_precondition(self.batch, self.heads, self.new, *rest)
        float8 = self.operator == DECODE_ATTENTION_FLOAT8.name
        return plan_decode_attention(self.batch, self.heads, self.groups, *rest, new=self.new, float8=float8)

    def pointers(self) -> dict[str, int]:
        [operator] = [each for each in OPERATORS if each.name == self.operator]
        addresses = {name: 0x10000 * (i + 1) for i, name in enumerate(operator.input_names)}
        addresses |= {name: 0x900000 + 0x10000 * i for i, name in enumerate(operator.output_names)}
        return addresses | {"workspace": 0xF00000}


@dataclass(frozen=True)
class Tools:
    """The built plugin library, stand-in driver and harness."""

    plugin: Path
    harness: Path
    driver: Path

    def run(
        self, problem: Problem, log: Path, arch: int = 90, mode: str = "run", fail: str = "", driver: bool = True
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the plugin's answers and the driver calls."""
        environment = os.environ | {"STUB_CUDA_LOG": str(log), "STUB_CUDA_ARCH": str(arch), "STUB_CUDA_FAIL": fail}
        if driver:
            environment["LD_LIBRARY_PATH"] = str(self.driver.parent)
        sizes = (problem.batch, problem.heads, problem.groups, problem.new, problem.past, problem.width)
        sizes += (problem.value_width,)
        command = [self.harness, self.plugin, problem.operator, problem.dtype, *sizes, repr(problem.epsilon), mode]
        command += [] if problem.diagonal is None else [repr(problem.diagonal)]
        result = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert result.returncode == 0, result.stderr
        calls = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in result.stdout.splitlines()], [json.loads(line) for line in calls]


def build_tools(folder: Path) -> Tools:
    compiler, cuda, tensorrt = find_compiler(), find_cuda_headers(), find_tensorrt_headers()
    driver, harness = folder / "driver" / "libcuda.so.1", folder / "harness"
    driver.parent.mkdir()
    stub = [compiler, "-x", "c", "-shared", "-fPIC", "-Wall", "-Wextra", "-I", cuda, HERE / "stub_cuda.c", "-o", driver]
    program = [compiler, "-std=c++17", "-Wall", "-Wextra", "-isystem", tensorrt, "-isystem", cuda]
    program += [HERE / "harness.cpp", "-o", harness, "-ldl", "-rdynamic"]
    for command in (stub, program):
        subprocess.run(list(map(str, command)), check=True)
    return Tools(build_plugin(folder / "plugin.so", stand_ins((80, 86, 90, 120))), harness, driver)


def as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
