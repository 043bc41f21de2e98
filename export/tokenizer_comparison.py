"""Whether transformers' AutoTokenizer splits texts as the artifact does.

Classes of transformers 5 such as ``LlamaTokenizer`` build the normalizer and the pre-tokenizer themselves; transformers
4, the tokenizers library and an artifact take them from ``tokenizer.json``. The files do not say with which of both the
model was trained, so a difference becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_settings, read_tokenizer_file

# For these classes and these types of models transformers loads tokenizer.json as it is.
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend"), ("granite", "llama", "mistral", "phi3", "smollm3")
_PLAIN = ("", "Once upon a time", " two  blanks ", "a\n\nb\tc", "1234 and 5,678.90 % of x_1 == y[2];", "Straße 日本 é")
_SPECIAL = 6  # special tokens that texts are made with
_SHOWN = 12  # tokens that a note shows
_PANIC = "PanicException"  # of the tokenizers library: no Exception, and not importable
SAVE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').backend_tokenizer.save('tokenizer.json')"


def compare_with_transformers(checkpoint: Path, artifact: Path) -> tuple[str, ...]:
    """Return sentences about texts that AutoTokenizer splits otherwise than the artifact; none without transformers.

    transformers is imported (seconds) only if its class may not load ``tokenizer.json`` as it is. No code of the
    checkpoint is run, and no chat template, which may not end.

    Args:
        checkpoint: Its directory, which AutoTokenizer reads.
        artifact: The directory with the tokenizer that is run.
    """
    settings, config = read_tokenizer_file(checkpoint / CONFIG), read_tokenizer_file(checkpoint / "config.json")
    kind = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    if kind in AS_IT_IS[0] and config.get("model_type") in AS_IT_IS[1] and "auto_map" not in settings:
        return ()
    try:
        import transformers
    except ImportError:
        return ()
    label, level = f"transformers {transformers.__version__}", transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    cases = [(text, special) for text in _texts(artifact) for special in (False, True)]
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(
            str(checkpoint), local_files_only=True, trust_remote_code=False
        )
        wanted = [list(theirs(text, add_special_tokens=special)["input_ids"]) for text, special in cases]
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = " ".join(str(error).split())[:200]
        return (
            f"AutoTokenizer of {label} fails on the checkpoint's tokenizer, so that nothing was compared with it: "
            f"{type(error).__name__}: {reason}",
        )
    finally:
        transformers.logging.set_verbosity(level)
    ours = TextTokenizer(artifact)
    found = [ours.encode(text, add_special_tokens=special) for text, special in cases]
    differing = [item for item in zip(cases, found, wanted, strict=True) if item[1] != item[2]]
    if not differing:
        return ()
    (text, _), here, there = min(differing, key=lambda item: len(item[0][0]))
    followed = "tokenizer.json" if (checkpoint / "tokenizer.json").is_file() else "tokenizer.model"
    save = f' If it was transformers\', run this in the checkpoint, and export again: python -c "{SAVE}"'
    return (
        f"AutoTokenizer of {label} ({type(theirs).__name__}) splits {len(differing)} of {len(cases)} texts otherwise "
        f"than {followed}, which the artifact follows. {text!r} is {_spelled(ours, here)} here and "
        f"{_spelled(ours, there)} there. The files do not say which one the model was trained with."
        f"{save if hasattr(theirs, 'backend_tokenizer') else ''}",
    )


def _spelled(tokenizer: TextTokenizer, ids: list[int]) -> str:
    pieces = [tokenizer.piece(token) or str(token) for token in ids[:_SHOWN]]
    return f"[{' '.join(pieces)}{' …' if len(ids) > _SHOWN else ''}] ({len(ids)} tokens)"


def _texts(directory: Path) -> Iterator[str]:
    """Yield plain texts, and special tokens at the begin, in the middle and side by side, with and without blanks."""
    yield from _PLAIN
    ours, settings = TextTokenizer(directory), read_settings(directory)
    added = read_tokenizer_file(directory / "tokenizer.json").get("added_tokens") or []
    known = [*settings.texts().values(), *(token["content"] for token in added)]
    special = [text for text in dict.fromkeys(known) if ours.special_id(text) is not None]
    for token in special[:_SPECIAL]:
        yield from (token, f"{token}start", f"{token} start", f"a b{token}c d", f"a b {token} c d", f"end{token}")
        yield from (f"{token}{token}two", f"{token}\nline")
