"""lm_eval drives an artifact: its numbers are those of PyTorch, on tasks that lie here."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main
from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import RuntimeOptions, open_session

# Before these are imported: no network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lucid_deploy.evaluation import lm_eval_run  # noqa: E402
from lucid_deploy.evaluation.harness import HarnessOptions, run_tasks  # noqa: E402
from lucid_deploy.evaluation.lm_eval_adapter import LucidLM  # noqa: E402

pytestmark = pytest.mark.usefixtures("remembered_tasks")
Demo = Callable[..., Artifact]
CHOICES = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""
GENERATION = """task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.json}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """task: local_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.json}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Recall prompts with four choices; in the last three documents the label is wrong on purpose."""
    examples = recall.held_out(12)
    rows = []
    for i, example in enumerate(examples):
        others = [e.answer for e in examples if e.answer != example.answer][:3]
        choices = [*others[: i % 4], example.answer, *others[i % 4 :]]
        label = i % 4 if i < 9 else (i + 1) % 4
        rows.append({"prompt": example.prompt, "answer": example.answer, "choices": choices, "label": label})
    return rows


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, Any]]) -> Path:
    """A directory of local tasks. Data sets are cached beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.json").write_text("\n".join(json.dumps(row) for row in documents))
    for name, text in (("choice", CHOICES), ("generation", GENERATION), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def model(demo_directory: Path) -> Any:
    return load_model(Checkpoint(demo_directory), torch.float64)


@pytest.fixture(scope="module")
def lm(demo: Demo) -> LucidLM:
    return LucidLM(demo().directory, batch_size=4)


def likelihood(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Directly from PyTorch in float64."""
    logits, _ = model(torch.tensor([[*context, *continuation]]))
    rows = logits[0, len(context) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(continuation)
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(1) == wanted).all())


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def test_likelihoods_are_pytorchs(
    lm: LucidLM, model: Any, words: TextTokenizer, documents: list[dict[str, Any]]
) -> None:
    pairs = [(row["prompt"], " " + choice) for row in documents for choice in row["choices"]]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (prompt, choice), (value, greedy) in zip(pairs, found, strict=True):
        context, continuation = words.encode(prompt), words.encode(choice, add_special_tokens=False)
        expected, same = likelihood(model, context, continuation)
        assert value == pytest.approx(expected, abs=1e-3)
        assert greedy == same
    assert sum(greedy for _, greedy in found) == len(documents)  # the right choice of each


def test_text_without_context_follows_the_first_token(lm: LucidLM, model: Any, words: TextTokenizer) -> None:
    ids = words.encode("fox has red lamp")
    (found,) = lm.loglikelihood(requests("loglikelihood", ("", "fox has red lamp")), disable_tqdm=True)
    (rolled,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("fox has red lamp",)), disable_tqdm=True)
    assert found[0] == pytest.approx(likelihood(model, ids[:1], ids[1:])[0], abs=1e-3)
    assert rolled == pytest.approx(likelihood(model, ids[:1], ids)[0], abs=1e-3)  # the tokenizer's own first token too


def test_long_texts_are_rolled_over_in_windows(demo: Demo, model: Any, words: TextTokenizer) -> None:
    lm = LucidLM(demo().directory, max_length=16)
    text = " ".join(e.prompt for e in recall.held_out(3))
    ids = words.encode(text)
    assert len(ids) > 40
    expected, done = 0.0, 0
    while done < len(ids):
        if done == 0:
            context, new = [1], ids[:16]
        else:
            new = ids[done : done + 16]
            context = ids[done + len(new) - 17 : done]  # as much as fits before them
        expected += likelihood(model, context, new)[0]
        done += len(new)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=5e-3)


def test_long_contexts_lose_tokens_on_the_left(demo: Demo, model: Any, words: TextTokenizer) -> None:
    lm = LucidLM(demo().directory, max_length=20, truncate="left")
    prompt = recall.held_out(27)[-1].prompt
    (found,) = lm.loglikelihood(requests("loglikelihood", (prompt, " blue cup")), disable_tqdm=True)
    context, continuation = words.encode(prompt), words.encode("blue cup", add_special_tokens=False)
    assert len(context) > 100 and lm.truncated == {"": 1}
    assert found[0] == pytest.approx(likelihood(model, context[-19:], continuation)[0], abs=1e-3)
    with pytest.raises(LucidError, match="21 tokens, the model's context 20"):
        lm.loglikelihood(requests("loglikelihood", ("fox", " has" * 21)), disable_tqdm=True)


