"""How many drafts of ``--speculate lookup`` a real model accepts on real text, and what that gains.

    python examples/smollm2.py ./smollm2
    lucid-deploy export ./smollm2 --output ./artifact
    python benchmarks/speculation_text.py ./artifact

Every prompt is answered with drafts and without, one after the other. The text is that of this repository's licence.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from pathlib import Path

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.drafting import open_drafters
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.options import RuntimeOptions

TOKENS, PROMPTS, PASSAGE = 64, 8, 900  # tokens of an answer; prompts of a kind; characters of a text to continue
QUESTIONS = (
    "What is the capital of France?",
    "Explain what a compiler does.",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
    "What is photosynthesis?",
    "Name three uses of a hammer.",
    "Why is the sky blue?",
    "Give advice for a job interview.",
)


def main() -> None:
    """Answer every prompt with and without drafts; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    artifact = open_artifact(parser.parse_args().artifact)
    tokenizer, runtime = TextTokenizer(artifact.directory), RuntimeOptions()
    session = open_session(artifact, runtime)
    drafters = open_drafters("lookup", artifact, None, runtime)
    assert drafters is not None
    print("| prompts | tokens | proposed | accepted | faster | other answers |\n|---|---|---|---|---|---|")
    for kind, prompts in prompts_by_kind().items():
        seconds, tokens, proposed, accepted, different = [0.0, 0.0], 0, 0, 0, 0
        for prompt in prompts:
            answers = []
            for drafting in (False, True):
                run = Generation(session, tokenizer.encode(prompt), TOKENS, Sampling())
                run.drafter = drafters() if drafting else None
                start = time.perf_counter()
                answers.append(list(run))
                seconds[drafting] += time.perf_counter() - start
            tokens, different = tokens + len(answers[0]), different + (answers[0] != answers[1])
            proposed, accepted = proposed + run.drafts.proposed, accepted + run.drafts.accepted
        share = accepted / max(proposed, 1)
        print(f"| {kind} | {tokens} | {proposed} | {share:.0%} | {seconds[0] / seconds[1]:.2f} | {different} |")


def prompts_by_kind() -> dict[str, list[str]]:
    """Return prompts by kind: instructions in ChatML, and beginnings of a text to continue."""
    text = re.sub(r"\s+", " ", (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8"))
    sentences = [part for part in re.split(r"(?<=[.;]) ", text) if 60 < len(part) < 300]
    draw = random.Random(0)
    passages = [" ".join(draw.sample(sentences, 3)) for _ in range(PROMPTS)]
    task = "Correct the spelling in this text and write it again:"
    return {
        "a licence to continue": [text[at : at + PASSAGE] for at in draw.sample(range(len(text) - PASSAGE), PROMPTS)],
        "a passage to correct": [chat(f"{task}\n{each}") for each in passages],
        "questions": [chat(each) for each in QUESTIONS],
    }


def chat(message: str) -> str:
    """Return a user's message as a prompt in ChatML."""
    return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"


if __name__ == "__main__":
    main()
