"""Copy the files beside the weights into an artifact, and warn about what transformers would do differently.

Runtimes and the server read ``tokenizer.json`` and the files beside it that name further tokens. An old checkpoint may
have SentencePiece's ``tokenizer.model`` only; transformers converts it, and the result is compared with SentencePiece
itself, since a class of transformers may split texts in its own way.

transformers' AutoTokenizer may also split texts differently than ``tokenizer.json`` says: classes of transformers 5
such as ``LlamaTokenizer`` build the normalizer and the pre-tokenizer themselves, while transformers 4, the tokenizers
library and an artifact take them from the file. The files do not say which of them the model was trained with, so a
difference becomes a note. ``generate`` of transformers also takes defaults from ``generation_config.json`` that no
command here takes: these are a note too.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.chat import read_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_settings, read_tokenizer_file
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import read_object
from lucid_deploy.model.tokenizer_files import check_regular, tokenizer_files

# Repeated spaces, line breaks, digits, punctuation, several scripts, and what a vocabulary may lack.
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
    """Refuse to copy links that lead out of the checkpoint, which would put a private file into the artifact.

    What is no regular file is refused, too.

    The cache of the Hugging Face Hub is made of such links, from ``models--ORG--NAME/snapshots/REVISION/FILE`` to
    ``models--ORG--NAME/blobs/HASH``. Weights may be links to anywhere.
    """
    check_regular(checkpoint)
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
    """Refuse a tokenizer that cannot be read, rather than fail when the artifact first gets a text."""
    if (checkpoint / "tokenizer.json").is_file():
        TextTokenizer(checkpoint)
    elif not (checkpoint / "tokenizer.model").is_file():
        return
    read_settings(checkpoint)
    read_chat_templates(checkpoint)


def copy_companions(checkpoint: Path, building: Path) -> tuple[str, ...]:
    """Copy the files beside the weights; convert ``tokenizer.model`` if there is no ``tokenizer.json``.

    Returns notes for the user: about a conversion, about tokens that ``tokenizer.json`` lacks, and about texts that
    transformers' AutoTokenizer encodes or decodes differently.
    """
    for name in ("config.json", *tokenizer_files(checkpoint)):
        (building / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint / name, building / name)
    if (building / "tokenizer.json").is_file():
        notes = _note_added_tokens(building)
    else:
        notes = _convert(building) if (building / "tokenizer.model").is_file() else ()
    if not (building / "tokenizer.json").is_file():
        return notes
    return (*notes, *_note_cleaned_spaces(building), *compare_with_transformers(checkpoint, building))


def _note_added_tokens(directory: Path) -> tuple[str, ...]:
    """Name the tokens that files beside ``tokenizer.json`` change; ``TextTokenizer`` applies these changes."""
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


def _note_cleaned_spaces(directory: Path) -> tuple[str, ...]:
    """Note that transformers removes spaces from decoded texts which the artifact keeps."""
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
    """Convert ``tokenizer.model`` to ``tokenizer.json``; do nothing if the packages for it are not installed."""
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
    """Return a text that the converted tokenizer encodes or decodes differently than the original one."""
    pieces = [original.id_to_piece(token) for token in range(0, original.get_piece_size(), 97)]
    spelled = " ".join(piece.replace("\u2581", " ") for piece in pieces if not piece.startswith("<"))
    for text in (*_SAMPLES, spelled):
        ids = original.encode(text)
        if converted(text, add_special_tokens=False).input_ids != ids:
            return text[:40]
        if original.unk_id() not in ids and converted.backend_tokenizer.decode(ids) != original.decode(ids):
            return text[:40]
    return None


# For these classes and these types of models transformers loads tokenizer.json as it is.
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend"), ("granite", "llama", "mistral", "phi3", "smollm3")
_PLAIN = ("", "Once upon a time", " two  blanks ", "a\n\nb\tc", "1234 and 5,678.90 % of x_1 == y[2];", "Straße 日本 é")
_SPECIAL = 6  # special tokens that texts are made with
_SHOWN_TOKENS = 12  # of a text, in a note
_PANIC = "PanicException"  # of the tokenizers library: no Exception, and not importable
SAVE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').backend_tokenizer.save('tokenizer.json')"


def compare_with_transformers(checkpoint: Path, artifact: Path) -> tuple[str, ...]:
    """Note texts that AutoTokenizer splits differently than the artifact; nothing if transformers is not installed.

    transformers is imported (seconds) only if its class may not load ``tokenizer.json`` as it is. No code of the
    checkpoint is run, and no chat template, which may not end.
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
    pieces = [tokenizer.piece(token) or str(token) for token in ids[:_SHOWN_TOKENS]]
    return f"[{' '.join(pieces)}{' …' if len(ids) > _SHOWN_TOKENS else ''}] ({len(ids)} tokens)"


def _texts(directory: Path) -> Iterator[str]:
    """Yield plain texts, and texts with special tokens at the beginning, in the middle and next to each other."""
    yield from _PLAIN
    ours, settings = TextTokenizer(directory), read_settings(directory)
    added = read_tokenizer_file(directory / "tokenizer.json").get("added_tokens") or []
    known = [*settings.texts().values(), *(token["content"] for token in added)]
    special = [text for text in dict.fromkeys(known) if ours.special_id(text) is not None]
    for token in special[:_SPECIAL]:
        yield from (token, f"{token}start", f"{token} start", f"a b{token}c d", f"a b {token} c d", f"end{token}")
        yield from (f"{token}{token}two", f"{token}\nline")


# Settings that change which tokens transformers chooses, with the values that change nothing; null never does.
CHANGES: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
}
# Settings that do so only if do_sample is true.
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_k": (0,),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
_TOP_K = "top_k 50 (transformers' default)"  # its only default that changes what is sampled


def settings_note(directory: Path) -> tuple[str, ...]:
    """Note the settings of ``generation_config.json`` that transformers takes as defaults and we do not."""
    path = directory / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    known = {**CHANGES, **(SAMPLING if settings.get("do_sample") else {})}
    found = [name for name, neutral in known.items() if settings.get(name) not in (None, *neutral)]
    if not found:
        return ()
    asked = [f"{name} {_shown(settings[name])}".rstrip() for name in found]
    if settings.get("do_sample") and settings.get("top_k") is None:
        asked.append(_TOP_K)
    return (
        f"generation_config.json asks for {', '.join(asked)}: transformers takes that as defaults, and no command does "
        "here. Give run and chat options, and requests fields.",
    )


def _shown(value: Any) -> str:
    """Return a value if it is short."""
    return str(value).lower() if isinstance(value, bool | int | float) else ""
