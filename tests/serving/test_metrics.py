"""Quantiles in `/metrics`."""

from __future__ import annotations

from lucid_deploy.serving.metrics import Metrics


def test_quantiles_are_of_the_last_thousand_values() -> None:
    metrics = Metrics(dict)
    assert b'quantile_seconds{quantile="0.5"} NaN' in metrics.text()
    for number in (*range(1, 2001), *reversed(range(2001, 3001))):
        metrics.between.observe(number / 1000)
    lines = metrics.text().decode().splitlines()
    assert "lucid_time_between_tokens_seconds_count 3000.0" in lines
    for quantile, value in (("0.5", 2.501), ("0.95", 2.951)):
        assert f'lucid_time_between_tokens_quantile_seconds{{quantile="{quantile}"}} {value}' in lines
