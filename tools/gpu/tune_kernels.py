"""Measure the kernels' constants on this machine's GPU and write the best into the operators' tuned.json.

Run it once on each architecture: python -m tools.gpu.tune_kernels [--dtype float16] [--width 128]. A candidate is
timed only after its result agreed with float64; the file then records card, date and versions under "measured_on".
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from lucid_deploy.plugins.decode_attention import plan as decode_plan
from lucid_deploy.plugins.hosts.triton.launch import decode_attention, precondition
from lucid_deploy.plugins.precondition import plan as precondition_plan
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, Choice
from lucid_deploy.plugins.table import FLOATS

TUNED = {"precondition": precondition_plan.TUNED, "decode_attention": decode_plan.TUNED}
SOLVE_SHAPE = {"batch": 1, "heads": 16, "tokens": 8192}
DECODE_SHAPE = {"batch": 1, "heads": 8, "tokens": 32768}
GROUPS = 4
CHECKED_TOKENS = 513
CORRELATION = 0.9
# Twice the largest relative error of rounding alone, against float64, with correlated keys.
LIMITS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 6e-3}


class WrongResult(Exception):
    """A candidate's result does not agree with float64."""


def candidates(kernel: str, dtype: str) -> list[Choice]:
    """Return the choices of constants to try for a kernel and a type."""
    blocks_m = (32, 64, 128) if kernel == "precondition" else (0,)
    found = []
    for block_m, block_n, warps, stages in itertools.product(blocks_m, (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)):
        if block_m == 0 or (block_n <= block_m and block_m % block_n == 0):
            found.append(Choice(block_m, block_n, warps, stages))
    if kernel == "precondition" and dtype == "float32":
        found = [each for each in found if each.block_n <= precondition_plan.NORM_TOKENS]
    if kernel == "precondition" and dtype == precondition_plan.INT8_TYPE:
        found += [
            replace(each, int8=1)
            for each in found
            if each.block_m == each.block_n and each.block_n in precondition_plan.INT8_TILES
        ]
    return found


def best(choices: Iterable[Choice], measure: Callable[[Choice], float]) -> tuple[Choice, float]:
    """Return the fastest choice and its time; ``measure`` raises if a choice is wrong or does not fit the device.

    Raises:
        WrongResult: No candidate works.
    """
    times: dict[Choice, float] = {}
    refused: list[str] = []
    for choice in choices:
        try:
            times[choice] = measure(choice)
        except (WrongResult, RuntimeError) as error:  # RuntimeError covers Triton's "out of resources"
            refused.append(f"{choice}: {error}")
    if not times:
        raise WrongResult("no candidate works:\n" + "\n".join(refused))
    fastest = min(times, key=lambda choice: times[choice])
    return fastest, times[fastest]


def make_inputs(shape: dict[str, int], width: int, dtype: Any) -> tuple[Any, Any]:
    """Return correlated keys and random values ``(batch, heads, tokens, width)`` on the GPU."""
    import torch

    size = (shape["batch"], shape["heads"], shape["tokens"], width)
    common = torch.randn(*size[:2], 1, width, device="cuda")
    keys = CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * torch.randn(size, device="cuda")
    return keys.to(dtype), torch.randn(size, device="cuda").to(dtype)


def measure_precondition(choice: Choice, width: int, dtype: Any) -> float:
    """Return milliseconds of one solve, after a check of a shorter one."""
    from triton.testing import do_bench

    from lucid_deploy.plugins.precondition.reference import precondition_reference

    k, v = make_inputs(SOLVE_SHAPE | {"tokens": CHECKED_TOKENS}, width, dtype)
    none = k[:, :, :0].double()
    exact = precondition_reference(k.double(), v.double(), none, none, None, 1e-5)
    check(precondition(k, v, tuned=choice), exact)
    k, v = make_inputs(SOLVE_SHAPE, width, dtype)
    return float(do_bench(lambda: precondition(k, v, tuned=choice)))


