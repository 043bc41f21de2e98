"""A kind of layer defined here, after a LUCID layer, is exported, run and verified without changing the product."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.families import Family, family_named, register_family
from lucid_deploy.model.layers import layer_kind, register_layer_kind
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.parity.verification import VerifyOptions, verify_artifact
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import TINY
from tests.extension.toy_layer import WINDOW, ToyKind
from tests.parity.faults import change_weight

KINDS = ["lucid", "toy"]
CONFIG = {**TINY, "num_hidden_layers": 2, "layer_kinds": KINDS}
FACTOR = 4.0  # float32 in two orders of operations, both against float64


@pytest.fixture(scope="module", autouse=True)
def toy() -> None:
    register_layer_kind(ToyKind())


@pytest.fixture(scope="module")
def checkpoint(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as such a model's trainer would write it, with correlated keys."""
    import json

    directory = tmp_path_factory.mktemp("toy") / "checkpoint"
    directory.mkdir()
    torch.manual_seed(5)
    model = LucidForCausalLM(parse_config(CONFIG, "test"))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5).add_(torch.randn(64))
        for layer in model.layers():
            if hasattr(layer.mixer, "v_proj"):
                layer.mixer.k_proj.weight.mul_(3)
                layer.mixer.v_proj.weight.mul_(3)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(checkpoint, tmp_path_factory.mktemp("artifact") / "static", ExportOptions(cache="static"))


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Session[Any]:
    return open_session(artifact, "onnxruntime", kernels="functions")


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> TorchSession:
    from lucid_deploy.model.checkpoint import load_model

    return TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def allowed(checkpoint: Path, exact: TorchSession, ids: np.ndarray) -> float:
    """What plain float32 costs on the same tokens, times a factor."""
    from lucid_deploy.model.checkpoint import load_model

    plain = TorchSession(load_model(checkpoint, torch.float32))
    return FACTOR * error(plain.prefill_all(ids, plain.empty_cache()), exact.prefill_all(ids, exact.empty_cache()))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Return tokens, some of them repeated."""
    rng = np.random.default_rng(seed)
    return rng.choice(rng.integers(0, 97, 11), (1, count))


def test_the_kind_is_known_and_built_in_kinds_cannot_be_replaced():
    assert layer_kind("toy").name == "toy"
    with pytest.raises(LucidError, match="comes with lucid-deploy"):
        register_layer_kind(type("Other", (ToyKind,), {"name": "lucid"})())
    with pytest.raises(LucidError, match=r"Layer kind 'toi' is not known; known are lucid, .*toy"):
        layer_kind("toi")


def test_what_is_no_kind_or_family_is_refused():
    with pytest.raises(LucidError, match="A layer kind is an object of a subclass of LayerKind, not <class"):
        register_layer_kind(ToyKind)
    with pytest.raises(LucidError, match="A family is an object of a subclass of Family, not <class"):
        register_family(type("Mine", (Family,), {"model_type": "mine", "architectures": ()}))
    with pytest.raises(LucidError, match=r"Mine has no architectures, which a family must define \(tuple\)"):
        register_family(type("Mine", (Family,), {"model_type": "mine"})())


@pytest.mark.parametrize(
    ("group", "find", "what"),
    [("layers", layer_kind, "layer kind"), ("families", family_named, "family")],
)
def test_packages_with_a_broken_or_duplicate_entry_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, find: Any, what: str
):
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("some", "more"):
        facts = tmp_path / f"{package}_{group}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}-{group}\nVersion: 1\n")
        entries = f"[lucid_deploy.{group}]\ntwice = nowhere:KIND\n{package} = nowhere:KIND\n"
        (facts / "entry_points.txt").write_text(entries)
    with pytest.raises(LucidError, match=rf"Several packages bring a {what} twice: .*{group} \(nowhere:KIND\)"):
        find("twice")
    with pytest.raises(LucidError, match=rf"{what.capitalize()} some of some-{group} .* does not load: .*No module"):
        find("some")
    with pytest.raises(LucidError, match=r"is not known; known are .*, more, some, twice\."):
        find("no_such")


def test_the_manifest_describes_every_layer(artifact: Artifact):
    described = [(layer.kind, [(t.name, t.sort, t.window) for t in layer.cache]) for layer in artifact.manifest.layers]
    rows = [("key", "rows", None), ("value", "rows", None)]
    toy = [("average", "state", None), ("recent", "ring", WINDOW)]
    assert described == [("lucid", rows), ("toy", toy)]
    assert not (artifact.directory / "genai_config.json").exists()  # its runtime knows keys and values only


@pytest.mark.parametrize("chunks", [(40,), (1, 2, 7, 30), (39, 1)])
def test_one_shot_chunks_and_decoding_agree_with_float64(session, exact, checkpoint, chunks):
    ids = tokens(60)
    cache, mine = exact.empty_cache(), session.empty_cache()
    start, gate = 0, allowed(checkpoint, exact, ids)
    for size in chunks:
        logits = session.prefill(ids[:, start : start + size], mine)
        start += size
        assert error(logits, exact.prefill(ids[:, start - size : start], cache)) <= gate
    for position in range(start, 60):
        column = ids[:, position : position + 1]
        assert error(session.decode(column, mine), exact.decode(column, cache)) <= gate


def test_padding_does_not_change_logits(session, exact, checkpoint):
    ids = tokens(12)
    left, right = np.pad(ids, ((0, 0), (5, 0))), np.pad(ids, ((0, 0), (0, 5)))
    mask = np.ones((2, 17), bool)
    mask[0, :5] = mask[1, 12:] = False
    cache = session.empty_cache(2)
    both = session.prefill(np.concatenate([left, right]), cache, mask)
    more = session.decode(np.array([[3], [3]]), cache)
    alone = exact.empty_cache()
    gate = allowed(checkpoint, exact, ids)
    for logits, wanted in ((both, exact.prefill(ids, alone)), (more, exact.decode(np.array([[3]]), alone))):
        assert error(logits[0], wanted[0]) <= gate and error(logits[1], wanted[0]) <= gate


def answers(session: Session[Any], prompts: list[list[int]], rows: int) -> list[list[int]]:
    """Run prompts through a batcher; with fewer rows than prompts, they join as others leave."""
    batcher = Batcher(session, rows)
    numbers = [batcher.submit(Request(prompt, 4 + 3 * i, stop_at_eos=False)) for i, prompt in enumerate(prompts)]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while not batcher.idle:
        for event in batcher.step():
            assert not isinstance(event, Finished) or event.reason == "length", event
            if isinstance(event, Token):
                found[event.request].append(event.token)
    return [found[number] for number in numbers]


def test_rows_of_a_batch_join_and_leave(session):
    prompts = [tokens(n, seed=n)[0].tolist() for n in (5, 17, 2, 9)]
    alone = [answers(session, [prompt], 1)[0] for prompt in prompts]
    together = answers(session, prompts, 2)
    assert [len(answer) for answer in together] == [4, 7, 10, 13]
    for one, other in zip(alone, together, strict=True):
        assert other[:4] == one


def test_verify_passes_and_judges_rings_and_states(artifact):
    verification = verify_artifact(artifact, VerifyOptions(quick=True, explain=True))
    assert verification.passed, verification.failure
    report = verification
    compared = {str(item.tensor) for item in report.comparisons if item.judged}
    assert {"layer 1 average", "layer 1 recent", "layer 0 K", "layer 0 Y", "logits"} <= compared


def test_a_fault_in_the_layer_is_found_there(artifact, tmp_path):
    directory = Path(shutil.copytree(artifact.directory, tmp_path / "broken"))
    change_weight(directory, "model.layers.1.toy.u_proj.weight", 1.01)
    verification = verify_artifact(open_artifact(directory), VerifyOptions(quick=True))
    assert not verification.passed
    assert str(verification.first_failure.tensor).startswith("layer 1 ")
    first = next(item for item in verification.explanation.findings if item.failed)
    assert (first.part.layer, first.part.word) == (1, "output")
    assert "layers of kind toy" in verification.cause()
