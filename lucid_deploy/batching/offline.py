"""Answer a file of prompts with continuous batching, as many rows at once as the batcher has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lucid_deploy.batching.answers import AnswerFile
from lucid_deploy.batching.batcher import Batcher
from lucid_deploy.batching.prompts import Prompt
from lucid_deploy.batching.request import Finished, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import AnswerText
from lucid_deploy.shortages import TooLittleMemory

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer


@dataclass
class _RunningAnswer:
    """An answer that is being made; ``stream`` is None with token ids alone."""

    prompt: Prompt
    prompt_tokens: int
    stream: AnswerText | None
    ids: list[int] = field(default_factory=list)
    text: str = ""

    def push(self, token: int) -> bool:
        """Add a token; return whether a stop string ends the answer."""
        self.ids.append(token)
        if self.stream is None:
            return False
        self.text += self.stream.push(token)
        return self.stream.stopped

    def finish(self, reason: str, error: str | None = None) -> dict[str, Any]:
        """Return the line to write."""
        if self.stream is not None:
            self.text += self.stream.finish()
            reason = "stop" if self.stream.stopped and error is None else reason
        return {
            "line": self.prompt.line,
            "id": self.prompt.id,
            "text": self.text if self.stream is not None else None,
            "ids": self.ids,
            "finish_reason": reason,
            "prompt_tokens": self.prompt_tokens,
            "error": error,
        }


@dataclass
class AnswerTokens:
    """Tokens of the answers that were made.

    Attributes:
        generated: All of them, as answers list their ids.
        accepted: Those of them that were drafted.
    """

    generated: int = 0
    accepted: int = 0


def answer_prompts(
    batcher: Batcher,
    prompts: list[Prompt],
    answers: AnswerFile,
    tokenizer: TextTokenizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerTokens:
    """Answer the prompts that have no answer yet; write each answer when it is complete.

    Args:
        batcher: An idle batcher.
        prompts: All prompts, checked.
        answers: Where answers go, in the order in which they are completed; the field ``line`` says whose each is.
        tokenizer: For prompts and answers as text; None with token ids alone.
        progress: Called with (answers so far, those of earlier runs included, prompts in all).

    Returns:
        How many tokens the answers have; none behind a stop string.

    Raises:
        LucidError: The runtime fails as a whole, a limit on memory or threads is met, or the answers cannot be written.
            A prompt that fails alone gets an answer with ``error``.
    """
    todo = deque(prompt for prompt in prompts if prompt.line not in answers.answered)
    running: dict[int, _RunningAnswer] = {}
    tokens = AnswerTokens()
    while todo or running:
        while todo and batcher.waiting < batcher.rows:
            prompt = todo.popleft()
            request = prompt.request(tokenizer)
            stream = AnswerText(tokenizer, prompt.stop) if tokenizer is not None else None
            running[batcher.submit(request)] = _RunningAnswer(prompt, len(request.prompt_ids), stream)
        complete: list[dict[str, Any]] = []
        for event in batcher.step():
            answer = running.get(event.request)
            if answer is None:  # ended by a stop string before
                continue
            if isinstance(event, Token):
                tokens.generated += 1
                tokens.accepted += event.drafted
            if isinstance(event, Finished) and event.reason == "memory":  # not for good: the prompt may be run again
                raise TooLittleMemory
            if isinstance(event, Finished) and event.limit is not None:  # nor this
                raise LucidError(event.limit)
            if isinstance(event, Finished):
                complete.append(answer.finish(event.reason, event.error))
            elif isinstance(event, Token) and answer.push(event.token):
                batcher.cancel(event.request)
                complete.append(answer.finish("stop"))
            else:
                continue
            del running[event.request]
        if complete:
            answers.write(complete)
        if progress is not None:
            progress(len(answers.answered), len(prompts))
    return tokens
