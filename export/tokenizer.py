"""The tokenizer of an artifact: copied from the checkpoint, or made from its ``tokenizer.model``.

Runtimes and the server read ``tokenizer.json`` and the files beside it that name further tokens. An old checkpoint may
have SentencePiece's file only; transformers converts it, and the result is held against SentencePiece itself, since a
class of transformers may split texts in its own way.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.chat_templates import read_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_settings, read_tokenizer_file
from lucid_deploy.errors import LucidError
from lucid_deploy.export.tokenizer_comparison import compare_with_transformers
from lucid_deploy.model.tokenizer_files import tokenizer_files

# Blanks in a row, line breaks, digits, marks, letters of several scripts, and what a vocabulary may lack.
_SAMPLES = (
    "Once upon a time, there was a fox.",
    "  two  blanks and a third ",
    "first\nsecond\n\n\tthird\r\nfourth",
    "1234 and 5,678.90 % of x_1 == y[2];",
    "Straße, naïve, Žluťoučký; e\u0301 beside é",
    "日本語のテキスト, русский текст, نص",
    "\N{FOX FACE} and \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
    "x" * 70,
)
_CLEANS = "clean_up_tokenization_spaces"
_CLEANS_BPE = f"{_CLEANS}_for_bpe_even_though_it_will_corrupt_output"
_SHOWN = 8  # tokens that a note names


def check_links(checkpoint: Path) -> None:
    """Refuse files to be copied whose links lead out of the checkpoint: the artifact would hold a file of the user.

    The cache of the Hugging Face Hub is made of such links, from ``models--ORG--NAME/snapshots/REVISION/FILE`` to
    ``models--ORG--NAME/blobs/HASH``. Weights may be links to anywhere.
    """
    folder = checkpoint.resolve()
    allowed = [folder]
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            allowed.append(parent.parent / "blobs")
    for name in ("config.json", *tokenizer_files(checkpoint)):
        target = (checkpoint / name).resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise LucidError(
                f"{checkpoint / name} is a link to {target}, outside the checkpoint, so it is not copied into an "
                "artifact. If you trust the checkpoint, replace the link by the file."
            )


def check_tokenizer(checkpoint: Path) -> None:
    """Refuse a tokenizer that cannot be read now, not when the artifact is first given a text."""
    if (checkpoint / "tokenizer.json").is_file():
        TextTokenizer(checkpoint)
    elif not (checkpoint / "tokenizer.model").is_file():
        return
    read_settings(checkpoint)
    read_chat_templates(checkpoint)


def copy_companions(checkpoint: Path, building: Path) -> tuple[str, ...]:
    """Copy what lies beside the weights into an artifact, and make ``tokenizer.json`` if it is missing and can be made.

    Returns:
        Sentences for the user about a conversion, done or failed, about tokens that ``tokenizer.json`` lacks, and about
        texts that transformers' AutoTokenizer splits or puts together otherwise.
    """
    for name in ("config.json", *tokenizer_files(checkpoint)):
        (building / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint / name, building / name)
    if (building / "tokenizer.json").is_file():
        notes = _named_beside(building)
    else:
        notes = _convert(building) if (building / "tokenizer.model").is_file() else ()
    if not (building / "tokenizer.json").is_file():
        return notes
    return (*notes, *_cleaned(building), *compare_with_transformers(checkpoint, building))


def _named_beside(directory: Path) -> tuple[str, ...]:
    """Say what the files beside ``tokenizer.json`` change; :class:`TextTokenizer` applies it."""
    from tokenizers import Tokenizer

    tokenizer, settings, notes = Tokenizer.from_file(str(directory / "tokenizer.json")), read_settings(directory), []
    if changed := settings.complete(tokenizer):
        notes.append(
            f"Files beside tokenizer.json add or change tokens, as in transformers: {_listed(changed)}. Programs that "
            "read tokenizer.json alone do not know them."
        )
    if wrong := settings.misnumbered(tokenizer):
        ids = [f"{text} {said}, not {'none' if found is None else found}" for text, (said, found) in wrong.items()]
        notes.append(f"Files beside tokenizer.json give tokens other ids than transformers: {_listed(ids)}.")
    return tuple(notes)


def _cleaned(directory: Path) -> tuple[str, ...]:
    """Say if transformers takes blanks out of what it decodes, and answers of an artifact keep."""
    from tokenizers import Tokenizer

    settings = read_tokenizer_file(directory / CONFIG)
    kind = type(Tokenizer.from_file(str(directory / "tokenizer.json")).model).__name__
    if not settings.get(_CLEANS) or (kind == "BPE" and not settings.get(_CLEANS_BPE)):  # as transformers 5 decides
        return ()
    return (
        f"{_CLEANS} in {CONFIG} has transformers take blanks out of decoded texts, such as the one before a full stop. "
        "Answers of the artifact keep them.",
    )


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _convert(directory: Path) -> tuple[str, ...]:
    """Write ``tokenizer.json`` beside ``tokenizer.model``; nothing without the packages, which the advice names."""
    try:
        import sentencepiece
        from transformers.tokenization_utils_tokenizers import TokenizersBackend
    except ImportError:
        return ()
    path = directory / "tokenizer.model"
    for name in ("add_bos_token", "add_eos_token"):
        if (given := read_tokenizer_file(directory / CONFIG).get(name, False)) not in (True, False, None):
            return (
                f"tokenizer.model was not converted to tokenizer.json: {name} in {CONFIG} is {given!r}, which "
                "transformers takes for the text of a token. Write true or false.",
            )
    try:
        original = sentencepiece.SentencePieceProcessor(model_file=str(path))
        # Not AutoTokenizer: it may choose a class that replaces the file's own rules, and it may run code.
        converted = TokenizersBackend.from_pretrained(str(directory), local_files_only=True)
        differing = _differing(original, converted)
    except Exception as error:  # noqa: BLE001 (two libraries that raise what they like; the reason is passed on)
        reason = " ".join(str(error).split())
        return (f"tokenizer.model could not be converted to tokenizer.json: {reason[:200]}",)
    if differing is not None:
        return (
            f"tokenizer.model was not converted to tokenizer.json: the result would split {differing!r} differently.",
        )
    converted.backend_tokenizer.save(str(directory / "tokenizer.json"))
    first = [str(converted.convert_ids_to_tokens(token)) for token in converted("").input_ids]
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "sentencepiece"))
    return (
        f"tokenizer.json was made from tokenizer.model with {versions}. "
        + (f"It puts {' '.join(first)} before a text." if first else "It puts no token before a text.")
        + ("" if first else " If the model was trained with one, set add_bos_token in tokenizer_config.json."),
    )


def _differing(original: Any, converted: Any) -> str | None:
    """Return a text that the converted tokenizer splits or puts together otherwise than the original one."""
    pieces = [original.id_to_piece(token) for token in range(0, original.get_piece_size(), 97)]
    spelled = " ".join(piece.replace("\u2581", " ") for piece in pieces if not piece.startswith("<"))
    for text in (*_SAMPLES, spelled):
        ids = original.encode(text)
        if converted(text, add_special_tokens=False).input_ids != ids:
            return text[:40]
        if original.unk_id() not in ids and converted.backend_tokenizer.decode(ids) != original.decode(ids):
            return text[:40]
    return None
