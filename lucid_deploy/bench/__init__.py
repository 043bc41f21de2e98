"""Benchmarks that are part of the product: contenders on the same weights are compared, then all are timed in turn.

Each contender runs in its own process, so that its memory can be measured, and only one of them works at a time.
"""

from lucid_deploy.bench.contenders import Contender
from lucid_deploy.bench.runner import Measurement, Plan, run_plan

__all__ = ["Contender", "Measurement", "Plan", "run_plan"]
