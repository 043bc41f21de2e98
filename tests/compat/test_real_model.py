"""A real pretrained model, SmolLM2-135M-Instruct: the exported graphs answer as transformers does."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import lucid_deploy as ld
from lucid_deploy.artifact.chat_process import chat_renderer
from lucid_deploy.cli import main
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity.perplexity import session_logits, surprisals, windows
from lucid_deploy.runtimes import open_session
from tests.compat.environments import folder_with

pytestmark = pytest.mark.compat
ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ["river", "children"]
OPENINGS = (
    "The most important thing about {} is",
    "Once upon a time, {} was",
    "Here is a list of three facts about {}:\n1.",
    "Question: What do people say about {}?\nAnswer:",
    "def count_{}(items):\n",
)
PROMPTS = [opening.format(subject) for opening in OPENINGS for subject in SUBJECTS]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The model as examples/smollm2.py writes it."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, ROOT / "examples" / "smollm2.py", folder], check=True, stdout=sys.stderr)

    return folder_with("smollm2", make)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "artifact"
    ld.export(checkpoint, folder)
    return folder


def test_greedy_answers_are_transformers(
    artifact: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """To ten prompts, every other one in the chat template, token for token."""
    session = open_session(artifact)
    for place, prompt in enumerate(PROMPTS):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) if place % 2 else prompt
        ids = tokenizer(text, return_tensors="np", add_special_tokens=text == prompt)["input_ids"]
        theirs = model.generate(torch.from_numpy(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=2)
        cache = session.empty_cache()
        logits, ours = session.prefill(ids, cache), list[int]()
        for _ in range(theirs.shape[1] - ids.shape[1]):
            ours.append(int(logits[0, -1].argmax()))
            logits = session.decode(np.array([ours[-1:]]), cache)
        assert ours == theirs[0, ids.shape[1] :].tolist(), text


def test_the_chat_is_rendered_as_transformers_does(artifact: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    render = chat_renderer(artifact)
    assert render is not None
    for messages in (
        [{"role": "user", "content": "What is bread?"}],
        [{"role": role, "content": f"as {role}"} for role in ("system", "user", "assistant", "user")],
    ):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render(messages, False) == wanted


def test_the_perplexity_of_a_licence_is_transformers(
    artifact: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = np.array(tokenizer((ROOT / "LICENSE").read_text())["input_ids"])[:700]
    pieces, total = windows(ids, 512), []
    for piece in pieces:
        with torch.no_grad():
            chances = model(torch.from_numpy(piece[None])).logits[0, :-1].double().log_softmax(-1)
        total.append(chances.gather(1, torch.from_numpy(piece[1:, None])).flatten())
    theirs = math.exp(-torch.cat(total).mean())
    ours = math.exp(surprisals(session_logits(open_session(artifact)), pieces, lambda: None).mean())
    assert 5 < theirs < 50
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_an_answer_is_held_to_a_schema(artifact: Path, tmp_path: Path) -> None:
    properties = {"city": {"type": "string", "maxLength": 30}, "is_capital": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    arguments = ["run", artifact, "Paris, described as JSON: ", "--json-schema", tmp_path / "schema.json", "-n", "64"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == set(properties) and isinstance(found["is_capital"], bool)


def test_lucid_in_some_layers_costs_little(
    checkpoint: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """With the adapter in examples/convert, whose figures on more text are in its README."""
    converted, adapter = tmp_path / "converted", ROOT / "examples" / "convert" / "smollm2-lucid"
    shutil.copytree(checkpoint, converted)
    shutil.copy(adapter / "config.json", converted)
    ids = torch.tensor(tokenizer((ROOT / "CONTRIBUTING.md").read_text()).input_ids)[None, :512]

    def perplexity(logits: torch.Tensor) -> float:
        return math.exp(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))

    with torch.inference_mode():
        untrained = perplexity(load_model(Checkpoint(converted))(ids)[0])
        lucid = perplexity(load_model(Checkpoint(converted, adapter=adapter))(ids)[0])
        original = perplexity(model(ids).logits)
    assert original < lucid < 1.1 * original < untrained
