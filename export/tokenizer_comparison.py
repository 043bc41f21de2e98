"""Whether transformers' AutoTokenizer splits texts as the artifact does.

Classes of transformers 5 such as ``LlamaTokenizer`` take vocabulary and merges from ``tokenizer.json`` and build the
normalizer and the pre-tokenizer by themselves. transformers 4 and the tokenizers library take them from the file, and
so does an artifact. The files do not say which of both the model was trained with, so a difference is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_settings, read_tokenizer_file

# For these classes and these types of models transformers loads tokenizer.json as it is.
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend"), ("granite", "llama", "mistral", "phi3", "smollm3")
# Types of the normalizers and pre-tokenizers that transformers 5 builds, by class.
_BUILT = {
    "LlamaTokenizer": ((), ("Metaspace",)),
    "GemmaTokenizer": (("Replace",), ("Split",)),
    "Qwen2Tokenizer": (("NFC",), ("Split", "ByteLevel")),
    "GPT2Tokenizer": ((), ("ByteLevel",)),
}
# The class that transformers gives a type of model, named or not.
_CLASSES = {"qwen2": "Qwen2Tokenizer"}
_PLAIN = ("", "Once upon a time", " two  blanks ", "a\n\nb\tc", "1234 and 5,678.90 % of x_1 == y[2];", "Straße 日本 é")
# What the artifact follows, and who else does.
_GIVEN = "tokenizer.json, which the artifact follows, as transformers 4 and the tokenizers library do"
_MADE = "tokenizer.model, which the artifact follows, as SentencePiece does"
_SPECIAL = 6  # special tokens that texts are made with
_SHOWN = 12  # tokens that a note shows
_PANIC = "PanicException"  # of the tokenizers library: no Exception, and not importable
SAVE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').backend_tokenizer.save('tokenizer.json')"


def compare_with_transformers(checkpoint: Path, artifact: Path) -> tuple[str, ...]:
    """Return sentences about texts that AutoTokenizer of a checkpoint splits otherwise than the artifact.

    transformers is imported (seconds) only if its class may not load ``tokenizer.json`` as it is. Where it is not
    installed, what the files say about that is compared with what its classes are known to build.

    Args:
        checkpoint: Its directory, which AutoTokenizer reads. Its code is not run.
        artifact: The directory with the tokenizer that is run.
    """
    name = _class_name(checkpoint)
    runs_code = "auto_map" in read_tokenizer_file(checkpoint / CONFIG)
    if name in AS_IT_IS[0] and _model_type(checkpoint) in AS_IT_IS[1] and not runs_code:
        return ()
    try:
        import transformers
    except ImportError:
        return _known_to_differ(name, artifact)
    label = f"transformers {transformers.__version__}"
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        theirs = _Theirs(checkpoint, list(_texts(artifact)))
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        return (
            f"AutoTokenizer of {label} fails on the checkpoint's tokenizer, so that nothing was compared with it: "
            f"{type(error).__name__}: {_short(error)}",
        )
    finally:
        transformers.logging.set_verbosity(level)
    is_made = not (checkpoint / "tokenizer.json").is_file()
    return _differences(theirs, TextTokenizer(artifact), label, _MADE if is_made else _GIVEN)


class _Theirs:
    """What AutoTokenizer of a checkpoint makes of texts.

    No chat is among them: a template may run without an end and take all memory, and what it writes are
    special tokens between words, as in the other texts.

    Attributes:
        kind: Its class.
        can_save: Whether it has a tokenizer of the library, which can be saved.
        encoded: Texts, whether tokens of the template were asked for, and token ids.
    """

    def __init__(self, checkpoint: Path, texts: list[str]) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
        self.kind, self.can_save = type(tokenizer).__name__, hasattr(tokenizer, "backend_tokenizer")
        self.encoded = [
            (text, whole, list(tokenizer(text, add_special_tokens=whole)["input_ids"]))
            for text in texts
            for whole in (False, True)
        ]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _class_name(directory: Path) -> str:
    """Return the class of the tokenizer, without the ending of the fast ones; empty if no file names one."""
    kind = _CLASSES.get(_model_type(directory))
    named = read_tokenizer_file(directory / CONFIG).get("tokenizer_class")
    named = named or read_tokenizer_file(directory / "config.json").get("tokenizer_class")
    return kind or str(named or "").removesuffix("Fast")


def _model_type(directory: Path) -> str:
    return str(read_tokenizer_file(directory / "config.json").get("model_type", ""))


def _differences(theirs: _Theirs, ours: TextTokenizer, label: str, followed: str) -> tuple[str, ...]:
    both = [(text, ours.encode(text, add_special_tokens=whole), ids) for text, whole, ids in theirs.encoded]
    differing = [found for found in both if found[1] != found[2]]
    if not differing:
        return ()
    text, here, there = min(differing, key=lambda found: len(found[0]))
    save = f' If it was transformers\', run this in the checkpoint, and export again: python -c "{SAVE}"'
    return (
        f"AutoTokenizer of {label} ({theirs.kind}) splits {len(differing)} of {len(both)} texts otherwise than "
        f"{followed}. "
        f"{text!r} is {_spelled(ours, here)} here and {_spelled(ours, there)} there. The files do not say which "
        f"one the model was trained with.{save if theirs.can_save else ''}",
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


def _known_to_differ(name: str, directory: Path) -> tuple[str, ...]:
    """Compare the file's rules with those that transformers 5 builds, by their types."""
    rules = read_tokenizer_file(directory / "tokenizer.json")
    given = tuple(_types(rules.get(part), part) for part in ("normalizer", "pre_tokenizer"))
    # transformers takes a file with ByteLevel as it is where the class is Llama's.
    if name not in _BUILT or given == _BUILT[name] or (name == "LlamaTokenizer" and "ByteLevel" in given[1]):
        return ()
    shown = " and ".join(
        f"{' + '.join(kinds) or 'none'} as {part}"
        for part, kinds in zip(("normalizer", "pre-tokenizer"), given, strict=True)
    )
    return (
        f"tokenizer.json has {shown}, which the artifact follows. transformers 5 builds others for {name}, so that its "
        "AutoTokenizer may give texts other ids, most of all beside special tokens. To have both compared, install the "
        "extra transformers and export again.",
    )


def _types(rule: Any, part: str) -> tuple[str, ...]:
    if not isinstance(rule, dict):
        return ()
    parts = rule.get("normalizers" if part == "normalizer" else "pretokenizers")
    return tuple(str(item.get("type")) for item in parts) if isinstance(parts, list) else (str(rule.get("type")),)