def measure_decode(choice: Choice, width: int, dtype: Any) -> float:
    """Return milliseconds of one token, after a check with a shorter cache."""
    import torch
    from triton.testing import do_bench

    from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference

    def inputs(tokens: int) -> tuple[Any, ...]:
        k, y = make_inputs(DECODE_SHAPE | {"tokens": tokens + 1}, width, dtype)
        q = torch.randn(1, DECODE_SHAPE["heads"] * GROUPS, 1, width, device="cuda").to(dtype)
        return q, k[:, :, -1:], y[:, :, -1:], k[:, :, :-1].contiguous(), y[:, :, :-1].contiguous()

    short, long = inputs(CHECKED_TOKENS), inputs(DECODE_SHAPE["tokens"])
    q, k_new, v_new, k, y = (tensor.double() for tensor in short)
    exact = decode_attention_reference(q, k_new, v_new, k, y, None, 1e-5)
    for found, wanted in zip(decode_attention(*short, tuned=choice), exact, strict=True):
        check(found, wanted)
    return float(do_bench(lambda: decode_attention(*long, tuned=choice)))


def check(found: Any, exact: Any) -> None:
    """Raise WrongResult unless the relative error is within what rounding explains."""
    limit = LIMITS[str(found.dtype).removeprefix("torch.")]
    error = ((found.double() - exact).norm() / exact.norm()).item()
    if not error <= limit:  # also when it is not a number
        raise WrongResult(f"relative error {error:.1e}, at most {limit:.1e} expected")


def format_tuned(tuned: dict[str, Any]) -> str:
    """Return the text of a ``tuned.json``: one line for each architecture and type."""
    parts = [f' "{name}": {json.dumps(value)}' for name, value in tuned.items() if name != "choices"]
    archs = []
    for arch, types in tuned["choices"].items():
        rows = ",\n".join(f'   "{dtype}": {json.dumps(entry)}' for dtype, entry in types.items())
        archs.append(f'  "{arch}": {{\n{rows}\n  }}')
    parts.append(' "choices": {\n' + ",\n".join(archs) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def enter(tuned: dict[str, Any], arch: str, dtype: str, width: int, choice: Choice) -> None:
    """Enter a measured choice into a ``tuned.json``; it replaces one that the cost model chose or that was kept."""
    entry = [vars(choice)[column] for column in tuned["columns"]]
    tuned["choices"].setdefault(arch, {}).setdefault(dtype, {})[str(width)] = entry
    name = f"{arch} {dtype} {width}"
    tuned["chosen_by_model"] = [each for each in tuned["chosen_by_model"] if each != name]
    tuned["kept"].pop(name, None)


def tune(dtypes: list[str], widths: list[int]) -> None:
    """Tune for the current device; write the file after every entry, so that an interruption loses nothing."""
    import torch
    import triton

    major, minor = torch.cuda.get_device_capability()
    arch = str(10 * major + minor)
    for (kernel, path), measure in zip(TUNED.items(), (measure_precondition, measure_decode), strict=True):
        tuned = json.loads(path.read_text())
        for dtype, width in itertools.product(dtypes, widths):
            timed = functools.partial(measure, width=width, dtype=getattr(torch, dtype))
            choice, milliseconds = best(candidates(kernel, dtype), timed)
            print(f"{kernel} sm_{arch} {dtype} {width}: {choice} {milliseconds:.3f} ms")
            enter(tuned, arch, dtype, width, choice)
            versions = f"Triton {triton.__version__}, PyTorch {torch.__version__}"
            tuned["measured_on"][arch] = f"{torch.cuda.get_device_name()}, {datetime.date.today()}, {versions}"
            path.write_text(format_tuned(tuned))


def main() -> int:
    """Parse the command line and tune; return the exit status, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--dtype", choices=FLOATS, action="append", help="only this type; may be repeated (default: all)"
    )
    parser.add_argument("--width", type=int, choices=PADDED_WIDTHS, action="append", help="only this head width")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("Tuning the kernels needs an NVIDIA GPU, and PyTorch sees none.", file=sys.stderr)
        return 2
    tune(options.dtype or list(FLOATS), options.width or list(PADDED_WIDTHS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
