"""Write the files beside the weights into an artifact, and warn about what transformers would do differently.

A checkpoint's ``tokenizer.json`` is completed with the tokens that files beside it define, as transformers reads them.
transformers' AutoTokenizer may split texts differently than ``tokenizer.json`` says: classes of transformers 5 such as
``LlamaTokenizer`` build the normalizer and the pre-tokenizer themselves, while transformers 4, the tokenizers library
and an artifact take them from the file. The files do not say which was used in training, so a difference becomes a
note. ``generate`` of transformers also reads defaults from ``generation_config.json`` that no command here
reads: these become a note too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from lucid_deploy.artifact.chat import read_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import (
    CONFIG,
    DECODER,
    EXTRA,
    OTHER_FILES,
    read_tokenizer_file,
    token_names,
)
from lucid_deploy.errors import LucidError, in_one_line, missing_extra
from lucid_deploy.model.config_file import read_object
from lucid_deploy.model.tokenizer_files import check_regular, tokenizer_files

_CLEANS = "clean_up_tokenization_spaces"
_LISTS = (EXTRA, DECODER, "additional_special_tokens", "model_specific_special_tokens")  # settings with lists of tokens
# Tokenizer classes and model types: with one of each, transformers loads tokenizer.json as it is.
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend"), ("granite", "llama", "mistral", "phi3", "smollm3")
_SAMPLES = (
    *("Once upon a time, it isn 't so .", " two  blanks ", "a\n\nb\tc", "1234 and 5,678.90 % of x_1 == y[2];"),
    "Straße 日本 é",
)
SAVE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').backend_tokenizer.save('tokenizer.json')"
# Settings of generation_config.json that change no generated token, or that our commands read too.
_TAKEN = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "_from_model_config", "max_length"),
    *("max_new_tokens", "transformers_version", "use_cache", "cache_implementation", "return_dict_in_generate"),
}


def check_links(checkpoint: Path) -> None:
    """Refuse to copy links that lead out of the checkpoint, which would put a private file into the artifact.

    Files that are not regular ones, such as devices and pipes, are refused too.

    Links within a model's cache of the Hugging Face Hub are allowed: from ``models--ORG--NAME/snapshots/REVISION/FILE``
    to ``models--ORG--NAME/blobs/HASH``. Weights may be links to anywhere.
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
    """Refuse a tokenizer or chat template that cannot be read, and a tokenizer without ``tokenizer.json``."""
    if (checkpoint / "tokenizer.json").is_file():
        read_tokenizer(checkpoint)
        read_chat_templates(checkpoint)
    elif slow := [name for name in ("tokenizer.model", "vocab.json") if (checkpoint / name).is_file()]:
        raise LucidError(
            f"{checkpoint} has {slow[0]} and no tokenizer.json. To make it, run in that folder: "
            "python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('.').save_pretrained('.')\""
        )


def copy_companions(checkpoint: Path, building: Path) -> tuple[str, ...]:
    """Copy the files beside the weights, but write ``tokenizer.json`` and ``tokenizer_config.json`` anew.

    Returns notes for the user: about texts that transformers' AutoTokenizer encodes or decodes differently, and about
    settings of generation.
    """
    shutil.copyfile(checkpoint / "config.json", building / "config.json")
    copy_tokenizer(checkpoint, building)
    if not (building / "tokenizer.json").is_file():
        return _note_settings(building)
    return (*compare_with_transformers(building), *_note_settings(building))


def copy_tokenizer(checkpoint: Path, target: Path) -> None:
    """Copy a checkpoint's tokenizer files, and then do what :func:`write_tokenizer` does."""
    for name in tokenizer_files(checkpoint):
        if name not in OTHER_FILES:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint / name, target / name)
    write_tokenizer(checkpoint, target)


