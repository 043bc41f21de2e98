"""The Python API: its names, and the way from a checkpoint to an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import pytest

import lucid_deploy as ld
from lucid_deploy.model.checkpoint import DEMO

PROMPT = "fox has red lamp, owl has blue cup, bear has green key. owl has blue"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> ld.Artifact:
    return ld.export(DEMO, tmp_path_factory.mktemp("api") / "out", cache="static")


def test_the_api_has_these_names_and_loads_them_when_they_are_used():
    assert ld.__all__ == [
        "Answer",
        "Artifact",
        "CheckFailed",
        "LucidError",
        "Model",
        "__version__",
        "export",
        "open",
        "verify",
    ]
    code = "import sys, lucid_deploy; print([name for name in ('torch', 'onnx', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert all(hasattr(ld, name) for name in ld.__all__) and dir(ld) == ld.__all__
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        ld.exprot  # noqa: B018


def test_export_is_the_function_and_the_package_whichever_is_used_first(preloaded: Path):
    for first in ("import lucid_deploy.export", "lucid_deploy.export"):
        code = f"import lucid_deploy\n{first}\nimport lucid_deploy.export.trace\nprint(callable(lucid_deploy.export))"
        run = subprocess.run([preloaded / "python", "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "True"


def test_a_model_answers_streams_and_stops(artifact: ld.Artifact):
    with ld.open(artifact.directory, runtime="auto") as model:
        answer = model.generate(PROMPT, max_new_tokens=6)
        assert answer.ids and answer.text and answer.prompt_tokens > 10
        assert "".join(model.stream(PROMPT, max_new_tokens=6)) == answer.text
        assert model.generate(model.encode(PROMPT), max_new_tokens=6) == answer
        word = answer.text.split()[0]
        stopped = model.generate(PROMPT, max_new_tokens=6, stop=[word])
        assert (stopped.finish_reason, word in stopped.text) == ("stop", False)
        sampled = [model.generate(PROMPT, 6, temperature=2.0, seed=7).ids for _ in range(2)]
        assert sampled[0] == sampled[1]


def test_speculation_changes_no_answer(artifact: ld.Artifact):
    with artifact.open() as model:
        plain = model.generate(PROMPT, max_new_tokens=20, stop_at_eos=False)
        assert model.generate(PROMPT, max_new_tokens=20, stop_at_eos=False, speculate="lookup") == plain
        draft = {"speculate": "draft", "draft": artifact.directory}
        assert model.generate(PROMPT, max_new_tokens=20, stop_at_eos=False, **draft) == plain
        assert model.drafters(**draft) is model.drafters(**draft)  # the draft model is opened once
        with pytest.raises(ld.LucidError, match="go together"):
            model.generate(PROMPT, draft=artifact.directory)


def test_a_draft_model_is_opened_like_the_model_and_closed_with_it(artifact: ld.Artifact, monkeypatch):
    with ld.open(artifact, "onnxruntime", kernels="functions", threads=1, allow_extrapolation=True) as model:
        draft = model.drafters("draft", artifact.directory).session
        assert (draft.options.threads, draft.options.kernels, draft.allow_extrapolation) == (1, "functions", True)
        closed = []
        for session in (draft, model.session):
            monkeypatch.setattr(session, "close", lambda session=session: closed.append(session))
    assert closed == [draft, model.session]


def test_the_commands_run_and_the_api_answer_alike(artifact: ld.Artifact):
    command = [sys.executable, "-m", "lucid_deploy.cli", "run", str(artifact.directory), "--prompt", PROMPT, "--json"]
    run = subprocess.run([*command, "--max-new-tokens", "6"], capture_output=True, text=True, check=True)
    with artifact.open() as model:
        assert json.loads(run.stdout)["ids"] == model.generate(PROMPT, 6).ids


def test_impossible_calls_raise_errors_that_say_why(artifact: ld.Artifact, tmp_path: Path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'cashe'"):
        ld.export(DEMO, tmp_path / "other", cashe="static")
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        ld.open(artifact, thread=2)
    with artifact.open() as model:
        with pytest.raises(ld.LucidError, match="The prompt is empty"):
            model.generate([])
        with pytest.raises(ld.LucidError, match="The prompt is empty: it has no text"):
            model.generate("")  # as in the commands, though the tokenizer puts a token first
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            model.generate(PROMPT, temprature=1)
        model.tokenizer = None
        with pytest.raises(ld.LucidError, match="give the prompt as token ids"):
            model.generate(PROMPT)
        with pytest.raises(ld.LucidError, match="no text to stream"):
            model.stream([1, 2])
        assert model.generate([1, 2, 3], 2).text == ""


def test_one_stop_string_or_bad_word_is_not_read_as_letters(artifact: ld.Artifact):
    prompt = PROMPT.removesuffix(" blue")
    with artifact.open() as model:
        assert model.generate(prompt, 6).text == "blue cup"
        assert model.generate(prompt, 6, stop=None).text == "blue cup"
        for stop in ("cup", ["cup"], {"cup"}):
            assert model.generate(prompt, 6, stop=stop).text == "blue "
            assert "".join(model.stream(prompt, 6, stop=stop)) == "blue "
        banned = model.generate(prompt, 6, bad_words=["blue"])
        assert model.generate(prompt, 6, bad_words="blue") == banned and "blue" not in banned.text


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_concurrent_generations_do_not_affect_each_other(artifact: ld.Artifact, runtime: str):
    options = [{"temperature": index % 2, "seed": index, "stop_at_eos": False} for index in range(6)]
    prompts = [PROMPT[12 * index :] for index in range(6)]
    with artifact.open(runtime, threads=1) as model:
        alone = [model.generate(prompt, 8, **more) for prompt, more in zip(prompts, options, strict=True)]
        streams = [model.stream(prompt, 8, **more) for prompt, more in zip(prompts, options, strict=True)]
        turns = zip_longest(*streams, fillvalue="")
        assert ["".join(pieces) for pieces in zip(*turns, strict=True)] == [answer.text for answer in alone]
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(model.generate, prompt, 8, **more) for prompt, more in zip(prompts, options, strict=True)
            ]
            assert [job.result() for job in jobs] == alone


def test_an_opened_artifact_is_refused_once_its_directory_is_replaced(tmp_path: Path):
    """Its manifest would be paired with the graphs and weights of the newer export."""
    older = ld.export(DEMO, tmp_path / "out")
    newer = ld.export(DEMO, tmp_path / "out", cache="static", overwrite=True)
    for use in (older.open, lambda: older.verify(quick=True)):
        with pytest.raises(ld.LucidError, match="holds another artifact than when this object was made"):
            use()
    with newer.open() as model:
        assert model.artifact is newer and model.generate(PROMPT, 6).ids
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ld.CheckFailed, match=r"tokenizer\.json is missing"):
        newer.open()
    shutil.rmtree(tmp_path / "out")
    for use in (newer.open, newer.verify):
        with pytest.raises(ld.LucidError, match="There is no artifact at"):
            use()


def test_a_closed_model_cannot_be_used(artifact: ld.Artifact):
    model = artifact.open()
    stream = model.stream(PROMPT, 6, stop_at_eos=False)
    next(stream)
    model.close()
    model.close()  # again: no error
    uses = (lambda: model.generate(PROMPT, 2), lambda: model.stream(PROMPT, 2), lambda: model.encode(PROMPT))
    for use in (*uses, lambda: model.drafters("lookup", None), lambda: list(stream)):
        with pytest.raises(ld.LucidError, match="is closed; open the artifact again"):
            use()
