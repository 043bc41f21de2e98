"""exp of the CPU kernels' vectors, compiled alone, against float64: its error, its zero, no undefined behaviour."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from lucid_deploy.plugins.hosts.compiler import find_compiler
from lucid_deploy.plugins.hosts.onnxruntime.build import FLAGS, PLUGINS

PROGRAM = """#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#define LUCID_LANES 4
#include "shared/cpu_vectors.inl"
int main() {
    float numbers[kLanes];
    while (std::fread(numbers, sizeof numbers, 1, stdin) == 1) {
        store(numbers, exponential(load(numbers)));
        std::fwrite(numbers, sizeof numbers, 1, stdout);
    }
}
"""


def exponentials(folder: Path, x: np.ndarray) -> np.ndarray:
    """Compile the program with overflow checks, and run it on float32 numbers, whose count is a multiple of 4."""
    source, program = folder / "exp.cpp", folder / "exp"
    source.write_text(PROGRAM)
    checks = ["-fsanitize=signed-integer-overflow,shift", "-fno-sanitize-recover=all", "-static-libubsan"]
    flags = [flag for flag in FLAGS if flag != "-shared"]
    command = [find_compiler(), *flags, "-Wno-psabi", *checks, "-I", str(PLUGINS), str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    result = subprocess.run([str(program)], input=x.astype(np.float32).tobytes(), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    return np.frombuffer(result.stdout, np.float32)


def test_exp_is_exact_to_a_unit_in_the_last_place_and_nothing_overflows(tmp_path: Path) -> None:
    """Inputs include −∞, the lowest float32 and the large negative numbers that masks and decays give."""
    far = -np.logspace(np.log10(87.01), 38, 1000)
    x = np.concatenate([np.linspace(-87, 88, 100_000), far, [-np.inf, np.finfo(np.float32).min, -0.0, 0.0]])
    x = x.astype(np.float32)
    found, exact = exponentials(tmp_path, x), np.exp(x.astype(np.float64))
    near = x >= -87
    unit = np.spacing(exact[near].astype(np.float32)).astype(np.float64)
    assert (np.abs(found[near] - exact[near]) <= 1.01 * unit).all()
    assert (found[~near] == 0).all() and (~near).sum() == 1002