def test_long_contexts_are_refused_unless_they_may_be_cut(demo: Demo) -> None:
    lm = LucidLM(demo().directory, max_length=20)
    prompt = recall.held_out(27)[-1].prompt
    for kind, arguments in (
        ("loglikelihood", (prompt, " blue cup")),
        ("generate_until", (prompt, {"max_gen_toks": 4})),
    ):
        with pytest.raises(LucidError, match=r"1 of 1 prompts .* --truncate left"):
            getattr(lm, kind)(requests(kind, arguments), disable_tqdm=True)


def test_generation_stops_where_it_should(lm: LucidLM) -> None:
    prompts = [example.prompt for example in recall.held_out(6)]
    answers = [example.answer for example in recall.held_out(6)]

    def generated(**options: Any) -> list[str]:
        asked = [(prompt, options) for prompt in prompts]
        return lm.generate_until(requests("generate_until", *asked), disable_tqdm=True)

    assert generated(until=["."], max_gen_toks=8) == answers
    assert generated(until="nothing") == answers  # the model ends them itself
    assert generated(until=[" "], max_gen_toks=8) == [answer.split()[0] for answer in answers]
    assert generated(max_new_tokens=1) == [answer.split()[0] for answer in answers]
    assert generated(until=[], max_gen_toks=4, do_sample=True, temperature=0.01, top_k=1) == answers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "not supported: num_beams"),
        ({"max_gen_toks": 512}, "leaves no room for a context"),
        ({"max_gen_toks": 0}, "max_new_tokens|at least 1"),
    ],
)
def test_generation_options_that_cannot_be_kept_are_refused(lm: LucidLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        lm.generate_until(requests("generate_until", ("fox has", options)), disable_tqdm=True)


def test_a_pair_without_text_is_refused(lm: LucidLM) -> None:
    for pair, message in ((("", ""), "there is nothing to score"), (("fox", ""), "has no tokens of its own")):
        with pytest.raises(LucidError, match=message):
            lm.loglikelihood(requests("loglikelihood", pair), disable_tqdm=True)
    with pytest.raises(LucidError, match=r"half a character \(a lone surrogate\) at 4"):
        lm.generate_until(requests("generate_until", ("fox \udcff", {})), disable_tqdm=True)


def test_the_slow_path_gives_the_same_and_is_announced_once(
    lm: LucidLM, demo: Demo, words: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(demo(logits="last"))
    slow = LucidLM(session=session, tokenizer=words)
    prompt = recall.held_out(20)[-1].prompt
    asked = requests("loglikelihood", (prompt, " blue cup"), (prompt, " red"), ("owl has", " old red lamp."))
    caplog.clear()  # of what the export has said
    with caplog.at_level(logging.WARNING):
        found = [slow.loglikelihood(asked, disable_tqdm=True) for _ in range(2)]
        fast = lm.loglikelihood(asked, disable_tqdm=True)
    assert [record.message for record in caplog.records].count(slow_message := caplog.records[0].message) == 1
    assert "--logits all" in slow_message
    for one, other in zip(found[1], fast, strict=True):
        assert one == (pytest.approx(other[0], abs=1e-4), other[1])


def test_the_harness_runs_local_tasks(lm: LucidLM, tasks: Path, model: Any, words: TextTokenizer) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = ["local_choice", "local_generation", "local_perplexity"]
    results = lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    assert results["local_choice"]["acc,none"] == pytest.approx(9 / 12)  # three labels are wrong
    assert results["local_generation"]["exact_match,none"] == 1.0
    total, count = 0.0, 0
    for example in recall.held_out(12):
        ids = words.encode(example.prompt)
        total, count = total + likelihood(model, ids[:1], ids)[0], count + len(example.prompt.split())
    expected = torch.tensor(-total / count).exp().item()
    assert results["local_perplexity"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-4)


def test_the_command_runs_a_local_task(demo: Demo, tasks: Path, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    options = ["--task", "lm_eval:local_choice", "--include-path", tasks, "--limit", 8, "--json", target]
    result = CliRunner().invoke(main, ["eval", str(demo().directory), *map(str, options)])
    assert result.exit_code == 0, result.stderr
    assert "local_choice" in result.stdout and "1.0000" in result.stdout
    facts = json.loads(target.read_text())
    assert facts["results"]["local_choice"]["acc,none"] == 1.0
    assert facts["n-samples"]["local_choice"]["effective"] == 8
    assert facts["lm_eval"] == lm_eval.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "lm_eval:no_such_task"], "has no task 'no_such_task'"),
        (["--task", "lm_eval:local_choice", "--include-path", "nowhere"], "no such directory"),
        (["--task", "lm_eval:local_choice", "--limit", "0"], "at least 1 document"),
        (["--task", "lm_eval:local_choice", "--seed", "-1"], "seed must be 0 or more"),
    ],
)
def test_unknown_tasks_are_refused(demo: Demo, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["eval", str(demo().directory), *options])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


