"""``lucid-deploy eval`` on the bundled model, and on ones that are broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize_options import QuantizeOptions
from lucid_deploy.model.checkpoint import DEMO

Demo = Callable[..., Artifact]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def printed(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


@pytest.fixture(scope="module")
def unsolved(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled weights with standard attention: Y = V."""
    checkpoint = tmp_path_factory.mktemp("unsolved") / "checkpoint"
    shutil.copytree(demo_directory, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "attention_type": "llama"}))
    return export(checkpoint, checkpoint.parent / "artifact").directory


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}], ids=str)
def test_the_bundled_model_answers_everything(demo: Demo, options: dict[str, str]) -> None:
    facts = printed(demo(**options).directory, "--limit", 200, "--batch", 32, "--minimum", 0.99)
    assert (facts["right"], facts["count"], facts["accuracy"], facts["wrong"]) == (200, 200, 1.0, [])
    assert (facts["runtime"], facts["dtype"]) == ("onnxruntime", options.get("dtype", "float32"))
    assert len(facts["table"]) == 27
    assert facts["provider"] == "cpu"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_scores_are_shown_also_if_their_file_cannot_be_written(demo: Demo) -> None:
    result = run(demo().directory, "--limit", 2, "--json", "/dev/full")
    assert result.exit_code == 2 and "Error: /dev/full cannot be written: No space left on device." in result.stderr
    assert "recall: 2 of 2 right" in result.stdout


def test_pytorch_gives_the_same_score(demo: Demo) -> None:
    facts = printed(demo().directory, "--runtime", "torch", "--limit", 54)
    assert (facts["runtime"], facts["right"], facts["count"]) == ("torch", 54, 54)


def test_quantized_weights_are_named_beside_their_score(demo: Demo, tmp_path: Path) -> None:
    small = export(DEMO, tmp_path / "small", ExportOptions(quantize=QuantizeOptions("int4"))).directory
    named = {"scheme": "int4", "method": "rtn", "bits_per_weight": 5.0}
    facts = printed(demo().directory, "--limit", 2, "--against", small)
    assert (facts["quantization"], facts["against"]["quantization"]) == (None, named)
    shown = run(small, "--limit", 2, "--against", demo().directory).stdout
    assert "float32, int4, rtn, 5 bits a weight" in shown
    assert f"against {demo().directory}: " in shown


def test_a_model_without_the_solve_does_far_worse(demo: Demo, unsolved: Path) -> None:
    facts = printed(unsolved, "--limit", 108, "--against", demo().directory)
    assert facts["accuracy"] < 0.5
    assert facts["against"]["accuracy"] == 1.0
    assert facts["against"]["relative_accuracy"] == facts["accuracy"]
    assert facts["against"]["only_right_there"] == len(facts["wrong"]) == len(facts["against"]["disagreements"])
    assert facts["against"]["only_right_here"] == 0


@pytest.mark.parametrize("option", ["--minimum", "--minimum-relative"])
def test_too_low_an_accuracy_fails(demo: Demo, unsolved: Path, tmp_path: Path, option: str) -> None:
    target = tmp_path / "result.json"
    result = run(unsolved, "--limit", 27, "--against", demo().directory, option, 0.97, "--json", target)
    assert result.exit_code == 1
    assert f"{option} asks for 97.00%" in result.stderr
    assert "recall: " in result.stdout and "relative accuracy" in result.stdout
    assert json.loads(target.read_text())["count"] == 27  # the result is there all the same


def test_needles_in_a_table_of_depths_and_lengths(demo: Demo) -> None:
    facts = printed(demo().directory, "--task", "needles", "--length", "128,64", "--needles", 5, "--limit", 20)
    assert facts["accuracy"] == 1.0 and facts["count"] == 40
    assert [(row["length"], row["count"]) for row in facts["table"] if row["depth"] == "0-20 %"] == [(64, 4), (128, 4)]
    assert facts["settings"]["wording"] == "recall"
    result = run(demo().directory, "--task", "needles", "--length", "64", "--limit", 5)
    assert result.exit_code == 0
    assert "80-100 %" in result.stdout and "5 of 5 right" in result.stdout
    assert result.stderr == ""


