"""A checkpoint with the kind of tokenizer that real Llama checkpoints have: byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export import ExportOptions, export
from tests.conftest import write_checkpoint

TEXT = (
    "Long documents hold the same words again and again, and attention that forgets which was which is wrong.",
    "Die Schlüssel ähneln sich; the keys are correlated, naïve sums blur them. 数字も文字も。",
    "fox has red lamp, owl has blue cup, bear has green key. owl has blue cup",
)


def write_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write a byte-level BPE tokenizer that puts ``<s>`` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))


def _never_end(checkpoint: Path) -> None:
    """Keep a random model from choosing ``</s>``: its logit becomes 0, and the largest is always above that."""
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][1] = 0
    save_file(weights, checkpoint / "model.safetensors")


@pytest.fixture(scope="session")
def with_byte_level_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Artifact]]:
    """Return a function giving (checkpoint, artifact), exported once for each set of options."""
    root = tmp_path_factory.mktemp("clients")
    done: dict[str, tuple[Path, Path]] = {}

    def get(dtype: str = "float32", cache: str = "growing", logits: str = "last") -> tuple[Path, Artifact]:
        key = f"{dtype}-{cache}-{logits}"
        if key not in done:
            checkpoint = root / f"checkpoint-{key}"
            write_checkpoint(checkpoint, vocab_size=320, bos_token_id=0, eos_token_id=1)
            _never_end(checkpoint)
            write_tokenizer(checkpoint, 320)
            export(checkpoint, root / key, ExportOptions(dtype, logits, cache=cache))
            done[key] = (checkpoint, root / key)
        checkpoint, target = done[key]
        return checkpoint, open_artifact(target)

    return get
