"""The evaluations that LUCID's authors report, as named suites over lm_eval's own task definitions.

``settings`` says what a suite runs; ``ruler`` and ``recorded`` bring the documents, ``tasks`` makes lm_eval's tasks of
them, ``run`` runs them on a session, ``paired`` compares two models. Settings and comparisons need no lm_eval.
"""

from lucid_deploy.evaluation.suites.settings import SUITES, SuiteTask, plan

__all__ = ["SUITES", "SuiteTask", "plan"]