def read_tokenizer(checkpoint: Path) -> TextTokenizer:
    """Return a checkpoint's tokenizer as its artifact will hold it, with all tokens in ``tokenizer.json``."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint, Path(folder))
        return TextTokenizer(folder)


def write_tokenizer(checkpoint: Path, target: Path) -> None:
    """Write ``tokenizer.json`` with all tokens, and ``tokenizer_config.json``; nothing without a ``tokenizer.json``."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        return
    try:
        from transformers import TokenizersBackend
    except ImportError as error:
        raise missing_extra("transformers", "export", "export a tokenizer") from error
    settings = read_tokenizer_file(checkpoint / CONFIG)
    try:
        loaded = TokenizersBackend.from_pretrained(str(checkpoint), local_files_only=True)
        named = {name: str(text) for name, text in loaded.special_tokens_map.items()}
        (target / path.name).write_text(loaded.backend_tokenizer.to_str(), encoding="utf-8")
    except Exception as error:
        raise LucidError(f"{path}, or a file beside it, is not a readable tokenizer: {in_one_line(error)}") from error
    kept = {
        name: value
        for name, value in settings.items()
        if name not in _LISTS and (isinstance(value, bool) or not name.endswith("_token"))
    }
    extra = {name: named.pop(name) for name in [*named] if not name.endswith("_token")}
    text = json.dumps({**kept, **named, **({EXTRA: extra} if extra else {})}, indent=2)
    (target / CONFIG).write_text(text, encoding="utf-8")


def compare_with_transformers(directory: Path) -> tuple[str, ...]:
    """Return a note if AutoTokenizer encodes or decodes texts differently, or fails.

    AutoTokenizer is imported (seconds) only if texts may differ. No code of the checkpoint is run, no chat template.
    """
    settings, config = read_tokenizer_file(directory / CONFIG), read_tokenizer_file(directory / "config.json")
    kind = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    as_it_is = kind in AS_IT_IS[0] and config.get("model_type") in AS_IT_IS[1] and "auto_map" not in settings
    if as_it_is and not settings.get(_CLEANS):
        return ()
    from transformers import AutoTokenizer

    ours = TextTokenizer(directory)
    added = read_tokenizer_file(directory / "tokenizer.json").get("added_tokens") or []
    special = [*token_names(directory).values(), *(token["content"] for token in added)]
    texts = (*_SAMPLES, *(form.format(token) for token in special[:6] for form in ("{0}start", "a {0} b{0}{0}c")))
    try:
        theirs = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        wanted = [list(theirs(text)["input_ids"]) for text in texts]
        joined = [theirs.decode(ids, skip_special_tokens=True) for ids in wanted]
    except Exception as error:  # noqa: BLE001 (transformers raises what it likes; the reason is passed on)
        return (f"transformers' AutoTokenizer fails on the tokenizer: {in_one_line(error)[:200]}",)
    notes = []
    found = [ours.encode(text) for text in texts]
    if differing := [text for text, here, there in zip(texts, found, wanted, strict=True) if here != there]:
        notes.append(
            f"transformers' AutoTokenizer ({type(theirs).__name__}) splits {differing[0]!r} otherwise than "
            "tokenizer.json, which the artifact follows. The files do not say which one the model was trained with. If "
            f'it was transformers\', run this in the checkpoint, and export again: python -c "{SAVE}"'
        )
    elif joined != [ours.decode(ids) for ids in wanted]:
        notes.append(
            f"transformers' AutoTokenizer decodes some texts otherwise than tokenizer.json, such as by removing blanks "
            f"({_CLEANS} in {CONFIG}). The artifact follows tokenizer.json."
        )
    return tuple(notes)


def _note_settings(directory: Path) -> tuple[str, ...]:
    """Return a note of the settings in ``generation_config.json`` that transformers uses as defaults and we do not."""
    path = directory / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    found = [
        f"{name} {json.dumps(value)}" if isinstance(value, bool | int | float) else name
        for name, value in settings.items()
        if name not in _TAKEN and (value is True or value not in (None, 0, 1, [], {}))
    ]
    if not found:
        return ()
    return (
        f"generation_config.json sets {', '.join(found)}: transformers uses these settings as defaults, and no command "
        "does here. Set them by options of run and chat, or by fields of requests.",
    )
