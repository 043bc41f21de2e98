"""How good a model's answers are, in any runtime: tasks, scores, and an adapter for lm_eval.

Tasks are texts with one right answer each; what runs them is a session and a tokenizer, and no runtime is known here.
"""

from lucid_deploy.evaluation.needles import needles_task
from lucid_deploy.evaluation.recall_task import recall_task
from lucid_deploy.evaluation.report import Comparison, Report, compare
from lucid_deploy.evaluation.run import evaluate
from lucid_deploy.evaluation.task import Question, Task

__all__ = ["Comparison", "Question", "Report", "Task", "compare", "evaluate", "needles_task", "recall_task"]
