"""``lucid-deploy eval --suite``: results, files, a second model, and options that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.cli._suite_options import SuiteArguments
from lucid_deploy.cli._suites import Request, chat_renderer
from lucid_deploy.cli._suites import run as run_suite
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions
from tests.evaluation.suites.conftest import Pair, data, llama, llama_checkpoint, write_rows  # noqa: F401 (fixtures)

pytest.importorskip("lm_eval")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def test_a_suite_and_a_second_model(llama: Pair, data: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    options = [llama.artifact.directory, "--suite", "longbench", "--only", "longbench_2wikimqa", "--data", data]
    kept = ["--limit", 2, "--output-path", out, "--log-samples"]
    first = run(*options, *kept, "--against", llama.artifact.directory)
    assert first.exit_code == 0, first.stderr
    assert "longbench_2wikimqa" in first.stdout and "artifact less artifact" in first.stdout
    facts = json.loads((out / "results.json").read_text())
    assert facts["suite"] == "longbench" and facts["limit"] == 2 and facts["runtime"] == "onnxruntime"
    assert facts["tasks"][0]["documents"] == 2 and facts["tasks"][0]["truncated"] == 0
    (difference, _) = facts["against"]["differences"]
    assert difference["value"] == 0 and difference["better"] == difference["worse"] == 0
    assert len((out / "samples_longbench_2wikimqa.jsonl").read_text().splitlines()) == 2
    again = run(*options, *kept, "--json", "-")
    assert "2 answers are at" in again.stderr
    assert json.loads(again.stdout)["tasks"] == facts["tasks"]
    other = run(*options, *kept, "--truncate", "left")
    assert other.exit_code == 2 and "answers of another run: truncate differ" in " ".join(other.stderr.split())


@pytest.mark.parametrize("name", ["rules", "tokenizer"])
def test_answers_of_other_token_ids_are_not_gone_on_with(
    name: str,
    llama: Pair,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Nor are those of older versions, which do not say how their texts became token ids."""
    options = [llama.artifact.directory, "--suite", "longbench", "--only", "longbench_2wikimqa", "--data", data]
    options += ["--limit", 1, "--gen-kwargs", "max_gen_toks=1", "--output-path", tmp_path]
    assert run(*options).exit_code == 0
    head, *answers = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    owner = json.loads(head)["owner"]
    assert "tokenizer.json" in owner["tokenizer"]
    del owner[name]
    (tmp_path / "answers.jsonl").write_text("".join([json.dumps({"owner": owner}) + "\n", *answers]))
    again = run(*options)
    assert again.exit_code == 2 and f"answers of another run: {name} differ" in " ".join(again.stderr.split())


def test_chats_are_rendered_with_the_template_called_default(llama: Pair, tmp_path: Path) -> None:  # noqa: F811
    artifact = Artifact(tmp_path, llama.artifact.manifest)
    config = {"chat_template": {"default": "plain {{ messages[0].content }}", "tool_use": "tools"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_renderer(artifact)([{"role": "user", "content": "t"}], False) == "plain t"
    del config["chat_template"]["default"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(LucidError, match="called default; those of the model are called tool_use"):
        chat_renderer(artifact)


def test_only_the_first_model_is_ablated(llama: Pair, data: Path) -> None:  # noqa: F811
    opened = []

    def open_session(_artifact: Artifact, runtime: RuntimeOptions) -> tuple[Any, Any]:
        opened.append(runtime.ablate)
        return llama.session, llama.tokenizer

    arguments = SuiteArguments(suite="longbench", only="longbench_2wikimqa", data=str(data))
    request = Request(arguments, None, None, 1, 8, 0, RuntimeOptions("torch", ablate="keys"), None)
    run_suite(llama.artifact, llama.artifact, request, open_session)
    assert opened == ["keys", None]


def test_published_metadata_choose_lengths_and_needles(llama: Pair) -> None:  # noqa: F811
    metadata = '{"max_seq_lengths": [512], "num_needle_k": 3}'
    options = [llama.artifact.directory, "--suite", "mniah", "--limit", 1, "--gen-kwargs", "max_gen_toks=2"]
    facts = json.loads(run(*options, "--metadata", metadata, "--json", "-").stdout)
    assert [row["name"] for row in facts["tasks"]] == ["niah_multikey_1_n3_512"]
    assert facts["haystack"]["source"] == "bundled" and facts["seed"] == 0
    twice = run(*options, "--metadata", metadata, "--lengths", 512)
    assert twice.exit_code == 2 and "max_seq_lengths in --metadata say the same" in " ".join(twice.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "chess"], "Suite 'chess' is not known"),
        (["--suite", "ruler", "--task", "recall"], "--task and --suite both say what to run"),
        (["--suite", "ruler", "--lengths", "4q"], "such as 4096 or 4k"),
        (["--suite", "mniah", "--needles", "2,x"], "--needles takes whole numbers"),
        (["--suite", "mniah", "--ask", "1"], "--ask is for --task needles"),
        (["--suite", "ruler", "--log-samples"], "--log-samples needs --output-path"),
        (["--suite", "ruler", "--minimum", "0.5"], "are for the tasks recall and needles"),
        (["--suite", "scrolls", "--haystack", "x"], "scrolls hides nothing"),
        (["--suite", "scrolls", "--data", "nowhere"], "no data at nowhere"),
        (["--suite", "ruler", "--metadata", "x"], "--metadata is not JSON"),
        (["--suite", "ruler", "--include-path", "."], "--include-path is for tasks"),
        (["--only", "x"], "--only is for --suite NAME"),
        (["--truncate", "left"], "--truncate is for --suite NAME and --task lm_eval:NAME"),
        (["--task", "needles", "--needles", "2,3"], "--needles takes one whole number with --task needles"),
    ],
)
def test_bad_usage(llama: Pair, options: list[str], message: str) -> None:  # noqa: F811
    result = run(llama.artifact.directory, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_a_tokenizer_of_other_words_is_refused(demo: Callable[..., Artifact]) -> None:
    result = run(demo().directory, "--suite", "mniah", "--lengths", 512, "--needles", 2, "--limit", 1)
    assert result.exit_code == 2
    assert "cannot write the texts of niah_multikey_1_n2_512" in " ".join(result.stderr.split())
