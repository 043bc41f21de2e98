"""Plans: sizes, limits and the table of tuned constants. Needs no Triton."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lucid_deploy.plugins.kernels import decode_attention, plan, precondition
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "plugins" / "kernels" / "table.json"


def load_tuner():
    spec = importlib.util.spec_from_file_location("tune_kernels", ROOT / "benchmarks" / "tune_kernels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def solve(**changes):
    sizes = {
        "batch": 2,
        "heads": 3,
        "new": 130,
        "past": 7,
        "width": 68,
        "dtype": "float16",
        "epsilon": 1e-5,
        "arch": 90,
    }
    return plan.plan_precondition(**sizes | changes)


def decode(**changes):
    sizes = {"batch": 2, "heads": 3, "groups": 4, "past": 1000, "width": 68, "dtype": "float16", "epsilon": 1e-5}
    return plan.plan_decode_attention(**sizes | {"arch": 90} | changes)


def test_one_program_for_each_block_row_and_head():
    [step] = solve().steps
    assert step.grid == (-(-130 // step.constants["BLOCK_M"]) * 6, 1, 1)
    assert solve().workspace_bytes == solve().zeroed_bytes == 4 * (1 + 6)


def test_memory_does_not_grow_with_the_tokens():
    assert solve(new=1 << 20, past=1 << 20).workspace_bytes == solve(new=1, past=0).workspace_bytes
    assert decode(past=1 << 20).workspace_bytes == decode(past=1).workspace_bytes


def test_decode_fills_the_device_with_splits():
    assert decode(batch=1, heads=4, past=32768).steps[0].grid == (4, 64, 1)
    assert decode(batch=1, heads=1, past=32768).steps[0].grid == (1, plan.MAX_SPLITS, 1)
    assert decode(batch=64, heads=8, past=32768).steps[0].grid == (512, 1, 1)
    assert decode(past=0).steps[0].grid == (6, 1, 1)
    assert decode(groups=71).steps[0].grid[2] == 3  # 31 query heads and the new key a tile


@pytest.mark.parametrize("past", [0, 1, 100, 5000, 100_000])
@pytest.mark.parametrize("batch_heads", [1, 3, 7, 128, 255, 256, 300])
def test_the_workspace_of_the_largest_batch_serves_every_smaller_one(past, batch_heads):
    planned = decode(batch=batch_heads, heads=1, past=past)
    splits = planned.steps[0].scalars["n_splits"]
    assert batch_heads * splits * 5 * (68 + 2) * 4 <= planned.workspace_bytes
    assert planned.workspace_bytes <= decode(batch=300, heads=1, past=past).workspace_bytes


@pytest.mark.parametrize(("width", "padded"), [(16, 32), (32, 32), (36, 64), (68, 128), (128, 128), (255, 256)])
def test_widths_are_padded_to_a_power_of_two(width, padded):
    assert plan.padded_width(width) == padded
    assert solve(width=width).steps[0].constants["BLOCK_D"] == padded


@pytest.mark.parametrize(
    ("width", "dtype", "unit"), [(64, "float16", 8), (68, "bfloat16", 4), (64, "float32", 4), (17, "float16", 1)]
)
def test_the_unit_is_the_widest_aligned_load(width, dtype, unit):
    step = solve(width=width, dtype=dtype).steps[0]
    assert step.constants["WIDTH_UNIT"] == unit and step.scalars["width_units"] * unit == width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "head width 15 is not supported"),
        ({"width": 257}, "head width 257 is not supported"),
        ({"new": 0}, "new must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"arch": 75}, "compute capability 7.5 is too old"),
    ],
)
def test_what_the_kernels_do_not_take_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(**changes)


def test_the_table_has_every_choice_and_its_blocks_divide():
    for arch in (80, 86, 89, 90, 100, 120):
        for dtype in plan.DTYPES:
            for padded in plan.PADDED_WIDTHS:
                choice = plan.choice("precondition", arch, dtype, padded)
                assert choice.block_m % choice.block_n == 0 and choice.block_m % 16 == 0
                assert plan.choice("decode", arch, dtype, padded).block_n >= 16
    assert plan.choice("decode", 121, "float16", 64) == plan.choice("decode", 120, "float16", 64)


def test_tensors_on_the_cpu_are_refused_outside_the_interpreter():
    pytest.importorskip("triton", reason='running the kernels needs Triton: pip install -e ".[kernels]"')
    k = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="run on CUDA tensors, not on cpu"):
        precondition(k, k)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: precondition(k, k[:, :, :1]), "k and v must have one shape"),
        (lambda k: precondition(k.double(), k.double()), "the kernels take float32, float16, bfloat16"),
        (lambda k: precondition(k, k, mask=torch.ones(1, 5, dtype=torch.bool)), r"mask must be bool \(1, 4\)"),
        (lambda k: decode_attention(k, k, k, k, k), "do not fit together"),
        (lambda k: decode_attention(k[:, :, :1], k, k, k, k), "one new token"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 4, 16))


def test_a_missing_triton_says_what_to_install():
    code = (
        "import sys; sys.modules['triton'] = None; import torch; from lucid_deploy.plugins.kernels import precondition"
    )
    code += "; k = torch.zeros(1, 1, 4, 16); precondition(k, k)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert 'pip install "lucid-deploy[kernels]"' in result.stderr


def test_the_tuner_writes_the_table_as_it_stands():
    tuner = load_tuner()
    assert tuner.format_table(json.loads(TABLE.read_text())) == TABLE.read_text()


def test_the_tuner_takes_the_fastest_of_the_correct():
    tuner = load_tuner()
    right, fast, wrong = plan.Choice(64, 32, 4, 2), plan.Choice(64, 64, 4, 2), plan.Choice(32, 32, 4, 2)
    times = {right: 2.0, fast: 1.0, wrong: 0.5}

    def measure(choice):
        if choice == wrong:
            raise tuner.WrongResult("error 1")
        return times[choice]

    assert tuner.best(times, measure) == (fast, 1.0)
    with pytest.raises(tuner.WrongResult, match="no candidate"):
        tuner.best([wrong], measure)


def test_the_tuner_says_that_it_needs_a_gpu():
    command = [sys.executable, str(ROOT / "benchmarks" / "tune_kernels.py")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert result.returncode == 2 and "needs an NVIDIA GPU" in result.stderr
    assert subprocess.run([*command, "--help"], capture_output=True, timeout=PATIENCE).returncode == 0
