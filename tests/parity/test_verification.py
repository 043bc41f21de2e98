"""One call that checks all there is to check of an artifact, and says what it did not."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from lucid_deploy.artifact import WEIGHTS, open_artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.perplexity import session_logits, surprisals
from lucid_deploy.parity.verification import verify_against
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.faults import change_row, change_weight, rehash

CONTEXT = 48  # prompts of 35 tokens with 8 steps
FEW = VerifyOptions(steps=8)


@pytest.fixture
def artifact(exported):
    return exported(max_position_embeddings=CONTEXT)[1]


@pytest.fixture
def damaged(artifact, tmp_path):
    return shutil.copytree(artifact.directory, tmp_path / "artifact")


def outcomes(verification):
    return {check.name: check.outcome for check in verification.checks}


def test_everything_is_checked(artifact):
    seen = []
    found = verify_artifact(artifact, FEW, lambda *step: seen.append(step))
    assert found.passed and found.failure == "" and found.raise_if_failed() is found
    assert found.verdict().startswith("onnxruntime computes what PyTorch computes")
    assert outcomes(found) == {
        "files": "passed",
        "weights": "passed",
        "tensors": "passed",
        "free generation": "reported",
        "causes": "not done",
        "text": "not done",
        "full verification": "not done",
        "longer contexts": "not done",
        "another implementation": "not done",
    }
    assert seen[0][0] == "Files: sha256" and found.seconds > 0


def test_every_form_of_the_graphs_is_compared(exported, tmp_path):
    artifact = exported(cache=None, max_position_embeddings=CONTEXT)[1]
    quick = verify_artifact(artifact, VerifyOptions(steps=4, quick=True))
    assert quick.passed and [outcomes(quick)[f"{form} graphs"] for form in ("growing", "inlined")] == ["not done"] * 2
    damaged = shutil.copytree(artifact.directory, tmp_path / "artifact")
    model = onnx.load(damaged / "decode_inlined.onnx", load_external_data=False)
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 0.5
    (damaged / "decode_inlined.onnx").write_bytes(model.SerializeToString())
    rehash(damaged)
    found = verify_artifact(open_artifact(damaged), FEW)
    results = outcomes(found)
    assert (results["tensors"], results["growing graphs"], results["inlined graphs"]) == ("passed", "passed", "failed")
    assert not found.passed and "The inlined graphs failed: " in found.failure


def test_a_damaged_file_is_a_result_and_nothing_is_run_on_it(damaged, monkeypatch):
    with open(damaged / WEIGHTS, "r+b") as file:
        file.write(b"damage")
    monkeypatch.setattr("lucid_deploy.parity.verification.open_session", None)  # nothing is opened
    found = verify_artifact(open_artifact(damaged), FEW)
    assert not found.passed and found.comparisons == ()
    assert outcomes(found)["files"] == "failed" and outcomes(found)["tensors"] == "not done"
    with pytest.raises(CheckFailed, match=f"sha256 of {WEIGHTS} differs"):
        found.raise_if_failed()
    assert json.dumps(found.to_dict()) and found.to_dict()["verdict"] == found.failure


@pytest.mark.parametrize("phase", ["Files: sha256", "Weights: every element"])
def test_an_artifact_that_is_replaced_meanwhile_gets_no_verdict(phase, damaged, exported, tmp_path):
    """Its weights are compared with the checkpoint of another: verify said that the export had changed them."""
    newer = exported(num_hidden_layers=1)[1].directory

    def replace(seen, done, total):
        if seen == phase and not (tmp_path / "older").exists():
            damaged.rename(tmp_path / "older")
            shutil.copytree(newer, damaged)

    with pytest.raises(CheckFailed, match="changed while it was in use"):
        verify_artifact(open_artifact(damaged), FEW, replace)


def test_a_wrong_weight_is_a_result_with_its_cause(damaged):
    change_weight(damaged, "model.layers.1.self_attn.v_proj.weight")
    found = verify_artifact(open_artifact(damaged), FEW)
    assert not found.passed and outcomes(found)["tensors"] == "failed" and outcomes(found)["causes"] == "reported"
    assert outcomes(found)["weights"] == "failed"
    with pytest.raises(CheckFailed, match=r"layer 1 Y is beyond its gate .* The error starts in layer 1 Y.*v_proj"):
        found.raise_if_failed()
    assert "\n" not in found.failure


def test_the_embedding_of_a_token_that_no_sequence_has_is_compared(with_byte_level_tokenizer, tmp_path):
    """What is computed is right in every comparison: only the weights themselves show it."""
    name, unmet = "model.embed_tokens.weight", 319
    _, artifact = with_byte_level_tokenizer()
    damaged = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_row(damaged, name, unmet, 2.0)
    found = verify_artifact(open_artifact(damaged), VerifyOptions(steps=4, quick=True))
    assert (outcomes(found)["weights"], outcomes(found)["tensors"]) == ("failed", "passed")
    assert not found.passed and not found.to_dict()["passed"]
    assert f"{name} is not the checkpoint's weight: 64 of 20,480 elements differ" in found.failure
    assert f"the first at [{unmet}, 0]" in found.failure and found.verdict() in found.failure


def test_weights_of_a_quantized_artifact_are_checked_element_by_element(quantized, tmp_path):
    checkpoint, artifact = quantized("int8", changes={"max_position_embeddings": CONTEXT})
    text = np.arange(1, 30)
    found = verify_artifact(artifact, VerifyOptions(steps=4, text=text))
    assert found.passed and outcomes(found)["weights"] == "passed"
    original = session_logits(TorchSession(load_model(checkpoint, torch.float64)))
    lost, own = (surprisals(each, [text], lambda: None) for each in (original, session_logits(open_session(artifact))))
    assert 0 < found.text.kl < 0.1 and found.text.original == pytest.approx(np.exp(lost.mean()), rel=1e-9)
    assert found.text.error == pytest.approx((own - lost).std() / np.sqrt(28), rel=1e-3)
    assert f"Quantization costs {found.text.own - found.text.original:+.3g} (" in found.verdict()
    assert f" ± {found.text.error:.1%}) of perplexity on your text" in found.verdict()
    assert found.reference.kind == "own model, dequantized"
    assert found.to_dict()["quantization"]["weights_checked"] is True
    bad = shutil.copytree(artifact.directory, tmp_path / "bad")
    data = np.fromfile(bad / WEIGHTS, dtype=np.uint8)
    data[len(data) // 2 : len(data) // 2 + 4096] ^= 0x40
    data.tofile(bad / WEIGHTS)
    rehash(bad)
    found = verify_artifact(open_artifact(bad), VerifyOptions(steps=4))
    assert outcomes(found)["weights"] == "failed" and outcomes(found)["tensors"] == "not done"
    assert "is not the checkpoint's weight" in found.failure


def test_a_model_that_does_not_fit_into_its_type_is_a_result(artifact, monkeypatch):
    def overflow(*arguments, **options):
        raise CheckFailed("The PyTorch model gives NaN or infinity in float16 (layer 0 K).")

    monkeypatch.setattr("lucid_deploy.parity.verification.prepare", overflow)
    found = verify_artifact(artifact, FEW)
    assert outcomes(found)["tensors"] == "failed" and "float16" in found.failure and found.comparisons == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (VerifyOptions(prompt=""), "prompt to verify with is empty"),
        (VerifyOptions(prompt="hello"), "no tokenizer.json"),
        (VerifyOptions(text="hello"), "no tokenizer.json"),
        (VerifyOptions(checkpoint="/no/such/place"), "no checkpoint"),
        (VerifyOptions(steps=0), "at least one decode step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_verified_is_an_error(artifact, options, words):
    with pytest.raises(LucidError, match=words) as caught:
        verify_artifact(artifact, options)
    assert not isinstance(caught.value, CheckFailed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_held_to_a_baseline_of_that_precision(make_checkpoint, dtype):
    source = Checkpoint(make_checkpoint(max_position_embeddings=CONTEXT))
    candidate = TorchSession(load_model(source, getattr(torch, dtype), implementation="reference"))
    loaded = []
    report = verify_against(candidate, source, VerifyOptions(steps=8), progress=lambda what, *_: loaded.append(what))
    assert report.passed, report.verdict()
    assert report.dtype == dtype
    assert list(dict.fromkeys(loaded)) == [
        f"Loading the weights in {dtype}",
        f"PyTorch in {dtype}: the gates",
        "PyTorch in float64: the reference",
        f"torch in {dtype}: what is verified",
    ]
    assert max(item.gate.limit for item in report.comparisons) > 1e-3  # not the gates of float32
