"""The plugins' host side with a stand-in driver: launches must match the plans in Python."""

import pytest

from tests.plugins.hosts.tensorrt.plugin_tools import SHARED_BYTES, Problem, as_float32

PROBLEMS = [
    Problem("Precondition", new=1),
    Problem("Precondition", new=257, past=100, batch=3, heads=4, width=68),
    Problem("Precondition", "float32", new=64, past=1, width=128, epsilon=1e-6),
    Problem("Precondition", "bfloat16", new=65, width=256),
    Problem("Precondition", new=4096, past=30000, heads=8, width=80),
    Problem("Precondition", "float32", new=5, width=16),
    Problem("Precondition", "bfloat16", new=65, past=3, width=68, diagonal=1.0),
    Problem("Precondition", "bfloat16", new=100, past=130, batch=3, heads=4, width=64),
    Problem("Precondition", "bfloat16", new=7, past=1, width=32),
    Problem("DecodeAttention"),
    Problem("DecodeAttention", "float32", past=100, groups=3, width=96, diagonal=1.0),
    Problem("DecodeAttention", past=2048, heads=4, groups=8, width=68),
    Problem("DecodeAttention", "float32", past=100, groups=15, width=96),
    Problem("DecodeAttention", "bfloat16", past=1, groups=16, width=36),
    Problem("DecodeAttention", past=32768, heads=1, groups=71, width=64),
    Problem("DecodeAttention", past=777, batch=40, heads=8, groups=4, width=128),
    Problem("DecodeAttention", "bfloat16", past=777, batch=3, heads=5, groups=1, width=256),
    Problem("DecodeAttention", new=2),
    Problem("DecodeAttention", "float32", past=100, new=8, groups=4, width=96, diagonal=1.0),
    Problem("DecodeAttention", "bfloat16", past=8192, new=16, heads=4, groups=7, batch=3, width=128),
    Problem("DecodeAttention", past=777, new=5, groups=12, width=68),
    Problem("DecodeAttention", "float32", past=777, new=16, groups=4, width=64),
    Problem("DecodeAttention", "float32", past=777, new=16, groups=4, width=68),
    Problem("DecodeAttention", past=777, new=16, groups=4, width=256),
    Problem("DecodeAttention", "float32", past=777, new=16, groups=4, width=132),
    Problem("DecodeAttentionFloat8"),
    Problem("DecodeAttentionFloat8", "bfloat16", past=777, new=8, batch=3, heads=5, groups=4, width=128, diagonal=1.0),
    Problem("DecodeAttentionFloat8", past=32768, heads=4, groups=7, width=80),
    Problem("DeltaRule", epsilon=0.125),
    Problem("DeltaRule", "bfloat16", batch=3, heads=5, width=68, value_width=100),
    Problem("DeltaRule", new=257, batch=2, heads=4, width=128, value_width=128, epsilon=0.5),
    Problem("DeltaRule", "float32", new=2, width=16, value_width=4),
    Problem("DeltaRule", "bfloat16", new=8192, heads=32, width=256, value_width=260),
]
OLD_AND_NEW = [*((each, 90) for each in PROBLEMS), *((each, 80) for each in PROBLEMS[::4])]


def answers(lines, name):
    return [line[name] for line in lines if name in line]


def as_passed(values):
    return [as_float32(value) if isinstance(value, float) else value for value in values]


def expected_launch(step, pointers, arch):
    arguments = [pointers[name] for name in step.pointers] + as_passed(step.scalars.values()) + [0, 0]
    launched = {"grid": list(step.grid), "block": [32 * step.num_warps, 1, 1], "shared": SHARED_BYTES[arch]}
    return launched | {"variant": step.variant, "arch": str(arch), "stream": 0x77, "arguments": arguments}


def launches(calls):
    found = []
    for call in calls:
        if call["call"] == "launch":
            variant, arch, _ = call["image"].split()
            kept = {name: call[name] for name in ("grid", "block", "shared", "stream")}
            found.append(kept | {"variant": variant, "arch": arch, "arguments": as_passed(call["arguments"])})
    return found


