"""Measure how good a model's answers are, in any runtime: tasks, scores, comparisons, lm-evaluation-harness."""

from lucid_deploy.evaluation.needles import needles_task
from lucid_deploy.evaluation.report import Comparison, Report, compare, evaluate
from lucid_deploy.evaluation.task import Question, Task, recall_task

__all__ = ["Comparison", "Question", "Report", "Task", "compare", "evaluate", "needles_task", "recall_task"]
