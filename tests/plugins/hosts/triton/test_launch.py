"""What the launchers refuse. Needs no GPU."""

from __future__ import annotations

import subprocess

import pytest
import torch

from lucid_deploy.plugins.hosts.triton.launch import decode_attention, precondition
from tests.patience import PATIENCE


def test_tensors_on_the_cpu_are_refused_outside_the_interpreter():
    pytest.importorskip("triton", reason='running the kernels needs Triton: pip install -e ".[kernels]"')
    k = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="run on CUDA tensors, not on cpu"):
        precondition(k, k)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: precondition(k, k[:, :, :1]), "k and v must have the same shape"),
        (lambda k: precondition(k.double(), k.double()), "the kernels take float32, float16, bfloat16, not float64"),
        (lambda k: precondition(k, k, mask=torch.ones(1, 5, dtype=torch.bool)), r"mask must be bool \(1, 4\)"),
        (lambda k: decode_attention(k, k, k, k, k[:, :, 1:]), "do not fit together"),
        (lambda k: decode_attention(k[:, :, :1], k, k, k, k), "as many new tokens as q has"),
        (lambda k: decode_attention(*[k] * 5, scales=(k[..., :1],) * 2), "k and y must be float8_e4m3fn"),
        (
            lambda k: decode_attention(*[k] * 3, *[k.to(torch.float8_e4m3fn)] * 2, scales=(k, k)),
            r"scales must be \(1, 1, 4, 1\)",
        ),
        (lambda k: decode_attention(*[k.repeat(1, 1, 5, 1)] * 5), "up to 16 new tokens are supported, not 20"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 4, 16))


def test_a_missing_triton_says_what_to_install(preloaded):
    code = "import sys; sys.modules['triton'] = None; import torch"
    code += "; from lucid_deploy.plugins.hosts.triton.launch import precondition"
    code += "; k = torch.zeros(1, 1, 4, 16); precondition(k, k)"
    result = subprocess.run([preloaded / "python", "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert 'pip install "triton<4,>=3.7"' in result.stderr
