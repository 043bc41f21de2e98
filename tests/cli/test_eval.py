"""``lucid-deploy eval`` on the bundled model, on a second one, and through lm-evaluation-harness."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main
from lucid_deploy.demo import recall
from lucid_deploy.evaluation import evaluate, recall_task
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession

Demo = Callable[..., Artifact]
ABLATED = ("--runtime", "torch", "--ablate", "preconditioner")
LM_EVAL_TASK = """task: local_recall
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.json}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def printed(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_the_bundled_model_answers_everything(demo: Demo) -> None:
    facts = printed(demo().directory, "--task", "recall", "--limit", 200, "--batch", 32, "--minimum", 0.99)
    assert (facts["right"], facts["count"], facts["accuracy"], facts["wrong"]) == (200, 200, 1.0, [])
    assert (facts["runtime"], facts["dtype"]) == ("onnxruntime", "float32")


def test_the_preconditioner_left_out_is_standard_attention(demo: Demo, demo_directory: Path, tmp_path: Path) -> None:
    """Answers equal those of the same weights with standard attention (Y = V); --against runs without --ablate."""
    checkpoint = Path(shutil.copytree(demo_directory, tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "attention_type": "llama"}))
    words = TextTokenizer(checkpoint)
    expected = evaluate(TorchSession(load_model(checkpoint)), words, recall_task(words, 54)).to_dict()
    options = [demo().directory, *ABLATED, "--task", "recall", "--limit", 54]
    ablated = printed(*options, "--against", demo().directory)
    assert ablated["wrong"] == expected["wrong"] and ablated["ablate"] == "preconditioner"
    assert ablated["accuracy"] == expected["accuracy"] < 0.5
    against = ablated["against"]
    assert against["accuracy"] == 1.0 and against["relative_accuracy"] == ablated["accuracy"]
    assert (against["only_right_there"], against["only_right_here"]) == (len(ablated["wrong"]), 0)
    refused = run(demo().directory, "--task", "recall", "--ablate", "preconditioner")
    assert refused.exit_code == 2 and "--ablate is for torch" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("option", ["--minimum", "--minimum-relative"])
def test_too_low_an_accuracy_fails(demo: Demo, tmp_path: Path, option: str) -> None:
    target = tmp_path / "result.json"
    given = ["--task", "recall", "--limit", 27, "--against", demo().directory, option, 0.97, "--json", target]
    result = run(demo().directory, *ABLATED, *given)
    assert result.exit_code == 1
    assert f"{option} asks for 97.00%" in result.stderr
    assert "recall: " in result.stdout and "relative accuracy" in result.stdout
    assert json.loads(target.read_text())["count"] == 27  # the result is there all the same


def test_needles_are_counted_by_depth_and_length(demo: Demo) -> None:
    facts = printed(demo().directory, "--task", "needles", "--length", "128,64", "--needles", 5, "--limit", 20)
    assert facts["accuracy"] == 1.0 and facts["count"] == 40
    assert [(row["length"], row["count"]) for row in facts["table"] if row["depth"] == "0-20 %"] == [(64, 4), (128, 4)]
    beyond = [demo().directory, "--task", "needles", "--length", 600, "--limit", 2]
    result = run(*beyond)
    assert result.exit_code == 2 and "exceed the model's context of 512" in result.stderr
    assert printed(*beyond, "--allow-extrapolation")["count"] == 2


