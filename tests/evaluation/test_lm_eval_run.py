"""lm_eval's evaluation without its list of packages and its bars."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from lucid_deploy.evaluation.lm_eval_run import simple_evaluate


class Parrot(LM):
    def generate_until(self, requests: list) -> list[str]:  # type: ignore[type-arg]
        return [request.args[0] for request in requests]

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:  # type: ignore[type-arg]
        return []

    def loglikelihood_rolling(self, requests: list) -> list[float]:  # type: ignore[type-arg]
        return []


def test_results_are_there_and_nothing_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)  # git would complain that this is no repository of its
    rows = datasets.Dataset.from_list([{"q": "a"}, {"q": "b"}])
    config = {
        "task": "echo",
        "output_type": "generate_until",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "a",
        "metric_list": [{"metric": "exact_match"}],
        "metadata": {"version": 1},
    }
    results = simple_evaluate(model=Parrot(), tasks=[ConfigurableTask(config=config)], bootstrap_iters=0)
    assert results["results"]["echo"]["exact_match,none"] == 0.5
    said = capfd.readouterr().err
    assert "pretty_env_info" not in results and "it/s" not in said and "git" not in said
