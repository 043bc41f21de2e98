"""Prove that a session computes what PyTorch computes. Knows no runtime: sessions in, numbers out."""

from lucid_deploy.parity.causes.explain import Explanation, explain
from lucid_deploy.parity.measure.runner import check, prepare, verify
from lucid_deploy.parity.measure.targets import Targets, explained_scenarios
from lucid_deploy.parity.show.report import Report

__all__ = ["Explanation", "Report", "Targets", "check", "explain", "explained_scenarios", "prepare", "verify"]
