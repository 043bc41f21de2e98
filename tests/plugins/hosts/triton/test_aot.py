"""Ahead-of-time compilation with no GPU: one small variant of each kernel, for real."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.decode_attention.plan import FLOAT8_ARCH, plan_decode_attention
from lucid_deploy.plugins.delta_rule.plan import plan_delta_rule
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.kernel_functions import kernel_functions
from lucid_deploy.plugins.hosts.triton.launch import argument_name
from lucid_deploy.plugins.precondition.plan import plan_precondition
from lucid_deploy.plugins.shared.plan import Step, Variant
from tests.patience import PATIENCE

pytest.importorskip("triton", reason='compiling the kernels needs Triton: pip install -e ".[kernels]"')

WIDTH = 32


def steps(arch: int) -> dict[str, Step]:
    """Return launches with 16 rows, for which all architectures have variants, by variant name."""
    plans = [
        plan_precondition(1, 1, 1, 0, WIDTH, "float16", 1e-5, arch),
        plan_decode_attention(1, 1, 15, 0, WIDTH, "float16", 1e-5, arch),
        plan_delta_rule(1, 1, 2, WIDTH, WIDTH, "float16", 1.0, arch),
        plan_delta_rule(1, 1, 1, WIDTH, WIDTH, "float16", 1.0, arch),
    ]
    if arch >= FLOAT8_ARCH:
        plans.append(plan_decode_attention(1, 1, 15, 0, WIDTH, "float16", 1e-5, arch, float8=True))
    return {step.variant: step for plan in plans for step in plan.steps}


STEPS = steps(90)


def compile_some(cache, **options):
    return aot.compile_kernels([90], select=lambda variant: variant.name in STEPS, cache=cache, **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def compiled(cache):
    seen = []
    kernels = compile_some(cache, progress=lambda done, total, name: seen.append((done, total)))
    # Eight for sm_90, and for PTX seven for sm_86 and the one that reads E4M3 for sm_89.
    assert seen == [(done, 16) for done in range(17)]
    return kernels


def test_machine_code_and_ptx_are_compiled(compiled):
    assert [(kernel.arch, kernel.is_ptx) for kernel in compiled] == [(90, False)] * 8 + [(86, True)] * 7 + [(89, True)]
    for kernel in compiled:
        assert kernel.image.startswith(b"\x7fELF") != kernel.is_ptx
        function = kernel_functions()[STEPS[kernel.variant].kernel]
        assert kernel.entry == function.__name__ and kernel.entry.encode() in kernel.image
        assert kernel.num_warps == steps(kernel.arch)[kernel.variant].num_warps


def test_arguments_match_the_plan(compiled):
    for kernel in compiled:
        step = STEPS[kernel.variant]
        pointers = [argument_name(name) for name in step.pointers]
        assert kernel.arguments == pointers + list(step.scalars)
        if kernel.is_ptx:
            signature = kernel.image.decode().split(".entry")[1].split(")")[0]
            kinds = re.findall(r"\.param \.(\w+)", signature)
            scalars = ["f32" if isinstance(value, float) else "u32" for value in step.scalars.values()]
            assert kinds == ["u64"] * len(pointers) + scalars + ["u64"] * 2, "two scratch pointers come last"
        else:
            assert kernel.constants == step.constants


def test_e4m3_is_converted_by_the_chip_s_own_instruction(compiled):
    [text] = [k.image.decode() for k in compiled if k.is_ptx and "float8" in k.variant]
    assert "cvt.rn.f16x2.e4m3x2" in text and ".target sm_89" in text


def test_barriers_order_writing_rows_and_counting_them(compiled):
    text = next(k.image.decode() for k in compiled if k.is_ptx and k.variant.startswith("precondition"))
    written, counted = text.rindex("st.global"), text.rindex("red.global.gpu.release")
    assert written < text.rindex("bar.sync") < counted
    seen = text.index("gpu.acquire")
    assert "bar.sync" in text[seen : text.index("cp.async", seen)]


def test_a_damaged_cache_entry_is_compiled_again(compiled, cache):
    variant = next(v for v in aot.variants(90) if v.name == compiled[2].variant)
    entry = cache / next(aot.cache_keys([(variant, 90)]))
    entry.write_bytes(entry.read_bytes()[:-10])
    assert compile_some(cache) == compiled
    assert not [path for path in cache.iterdir() if len(path.name) != 64], "temporary files are left behind"


def test_the_cache_key_follows_the_sources(monkeypatch):
    variant = aot.variants(90)[0]
    before = next(aot.cache_keys([(variant, 90)]))
    monkeypatch.setattr(aot, "SOURCES", aot.SOURCES[:-1])
    assert next(aot.cache_keys([(variant, 90)])) != before != next(aot.cache_keys([(variant, 100)]))


def test_more_shared_memory_than_the_chip_has_is_an_error():
    constants = (("ROWS", 32), ("BLOCK_N", 64), ("BLOCK_D", 256), ("WIDTH_UNIT", 4), ("CHUNK_D", 64))
    variant = Variant("decode_split_kernel", "float32", constants, 4, 3)
    with pytest.raises(LucidError, match=r"bytes of shared memory and sm_86 has 101376.*tuned\.json"):
        list(aot.compile_all([(variant, 86)], jobs=1))


def test_compiling_processes_end_with_their_parent(tmp_path):
    """Also if the parent is killed and cannot stop them."""
    code = """
import sys
import os
import tempfile
from lucid_deploy.plugins.hosts.triton.aot import compilers
if __name__ == "__main__":
    with compilers(1) as pool:
        print(pool.submit(os.getpid).result(), pool.submit(tempfile.mkdtemp).result(), flush=True)
        sys.stdin.read()
"""
    script = tmp_path / "asks.py"
    script.write_text(code)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    parent = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    child, made = parent.stdout.readline().split()
    child = int(child)
    os.kill(child, 0)
    assert Path(made).is_dir() and scratch in Path(made).parents
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + PATIENCE
    while is_running(child):
        assert time.monotonic() < deadline, "the compiling process still runs"
        time.sleep(0.05)


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, but not yet waited for
