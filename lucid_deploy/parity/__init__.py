"""Prove that a session computes what PyTorch computes. Knows no runtime: sessions in, numbers out."""

from lucid_deploy.parity.explain import Explanation, explain
from lucid_deploy.parity.report import Report
from lucid_deploy.parity.runner import check, prepare, verify
from lucid_deploy.parity.targets import Targets, explained_scenarios

__all__ = ["Explanation", "Report", "Targets", "check", "explain", "explained_scenarios", "prepare", "verify"]
