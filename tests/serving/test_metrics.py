"""Metrics: rounded and exact."""

from __future__ import annotations

from lucid_deploy.serving.metrics import Metrics

GAUGES = {
    "rows": 4.0,
    "cache_tokens": 1234.0,
    "prefix_cache_tokens": 1999.0,
    "prompt_tokens_reused": 2500.0,
    "draft_tokens_accepted": 77.0,
}


def values(metrics: Metrics, exact: bool) -> dict[str, float]:
    lines = [line.split() for line in metrics.text(exact).decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_counts_of_kept_tokens_are_coarse_unless_asked_for() -> None:
    metrics = Metrics(lambda: GAUGES)
    exact, coarse = values(metrics, True), values(metrics, False)
    assert (exact["lucid_prefix_cache_tokens"], coarse["lucid_prefix_cache_tokens"]) == (1999, 1000)
    assert (exact["lucid_prompt_tokens_reused_total"], coarse["lucid_prompt_tokens_reused_total"]) == (2500, 2000)
    assert exact["lucid_cache_tokens"] == coarse["lucid_cache_tokens"] == 1234
    assert exact["lucid_draft_tokens_accepted_total"] == coarse["lucid_draft_tokens_accepted_total"] == 77
    assert set(exact) == set(coarse)