@pytest.mark.parametrize(("problem", "arch"), OLD_AND_NEW, ids=str)
def test_launches_are_those_of_the_python_launcher(problem, arch, tools, tmp_path):
    lines, calls = tools.run(problem, tmp_path / "log", arch)
    plan, pointers = problem.plan(arch), problem.pointers()
    assert answers(lines, "log") == []
    assert answers(lines, "creators") == [4] and answers(lines, "supported") == [1]
    assert answers(lines, "configured") == [0] and answers(lines, "loaded") == [1]
    assert answers(lines, "workspace") == [plan.workspace_bytes]
    assert answers(lines, "prepared") + answers(lines, "enqueued") == [0] * 6

    assert launches(calls) == [expected_launch(step, pointers, arch) for step in plan.steps] * 3
    cleared = [(call["pointer"], call["value"], call["bytes"]) for call in calls if call["call"] == "memset"]
    assert cleared == ([(pointers["workspace"], 0, plan.zeroed_bytes)] * 3 if plan.zeroed_bytes else [])


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[9], PROBLEMS[22], PROBLEMS[26]], ids=str)
def test_modules_are_loaded_once_for_each_context(problem, tools, tmp_path):
    _, calls = tools.run(problem, tmp_path / "log", 90)
    variants = [step.variant for step in problem.plan(90).steps]
    loads = [(call["context"], call["image"].split()[0]) for call in calls if call["call"] == "load"]
    assert loads == [(context, variant) for context in (1, 2) for variant in variants]
    entries = [call["name"] for call in calls if call["call"] == "function"]
    assert entries == [step.kernel for step in problem.plan(90).steps] * 2
    reserved = [call["value"] for call in calls if call["call"] == "attribute"]
    assert reserved == [SHARED_BYTES[90]] * len(loads)
    first_launch = next(i for i, call in enumerate(calls) if call["call"] == "launch")
    assert [call["call"] for call in calls[:first_launch]].count("load") == len(variants), "loaded during enqueue"


@pytest.mark.parametrize(("arch", "code"), [(80, "80"), (87, "86"), (89, "86"), (90, "90"), (100, "ptx"), (121, "ptx")])
def test_the_best_code_for_the_device_is_chosen(arch, code, tools, tmp_path):
    _, calls = tools.run(Problem("Precondition", new=70), tmp_path / "log", arch)
    assert {call["image"].split()[1] for call in calls if call["call"] == "load"} == {code}


@pytest.mark.parametrize(("arch", "rows"), [(80, 32), (90, 64), (100, 32)])
def test_tile_rows_match_the_chosen_code(arch, rows, tools, tmp_path):
    _, calls = tools.run(Problem("DecodeAttention", past=777, new=5, groups=4), tmp_path / "log", arch)
    split = next(call["image"].split() for call in calls if call["call"] == "load")
    assert split[0] == f"decode_split_float16_d64_u8_r{rows}", "code for an older GPU has other tiles than this one's"


@pytest.mark.parametrize(("groups", "width", "name"), [(7, 64, "u64_r8"), (8, 64, "u64_r16"), (7, 56, "u8_r16")])
def test_few_rows_use_their_own_variant(groups, width, name, tools, tmp_path):
    _, calls = tools.run(Problem("DecodeAttention", past=777, groups=groups, width=width), tmp_path / "log", 90)
    split = next(call["image"].split() for call in calls if call["call"] == "load")
    assert split[0] == f"decode_split_float16_d64_{name}"


@pytest.mark.parametrize(("arch", "code", "rows"), [(90, "90", 8), (100, "ptx", 16), (89, "ptx", 16)])
def test_e4m3_kernels_need_a_device_with_e4m3(arch, code, rows, tools, tmp_path):
    _, calls = tools.run(Problem("DecodeAttentionFloat8"), tmp_path / "log", arch)
    split = next(call["image"].split() for call in calls if call["call"] == "load")
    assert split[:2] == [f"decode_split_float8_float16_d64_u64_r{rows}", code]