def test_the_perplexity_of_a_text_is_that_of_pytorch(demo: Demo, tmp_path: Path) -> None:
    """On held-out prompts with their right answers, onnxruntime and PyTorch give the same perplexity."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{each.prompt} {each.answer}." for each in recall.held_out(60)))
    found = printed(demo().directory, "--text", text)
    assert found["window"] == 512 and found["tokens"] > 1000 and found["perplexity"] > 1
    assert printed(demo().directory, "--text", text, "--runtime", "torch")["perplexity"] == pytest.approx(
        found["perplexity"], rel=1e-4
    )
    shown = run(demo(quantize=QuantizeOptions("int4")).directory, "--text", text, "--against", demo().directory).stdout
    assert "perplexity " in shown and f": {found['perplexity']:.4f}, so " in shown
    text.write_text("fox has zebra lamp")
    assert "does not know zebra" in run(demo().directory, "--text", text).stderr
    missing = run(demo().directory, "--text", tmp_path / "nowhere")
    assert missing.exit_code == 2 and "nowhere cannot be read" in " ".join(missing.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "chess"], "Task 'chess' is not known; known are recall, needles and lm_eval:NAME."),
        (["--task", "recall", "--limit", 0], "0 is not in the range 1<=x<=1000000"),
        (["--task", "recall", "--batch", 0], "0 is not in the range x>=1"),
        (
            [],
            "Choose what to evaluate: --task recall, --task needles, --task lm_eval:NAME, or --text FILE",
        ),
        (["--task", "recall", "--needles", 3], "--needles is for --task needles."),
        (["--task", "needles", "--needles", "2,3"], "'2,3' is not a valid integer"),
        (["--task", "needles", "--length", "64,x"], "not a list of whole numbers from 1 up"),
        (["--task", "recall", "--minimum-relative", 0.9], "name it with --against"),
        (["--task", "recall", "--minimum", 1.5], "1.5 is not in the range"),
        (["--task", "recall", "--against", "nowhere"], "There is no artifact at nowhere"),
        (["--task", "lm_eval:x", "--minimum", 0.5], "--minimum is for --task recall and --task needles."),
        (["--text", "x", "--limit", 3], "--limit is for"),
        (["--task", "recall", "--truncate", "left"], "--truncate is for --task lm_eval:NAME."),
        (["--text", "FILE", "--seed", 0], "--seed is for --task recall and"),
        (["--text", "FILE", "--batch", 2], "--batch is for --task recall and"),
        (["--text", "x", "--task", "recall"], "--task and --text both say what to run"),
        (["--task", "lm_eval:x", "--log-samples"], "--log-samples needs --output-path"),
        (["--task", "lm_eval:x", "--metadata", "x"], "--metadata is not JSON"),
        (["--task", "lm_eval:x", "--gen-kwargs", "x"], "--gen-kwargs takes a JSON object or name=value"),
        (["--task", "recall", "--include-path", "."], "--include-path is for --task lm_eval:NAME"),
    ],
)
def test_bad_usage_is_refused(demo: Demo, options: list[Any], message: str) -> None:
    result = run(demo().directory, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("given_tasks_only")
def test_tasks_of_lm_eval_are_run_by_name(demo: Demo, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in recall.held_out(3)]
    rows.append({"prompt": "fox has red lamp, " * 140 + rows[0]["prompt"], "answer": rows[0]["answer"]})
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(LM_EVAL_TASK.format(folder=tmp_path))
    options = [demo().directory, "--task", "lm_eval:local_recall", "--include-path", tmp_path]
    refused = run(*options)
    assert refused.exit_code == 2 and "1 of 4 prompts are too long" in " ".join(refused.stderr.split())
    target = tmp_path / "out.json"
    cut = run(*options, "--truncate", "left", "--json", target, "--against", demo().directory)
    assert cut.exit_code == 0, cut.stderr
    assert re.search(r"\d\.\d{4}\*", cut.stdout) and "* some prompts were cut" in cut.stdout
    facts = json.loads(target.read_text())
    assert facts["tasks"][0]["truncated"] == 1 and facts["against"]["differences"][0]["value"] == 0
    out = tmp_path / "out"
    short = printed(*options, "--limit", 3, "--gen-kwargs", "max_gen_toks=1", "--output-path", out, "--log-samples")
    assert json.loads((out / "results.json").read_text()) == short and len(list(out.glob("answers-*.db"))) == 1
    assert len((out / "samples_local_recall.jsonl").read_text().splitlines()) == 3
    printed(*options, "--limit", 1, "--output-path", out, "--truncate", "left")
    assert len(list(out.glob("answers-*.db"))) == 2  # answers to other token ids are not mixed with these
    assert short["tasks"][0]["metrics"]["exact_match"]["value"] == 0.0
    assert short["tasks"][0]["documents"] == 3 and short["gen_kwargs"] == {"max_gen_toks": 1}
    for given, message in (
        (["--include-path", "nowhere"], "'nowhere' does not exist"),
        (["--task", "lm_eval:no_such_task"], "has no task 'no_such_task'"),
    ):
        result = run(*options, *given)
        assert result.exit_code == 2 and message in " ".join(result.stderr.split())
