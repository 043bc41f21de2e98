"""Prove that a session computes what PyTorch computes. Knows no runtime: sessions in, numbers out."""

from lucid_deploy.parity.report import Report
from lucid_deploy.parity.runner import Targets, check, prepare, verify

__all__ = ["Report", "Targets", "check", "prepare", "verify"]