def test_little_shared_memory_needs_no_attribute(tools, tmp_path):
    _, calls = tools.run(Problem("Precondition", new=70), tmp_path / "log", 86)
    assert not [call for call in calls if call["call"] == "attribute"]


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (Problem("Precondition", width=66), {}, "head width 66 is not supported"),
        (Problem("Precondition", width=12), {}, "head width 12 is not supported"),
        (Problem("DecodeAttention", width=260), {}, "head width 260 is not supported"),
        (Problem("DecodeAttention", new=17), {}, "there may be up to 16 new tokens"),
        (Problem("Precondition", past=3), {"mode": "mask"}, "mask must be (batch, past and new tokens)"),
        (Problem("DeltaRule", new=3), {"mode": "mask"}, "log_decay and beta must be (batch, heads, tokens)"),
        (Problem("DeltaRule", width=12), {}, "head width 12 is not supported"),
        (Problem("DeltaRule", value_width=30), {}, "value width 30 is not supported: multiples of 4 are"),
        (
            Problem("DecodeAttentionFloat8"),
            {"arch": 86},
            "no kernel decode_split_float8_float16_d64_u8_r16 for compute capability 8.6",
        ),
        (Problem("DecodeAttentionFloat8", width=68), {}, "head widths with an FP8 cache are multiples of 8"),
        (Problem("DecodeAttentionFloat8", past=3), {"mode": "scales"}, "must have one number for each row of K and Y"),
        (Problem("Precondition"), {"arch": 75}, "no kernel precondition_float16_d64_u8 for compute capability 7.5"),
        (Problem("Precondition"), {"fail": "cuModuleLoadData"}, "loading key_norms_float16_d64_u4 failed: stand-in"),
        (Problem("Precondition"), {"fail": "cuLaunchKernel"}, "launching key_norms_float16_d64_u4 failed"),
        (Problem("Precondition"), {"fail": "cuMemsetD8Async"}, "clearing the workspace failed"),
        (Problem("Precondition"), {"driver": False}, "running needs an NVIDIA driver"),
    ],
    ids=str,
)
def test_errors_are_logged_and_returned(problem, options, message, tools, tmp_path):
    lines, _ = tools.run(problem, tmp_path / "log", **options)
    assert any(message in log for log in answers(lines, "log")), lines
    assert set(answers(lines, "severity")) == {1}
    assert answers(lines, "enqueued") == [-1] * 3


@pytest.mark.parametrize(
    ("operator", "mode", "dtype"),
    [
        ("Precondition", "mixed", "float16"),
        ("DeltaRule", "mixed", "float16"),
        ("DeltaRule", "state", "float16"),
        ("DecodeAttentionFloat8", "mixed", "float16"),
        ("DecodeAttentionFloat8", "cache", "float16"),
        ("DecodeAttentionFloat8", "run", "float32"),
    ],
)
def test_tensors_of_other_types_are_not_a_supported_format(operator, mode, dtype, tools, tmp_path):
    lines, _ = tools.run(Problem(operator, dtype), tmp_path / "log", mode=mode)
    assert answers(lines, "supported") == [0]


def test_an_invalid_diagonal_is_refused(tools, tmp_path):
    lines, calls = tools.run(Problem("DecodeAttention", diagonal=0.5), tmp_path / "log")
    [message] = answers(lines, "log")
    assert "DecodeAttention: diagonal must be the float 0 or 1" in message
    assert not answers(lines, "loaded") and not calls


def test_another_abi_is_refused_at_load(tools, tmp_path):
    lines, calls = tools.run(Problem("Precondition"), tmp_path / "log", mode="abi")
    assert answers(lines, "loaded") == [0] and not calls
    [message] = answers(lines, "log")
    assert "built with plugin ABI 999" in message and "lucid-deploy build" in message
