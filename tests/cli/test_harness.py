"""``eval --task lm_eval:NAME`` passes lm_eval's options on, and says what was cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.demo import recall

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("remembered_tasks")
TASK = """task: local_recall
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.json}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def run(artifact: Artifact, folder: Path, *options: Any) -> Result:
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in recall.held_out(3)]
    rows.append({"prompt": "fox has red lamp, " * 140 + rows[0]["prompt"], "answer": rows[0]["answer"]})
    (folder / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.yaml").write_text(TASK.format(folder=folder))
    given = ["--task", "lm_eval:local_recall", "--include-path", folder, *options]
    return CliRunner().invoke(main, ["eval", str(artifact.directory), *map(str, given)])


def test_options_are_passed_on_and_cuts_are_loud(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    refused = run(demo(), tmp_path)
    assert refused.exit_code == 2
    assert "1 of 4 prompts of local_recall are too long" in " ".join(refused.stderr.split())
    target = tmp_path / "out.json"
    cut = run(demo(), tmp_path, "--truncate", "left", "--json", target)
    assert cut.exit_code == 0, cut.stderr
    assert re.search(r"\d\.\d{4}\*", cut.stdout) and "local_recall: 1 prompts were cut" in cut.stdout
    assert json.loads(target.read_text())["truncated"] == {"local_recall": 1}
    short = run(demo(), tmp_path, "--limit", 3, "--gen-kwargs", "max_gen_toks=1", "--json", target)
    assert short.exit_code == 0, short.stderr
    facts = json.loads(target.read_text())
    assert facts["results"]["local_recall"]["exact_match,none"] == 0.0 and facts["truncated"] == {}
    chat = run(demo(), tmp_path, "--apply-chat-template")
    assert chat.exit_code == 2 and "has no chat template: leave --apply-chat-template out" in chat.stderr
