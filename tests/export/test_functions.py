"""The ONNX bodies of the operators in onnxruntime, against the float64 reference."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lucid_deploy.export.functions import FUNCTIONS
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.precondition import precondition
from lucid_deploy.plugins.table import DOMAIN, VERSION

H, G, D = 2, 3, 20
TYPES = {"float32": (onnx.TensorProto.FLOAT, np.float32), "float16": (onnx.TensorProto.FLOAT16, np.float16)}


def single_operator(name: str, inputs: list[str], outputs: list[str], dtype: str = "float32", **attributes: float):
    """Return a session of one node of the domain."""
    make, element = onnx.helper, TYPES[dtype][0]
    infos = [
        make.make_tensor_value_info(item, onnx.TensorProto.BOOL, ["b", "t"])
        if item == "mask"
        else make.make_tensor_value_info(item, element, ["b", f"{item}_h", f"{item}_n", f"{item}_d"])
        for item in inputs
    ]
    outs = [make.make_tensor_value_info(item, element, ["b", "h", "n", "d"]) for item in outputs]
    node = make.make_node(name, inputs, outputs, domain=DOMAIN, **attributes)
    model = make.make_model(
        make.make_graph([node], name, infos, outs),
        functions=[FUNCTIONS[name].to_function_proto()],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=["float32", "float16"])
def sessions(request: pytest.FixtureRequest):
    dtype = request.param
    past = ["K", "V", "K_past", "Y_past", "mask"]
    decode = ["Q", "K_new", "V_new", "K", "Y", "mask"]
    return dtype, {
        "Precondition": single_operator("Precondition", past, ["Y"], dtype, epsilon=1e-5),
        "DecodeAttention": single_operator("DecodeAttention", decode, ["O", "Y_new"], dtype, epsilon=1e-5),
        "CausalAttention": single_operator("CausalAttention", ["Q", "K", "Y", "mask"], ["O"], dtype),
    }


def inputs(tokens: int, correlation: float, padded: bool, dtype: str):
    generator = torch.Generator().manual_seed(tokens)
    common = torch.randn(D, generator=generator)
    k = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * torch.randn(2, H, tokens, D, generator=generator)
    v = torch.randn(2, H, tokens, D, generator=generator)
    q = torch.randn(2, H * G, tokens, D, generator=generator)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    if padded:
        mask[0, : tokens // 3] = False
        mask[1, tokens - tokens // 4 :] = False
    kind = getattr(torch, dtype)
    return q.to(kind), k.to(kind), v.to(kind), mask


def run(session, **feed: torch.Tensor):
    return [torch.from_numpy(out) for out in session.run(None, {name: x.numpy().copy() for name, x in feed.items()})]


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(
    ("n", "past"), [(1, 0), (1, 1), (31, 0), (33, 5), (64, 0), (65, 100), (200, 1), (257, 0), (700, 41)]
)
def test_precondition(sessions, n: int, past: int, correlation: float, padded: bool) -> None:
    dtype, session = sessions
    _, k, v, mask = inputs(past + n, correlation, padded, dtype)
    y_past = precondition(k.double(), v.double(), mask=mask, implementation="reference")[:, :, :past].to(k.dtype)
    new = (k[:, :, past:], v[:, :, past:], k[:, :, :past], y_past)
    exact = precondition(*(x.double() for x in new), mask, implementation="reference")
    baseline = error(precondition(*new, mask, implementation="reference"), exact)
    (y,) = run(session["Precondition"], **dict(zip(("K", "V", "K_past", "Y_past"), new, strict=True)), mask=mask)
    # 3: the bound the project sets itself; the floor is one rounding of the output
    assert error(y, exact) <= 3 * baseline + torch.finfo(k.dtype).eps / 2


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("past", [0, 1, 63, 300])
@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_decode_attention(sessions, past: int, correlation: float, padded: bool) -> None:
    dtype, session = sessions
    q, k, v, mask = inputs(past + 1, correlation, padded, dtype)
    y = precondition(k.double(), v.double(), mask=mask, implementation="reference").to(k.dtype)
    arguments = (q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1])
    exact = decode_attention(*(x.double() for x in arguments), mask, implementation="reference")
    baseline = decode_attention(*arguments, mask, implementation="reference")
    named = dict(zip(("Q", "K_new", "V_new", "K", "Y"), arguments, strict=True))
    got = run(session["DecodeAttention"], **named, mask=mask)
    for ours, plain, wanted in zip(got, baseline, exact, strict=True):
        assert error(ours, wanted) <= 4 * error(plain, wanted) + torch.finfo(k.dtype).eps


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("n", "past"), [(1, 0), (1, 300), (2, 0), (255, 0), (256, 1), (257, 40), (600, 0)])
def test_causal_attention(sessions, n: int, past: int, padded: bool) -> None:
    dtype, session = sessions
    q, k, y, mask = inputs(past + n, 0.9, padded, dtype)
    arguments = (q[:, :, past:], k, y)
    exact = causal_attention(*(x.double() for x in arguments), mask)
    baseline = error(causal_attention(*arguments, mask), exact)
    (out,) = run(session["CausalAttention"], **dict(zip(("Q", "K", "Y"), arguments, strict=True)), mask=mask)
    assert error(out, exact) <= 4 * baseline + torch.finfo(k.dtype).eps


def test_no_tensor_has_two_token_axes() -> None:
    """Memory grows with the tokens, not with their square: peak of one run at 4096 tokens, in a fresh process."""
    import subprocess
    import sys
    import textwrap

    code = textwrap.dedent(
        """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        import test_functions as t
        session = t.single_operator("Precondition", ["K", "V", "K_past", "Y_past", "mask"], ["Y"], epsilon=1e-5)
        x, past = np.ones((1, 8, 8192, 8), np.float32), np.ones((1, 8, 0, 8), np.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.run(None, dict(K=x, V=x, K_past=past, Y_past=past, mask=np.ones((1, 8192), bool)))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    whole_matrix = 8 * 8192 * 8192 * 4 / 2**20  # MiB: 2048
    assert float(done.stdout) < whole_matrix / 4