def test_beyond_the_context_only_on_request(demo: Demo) -> None:
    options = [demo().directory, "--task", "needles", "--length", 600, "--limit", 2]
    result = run(*options)
    assert result.exit_code == 2
    assert "exceed the model's context of 512" in result.stderr
    assert printed(*options, "--allow-extrapolation")["count"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "chess"], "Task 'chess' is not known; known are recall, needles and lm_eval:NAME."),
        (["--limit", 0], "The limit must be at least 1 prompt, not 0."),
        (["--batch", 0], "at least one row"),
        (["--seed", -1], "The seed must be 0 or more"),
        (["--needles", 3], "--needles is for --task needles."),
        (["--length", "64"], "--length is for --task needles."),
        (["--task", "needles", "--length", "64,x"], "--length takes whole numbers"),
        (["--task", "needles", "--length", ""], "Lengths must be whole numbers of tokens"),
        (["--minimum-relative", 0.9], "name it with --against"),
        (["--include-path", "."], "--include-path is for tasks of lm-evaluation-harness"),
        (["--minimum", 1.5], "1.5 is not in the range"),
        (["--against", "nowhere"], "There is no artifact at nowhere"),
        (["--task", "lm_eval:x", "--minimum", 0.5], "--minimum are for the tasks recall and needles"),
        (["--provider", "cuda", "--runtime", "torch"], "--provider is for onnxruntime"),
    ],
)
def test_bad_usage(demo: Demo, options: list[Any], message: str) -> None:
    result = run(demo().directory, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_no_tokenizer(exported: Callable[..., tuple[Path, Artifact]]) -> None:
    result = run(exported()[1].directory)
    assert result.exit_code == 2 and "has no tokenizer.json" in result.stderr


def test_a_tokenizer_of_other_words(artifact_copy: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0")).save(
        str(artifact_copy / "tokenizer.json")
    )
    for task in ("recall", "needles"):
        result = run(artifact_copy, "--task", task)
        assert result.exit_code == 2 and "tokenizer cannot write" in result.stderr


@pytest.fixture
def other_words(demo: Demo, tmp_path: Path) -> Path:
    """The bundled model with a tokenizer of another file."""
    other = shutil.copytree(demo().directory, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(words, indent=1) + "\n")
    manifest = json.loads((other / "lucid.json").read_text())
    manifest["files"]["tokenizer.json"]["size"] = (other / "tokenizer.json").stat().st_size
    (other / "lucid.json").write_text(json.dumps(manifest))
    return other


def test_recall_is_said_to_suit_the_bundled_words(demo: Demo, other_words: Path) -> None:
    own = demo().directory
    for models, named in (
        ([other_words], f"{other_words} was"),
        ([own, "--against", other_words], f"{other_words} was"),
        ([other_words, "--against", other_words], f"{other_words} and {other_words} were"),
    ):
        said = " ".join(run(*models, "--limit", 2).stderr.split())
        assert said.count("Note: recall uses the words of the bundled model") == 1 and f"which {named} not" in said
    assert "recall uses" not in run(own, "--against", own, "--limit", 2).stderr


def test_the_other_model_must_be_able_to_write_the_words(demo: Demo, with_tokenizer: Path) -> None:
    """Before either answers; without a tokenizer it could not even be asked."""
    for remedy in ("tokenizer cannot write the words of the recall task", "has no tokenizer.json"):
        result = run(demo().directory, "--limit", 2, "--against", with_tokenizer)
        assert result.exit_code == 2 and result.stdout == ""
        assert str(with_tokenizer) in result.stderr and remedy in " ".join(result.stderr.split())
        (with_tokenizer / "tokenizer.json").unlink(missing_ok=True)


def test_a_damaged_artifact(demo: Demo, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(demo().directory, tmp_path / "artifact"))
    with (damaged / "weights.bin").open("r+b") as file:
        file.truncate(1000)
    result = run(damaged)
    assert result.exit_code == 1 and "weights.bin" in result.stderr


def test_without_the_preconditioner_it_is_the_model_without_the_solve(demo: Demo, unsolved: Path) -> None:
    """The ablation against an export of the same weights with standard attention."""
    options = ["--runtime", "torch", "--limit", 54]
    ablated = printed(demo().directory, *options, "--ablate", "preconditioner", "--against", demo().directory)
    expected = printed(unsolved, *options)
    assert ablated["wrong"] == expected["wrong"] and ablated["ablate"] == "preconditioner"
    assert ablated["against"]["accuracy"] == 1.0  # the other is whole
    raw = printed(demo().directory, *options, "--ablate", "keys")
    assert raw["accuracy"] < 1.0 and raw["wrong"] != expected["wrong"]


def test_only_pytorch_ablates(demo: Demo) -> None:
    result = run(demo().directory, "--ablate", "keys")
    assert result.exit_code == 2 and "--ablate is for torch" in " ".join(result.stderr.split())