def test_contexts_beyond_the_models_where_they_are_permitted(demo: Demo, words: TextTokenizer) -> None:
    """Windows of a long text still end with the model's context."""
    prompt = " ".join(["fox has red lamp ,"] * 150)
    [request] = requests("generate_until", (prompt, {"max_gen_toks": 2, "until": []}))
    for permitted in (False, True):
        lm = LucidLM(session=open_session(demo(), RuntimeOptions(allow_extrapolation=permitted)), tokenizer=words)
        assert lm.max_length == 512 < lm.fit(request).tokens and lm.fit(request).fits == permitted
    assert isinstance(lm.generate_until([request], disable_tqdm=True)[0], str)


def test_a_seed_reaches_lm_eval(demo: Demo, words: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def evaluate(**given: Any) -> None:
        asked.append(given)
        raise OSError("enough")

    monkeypatch.setattr(lm_eval_run, "simple_evaluate", evaluate)
    session = open_session(demo())
    for seed in (None, 5):
        with pytest.raises(LucidError, match="enough"):
            run_tasks(session, words, ["arc_easy"], options=HarnessOptions(seed=seed))
    names = {"random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"}
    assert not names & asked[0].keys() and {asked[1][name] for name in names} == {5}


def test_what_the_adapter_cannot_be_made_of_is_refused(demo: Demo, words: TextTokenizer, tmp_path: Path) -> None:
    session = open_session(demo())
    for options in ({}, {"session": session}, {"artifact": demo().directory, "session": session}):
        with pytest.raises(LucidError, match="together with its tokenizer"):
            LucidLM(**options)
    with pytest.raises(LucidError, match="truncate must be left or middle, not 'right'"):
        LucidLM(session=session, tokenizer=words, truncate="right")
    with pytest.raises(LucidError, match="max_length must be 2 to 512"):
        LucidLM(session=session, tokenizer=words, max_length=513)
    with pytest.raises(LucidError, match="max_gen_toks must be a whole number, not 'many'"):
        LucidLM(session=session, tokenizer=words, max_gen_toks="many")
    with pytest.raises(LucidError, match="LucidLM takes no pretrained"):
        LucidLM(demo().directory, pretrained="other")
    with pytest.raises(LucidError, match="batch size"):
        LucidLM(session=session, tokenizer=words, batch_size="auto")
    with pytest.raises(LucidError, match="batch size must be a number of at least 1, not 0"):
        LucidLM(session=session, tokenizer=words, batch_size=0)
    session.config = replace(session.config, bos_token_id=None, eos_token_ids=())
    shutil.copy(demo().directory / "tokenizer.json", tmp_path)
    with pytest.raises(LucidError, match=r"Neither the tokenizer's files .* nor has the model's configuration"):
        _ = LucidLM(session=session, tokenizer=TextTokenizer(tmp_path)).prefix_token_id


def test_the_harness_knows_the_model_by_name() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("lucid") is LucidLM
