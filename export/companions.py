"""Copy the files beside the weights into an artifact, and warn about what transformers would do differently.

transformers' AutoTokenizer may split texts differently than ``tokenizer.json`` says: classes of transformers 5 such as
``LlamaTokenizer`` build the normalizer and the pre-tokenizer themselves, while transformers 4, the tokenizers library
and an artifact take them from the file. The files do not say which of them the model was trained with, so a difference
becomes a note. ``generate`` of transformers also takes defaults from ``generation_config.json`` that no command here
takes: these are a note too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lucid_deploy.artifact.chat import read_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_settings, read_tokenizer_file
from lucid_deploy.errors import LucidError, in_one_line
from lucid_deploy.model.config_file import read_object
from lucid_deploy.model.tokenizer_files import check_regular, tokenizer_files

_CLEANS = "clean_up_tokenization_spaces"
_SHOWN = 8  # tokens that a note names
# For these classes and these types of models transformers loads tokenizer.json as it is.
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend"), ("granite", "llama", "mistral", "phi3", "smollm3")
_SAMPLES = (
    *("Once upon a time, it isn 't so .", " two  blanks ", "a\n\nb\tc", "1234 and 5,678.90 % of x_1 == y[2];"),
    "Straße 日本 é",
)
SAVE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').backend_tokenizer.save('tokenizer.json')"
# Settings of generation_config.json that change no token, or that we take too.
_TAKEN = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "_from_model_config", "max_length"),
    *("max_new_tokens", "transformers_version", "use_cache", "cache_implementation", "return_dict_in_generate"),
}


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
        read_settings(checkpoint)
        read_chat_templates(checkpoint)
    elif slow := [name for name in ("tokenizer.model", "vocab.json") if (checkpoint / name).is_file()]:
        raise LucidError(
            f"{checkpoint} has {slow[0]} and no tokenizer.json. Make that from it, in the checkpoint, with: "
            "python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('.').save_pretrained('.')\""
        )


def copy_companions(checkpoint: Path, building: Path) -> tuple[str, ...]:
    """Copy the files beside the weights.

    Returns notes for the user: about tokens that ``tokenizer.json`` lacks, about texts that transformers' AutoTokenizer
    encodes or decodes differently, and about settings of generation.
    """
    for name in ("config.json", *tokenizer_files(checkpoint)):
        (building / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint / name, building / name)
    if not (building / "tokenizer.json").is_file():
        return _note_settings(building)
    return (*_note_added_tokens(building), *compare_with_transformers(building), *_note_settings(building))


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


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def compare_with_transformers(directory: Path) -> tuple[str, ...]:
    """Note that AutoTokenizer encodes or decodes texts differently; nothing if transformers is not installed.

    transformers is imported (seconds) only if it may do so. No code of the checkpoint is run, and no chat template.
    """
    settings, config = read_tokenizer_file(directory / CONFIG), read_tokenizer_file(directory / "config.json")
    kind = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    as_it_is = kind in AS_IT_IS[0] and config.get("model_type") in AS_IT_IS[1] and "auto_map" not in settings
    if as_it_is and not settings.get(_CLEANS):
        return ()
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return ()
    ours = TextTokenizer(directory)
    added = read_tokenizer_file(directory / "tokenizer.json").get("added_tokens") or []
    special = [*read_settings(directory).texts().values(), *(token["content"] for token in added)]
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
    """Note the settings of ``generation_config.json`` that transformers takes as defaults and we do not."""
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
        f"generation_config.json sets {', '.join(found)}: transformers takes that as defaults, and no command does "
        "here. Give run and chat options, and requests fields.",
    )
