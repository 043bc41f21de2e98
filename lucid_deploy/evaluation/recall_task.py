"""Recall as a task: the held-out prompts of the bundled model, for any model whose tokenizer can write their words."""

from __future__ import annotations

from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.task import Question, Task, TokenizerLike, can_write, check_seed_and_limit

SEED = 2026  # of the prompts that the bundled model is tested with everywhere


def recall_task(tokenizer: TokenizerLike, limit: int = 200, seed: int = SEED) -> Task:
    """Return held-out recall prompts, going through the list lengths in turn (see :mod:`lucid_deploy.demo.recall`).

    An answer is right if it is exactly the two words. It ends at an end-of-sequence token, a punctuation mark or the
    end of a line.

    Args:
        tokenizer: Of the model.
        limit: Number of prompts.
        seed: Equal seeds give equal prompts.

    Raises:
        LucidError: No prompts, a negative seed, or a tokenizer that lacks the task's words.
    """
    check_seed_and_limit(seed, limit)
    if not can_write(tokenizer, " ".join(recall.vocabulary())):
        raise LucidError(
            "This model's tokenizer cannot write the words of the recall task, which suits the bundled model's "
            "vocabulary. Use --task needles, or a task of lm-evaluation-harness, lm_eval:NAME."
        )
    questions = [
        Question(example.prompt, example.answer, {"pairs": example.pairs}, context)
        for context, example in enumerate(recall.held_out(limit, seed))
    ]
    return Task("recall", {"limit": limit, "seed": seed}, questions, ends=r"[.,;\n]", rows="pairs")
