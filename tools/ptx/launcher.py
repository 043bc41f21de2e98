"""Run plans of the kernels' launcher in the PTX emulator: compiled code takes the place of Triton's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lucid_deploy.plugins.hosts.triton import aot, launch
from lucid_deploy.plugins.shared.plan import Plan, Step, Variant
from tools.ptx.machine import Launch
from tools.ptx.memory import GlobalMemory

Compiler = Callable[[Variant, int], tuple[str, int]]
SCRATCH = (0, 0)  # the two pointers that Triton appends; our kernels use neither


def ptx_of(variant: Variant, arch: int) -> tuple[str, int]:
    """Compile a variant in this process; return its PTX and its bytes of shared memory."""
    compiled = aot.compile_with_triton(variant, arch)
    return compiled.asm["ptx"], compiled.metadata.shared


@contextmanager
def ptx_compiler() -> Iterator[Compiler]:
    """Yield a function that compiles variants in a process of its own, each variant once."""
    with aot.compilers(1) as pool:

        @functools.cache
        def compiler(variant: Variant, arch: int) -> tuple[str, int]:
            return pool.submit(ptx_of, variant, arch).result(timeout=600)

        yield compiler


class Launcher:
    """A launcher whose :meth:`execute` replaces ``launch.execute``.

    Args:
        compiler: Called like :func:`ptx_of`, and returns the same.
        arch: The compute capability that code is compiled for.
        resident: How many programs run at the same time.
        seed: Seed of the programs' order.
    """

    def __init__(self, compiler: Compiler, arch: int, resident: int = 1, seed: int = 0) -> None:
        self.compiler, self.arch, self.resident, self.seed = compiler, arch, resident, seed
        self.launched: list[str] = []
        self.change: Callable[[str, str], str] = lambda kernel, text: (
            text
        )  # changes the PTX of the kernel named, for tests of the emulator

    def execute(self, plan: Plan, tensors: dict[str, Tensor], workspace: Tensor | None = None) -> None:
        """Run a plan's launches and fill its outputs; the workspace holds NaN where the plan asks for no zeros."""
        memory = GlobalMemory()
        addresses = {name: memory.add(_bytes(tensor)) for name, tensor in tensors.items()}
        addresses["workspace"] = memory.add(np.full(plan.workspace_bytes, 0xFF, np.uint8))
        memory.fill(addresses["workspace"], 0, plan.zeroed_bytes)
        for step in plan.steps:
            self._launch(step, memory, addresses)
        for name in plan.outputs:
            found = torch.from_numpy(memory.contents(addresses[name]))
            tensors[name].copy_(found.view(tensors[name].dtype).view(tensors[name].shape))

    def _launch(self, step: Step, memory: GlobalMemory, addresses: dict[str, int]) -> None:
        constants = tuple(step.constants.items())
        variant = Variant(step.kernel, step.dtype, constants, step.num_warps, step.num_stages)
        text, shared = self.compiler(variant, self.arch)
        arguments = [*(addresses[name] for name in step.pointers), *step.scalars.values(), *SCRATCH]
        run = Launch(self.change(step.kernel, text), memory, step.grid, arguments, shared)
        run.run(self.resident, self.seed)
        self.launched.append(step.variant)


def run_compiled(launcher: Launcher, monkeypatch: Any) -> Launcher:
    """Replace ``launch.execute`` by ``launcher.execute`` until ``monkeypatch`` is undone; return ``launcher``."""
    monkeypatch.setattr(launch, "execute", launcher.execute)
    monkeypatch.setattr(launch, "INTERPRETER_ARCH", launcher.arch)
    return launcher


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as the kernels expect it: contiguous, with one byte for each bool."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    return tensor.contiguous().view(torch.uint8).numpy()
