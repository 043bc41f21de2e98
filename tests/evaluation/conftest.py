"""Sessions whose answers are known, and a tokenizer that writes any text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.evaluation import Task, recall_task
from lucid_deploy.model.checkpoint import DEMO, resolve
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.runtimes.session import Array, Session

EOS = 2  # of the bundled tokenizer


class ScriptedSession(Session[Any]):
    """A session whose logits are a given function of the tokens a row has seen, padding left out.

    Its cache is the tokens themselves, so that padding, forks and batches that are mixed up show.

    Args:
        logits: From the tokens so far, the logits ``(vocab,)`` of the next.
        vocab: Size of the vocabulary.
        context: Most tokens.
        all_logits: Whether one run gives the logits of every token.
    """

    def __init__(
        self, logits: Callable[[list[int]], Array], vocab: int, context: int = 512, all_logits: bool = True
    ) -> None:
        raw = {
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": 2,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 2,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": context,
            "attention_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": EOS,
        }
        super().__init__(parse_config(raw, "test"), "float32", "scripted")
        self._logits, self._all, self.tokens_run = logits, all_logits, 0

    @property
    def gives_all_logits(self) -> bool:
        return self._all

    def empty_cache(self, batch: int = 1) -> Any:
        cache = super().empty_cache(batch)
        cache.layers = [(np.zeros((batch, 0), dtype=np.int64),)]
        return cache

    def layer_arrays(self, cache: Any) -> Any:
        raise NotImplementedError

    def _layers_from_arrays(self, layers: Any) -> Any:
        return layers

    def _run(self, stage: str, tokens: Any, layers: Any, keep: int) -> tuple[Array, Any]:
        history = np.concatenate([layers[0][0], tokens.input_ids], axis=1)
        self.tokens_run += tokens.input_ids.size
        rows = []
        for ids, seen in zip(history, tokens.mask, strict=True):  # what is run is padded on the left, if at all
            ends = range(history.shape[1] - keep + 1, history.shape[1] + 1)
            rows.append([self._logits(ids[:end][seen[:end]].tolist()) for end in ends])
        return np.array(rows), [(history,)]


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedSession]:
    """The class itself, since test folders are no packages."""
    return ScriptedSession


@pytest.fixture(scope="session")
def oracle() -> Callable[..., ScriptedSession]:
    """Return a function that makes a session answering prompts with given texts in the bundled tokenizer's words."""

    def make(answers: dict[str, str], tokenizer: TextTokenizer, vocab: int = 129) -> ScriptedSession:
        scripts = {
            tuple(tokenizer.encode(prompt)): [*tokenizer.encode(answer, add_special_tokens=False), EOS]
            for prompt, answer in answers.items()
        }

        longest = max((len(script) for script in scripts.values()), default=1)

        def logits(history: list[int]) -> Array:
            out = np.zeros(vocab, dtype=np.float32)
            for start in range(len(history), max(0, len(history) - longest), -1):
                script = scripts.get(tuple(history[:start]))
                if script is not None:
                    if script[: len(history) - start] == history[start:] and len(history) - start < len(script):
                        out[script[len(history) - start]] = 5
                    return out
            return out

        return ScriptedSession(logits, vocab)

    return make


@pytest.fixture(scope="session")
def words() -> TextTokenizer:
    """The bundled tokenizer."""
    return TextTokenizer(resolve(DEMO))


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of 256 bytes behind <pad>, <bos> and <eos>, which writes any text and adds nothing of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{sign: i + 3 for i, sign in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    return tokenizer


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("letters")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)


@pytest.fixture(scope="session")
def mixed(oracle: Callable[..., Any], words: TextTokenizer) -> tuple[Task, Any]:
    """The recall task, and a session that answers it all rightly but for three prompts."""
    task = recall_task(words, 60)
    answers = {q.prompt: q.answer for q in task.questions}
    answers[task.questions[3].prompt] = task.questions[3].answer + " lamp"  # a word too many
    answers[task.questions[30].prompt] = task.questions[30].answer.split()[0]  # a word too few
    answers[task.questions[31].prompt] = ""
    return task, oracle(answers, words)
