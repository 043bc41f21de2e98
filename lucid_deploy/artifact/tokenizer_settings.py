"""Read the settings of tokens in the files beside ``tokenizer.json``, as transformers 5 reads them.

``special_tokens_map.json`` and ``added_tokens.json`` count only if ``tokenizer_config.json`` has no
``added_tokens_decoder``; then the former overrides ``tokenizer_config.json``, and ``tokenizer.json`` overrides the
latter. With ``added_tokens_decoder``, that overrides what ``tokenizer.json`` says about a token, apart from its id.
Beside ``tokenizer.json`` transformers ignores ``add_bos_token`` and ``add_eos_token`` of ``tokenizer_config.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lucid_deploy.errors import LucidError, reading

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

    Token: TypeAlias = str | AddedToken

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_ADDITIONAL, _EXTRA = "additional_special_tokens", "extra_special_tokens"
_SPECIFIC, _DECODER = "model_specific_special_tokens", "added_tokens_decoder"
_ADDING = ("add_bos_token", "add_eos_token")
# These do not belong into the map, but transformers reads them there too, and prefers them to other files.
_NOT_IN_MAP = (
    *_ADDING,
    _SPECIFIC,
    "chat_template",
    "tokenizer_file",
    "tokenizer_object",
    "gguf_file",
    "post_processor",
)


@dataclass(frozen=True)
class TokenizerSettings:
    """Tokens that files beside ``tokenizer.json`` name."""

    standard: dict[str, Token | None]  # such as bos_token, by name; None where a file says there is none
    specific: dict[str, Token]  # named tokens of this model alone, such as image_token
    extra: tuple[Token, ...]  # special tokens without a name
    numbered: dict[int, AddedToken]  # tokens by the ids that the files give them
    decides: bool  # whether numbered overrides what tokenizer.json says about a token
    split_special_tokens: bool  # whether special tokens in a text are read as text

    def texts(self, padding: str | None = None) -> dict[str, str]:
        """Return the named tokens as text, by name; ``padding`` is the ``pad_token`` where no file names one."""
        named = {**self._padded(padding), **self.specific}
        return {name: _text(token) for name, token in named.items() if token is not None}

    def complete(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Add the tokens that transformers adds, and mark named ones as special; return what was changed."""

        def states() -> dict[int, Any]:
            return {index: token.__getstate__() for index, token in tokenizer.get_added_tokens_decoder().items()}

        wanted = self._wanted(tokenizer.get_added_tokens_decoder(), (tokenizer.padding or {}).get("pad_token"))
        before = states()
        if all(token.__getstate__() in before.values() for token in wanted):
            return ()
        tokenizer.add_tokens(wanted)
        changed = [index for index, state in states().items() if before.get(index) != state]
        after = tokenizer.get_added_tokens_decoder()
        return tuple(after[index].content for index in changed)

    def misnumbered(self, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
        """Return tokens with other ids than the files give them: (that of the files, that of the tokenizer or None)."""
        ids = {
            token.content: (index, tokenizer.token_to_id(token.content))
            for index, token in self.numbered.items()
            if token.content
        }
        return {text: pair for text, pair in ids.items() if pair[0] != pair[1]}

    def _padded(self, padding: str | None) -> dict[str, Token | None]:
        return {**({} if padding is None else {"pad_token": padding}), **self.standard}

    def _wanted(self, known: dict[int, AddedToken], padding: str | None) -> list[AddedToken]:
        """Return what transformers adds, in its order: by id, then named tokens, then the others."""
        from tokenizers import AddedToken

        numbered = self.numbered if self.decides else {**self.numbered, **known}
        wanted: list[Token] = [token for _, token in sorted(numbered.items(), key=lambda item: item[0])]
        there = {token.content for token in (*known.values(), *numbered.values())}
        rules = {token.content: token for token in (*self.numbered.values(), *numbered.values())}
        standard = self._padded(padding)
        named = [rules.get(_text(token), token) for name in STANDARD if (token := standard.get(name)) is not None]
        named += self.specific.values()
        for token in (*named, *self.extra):
            if _text(token) not in there and token not in wanted:
                wanted.append(token)
        made = [AddedToken(token, special=True) if isinstance(token, str) else token for token in wanted]
        names = {_text(token) for token in named}
        for token in made:
            if token.content in names and not token.special:
                token.special = True
        return made


def read_settings(directory: Path) -> TokenizerSettings:
    """Return the settings in the files beside a ``tokenizer.json``; any of them may be missing."""
    path = directory / CONFIG
    settings = read_tokenizer_file(path)
    files = settings.get("fast_tokenizer_files")  # by versions of transformers, which chooses among them
    if files and files != ["tokenizer.json"]:
        raise LucidError(
            f"{path}: fast_tokenizer_files has transformers take another file than tokenizer.json, by its own version: "
            f"{files!r}. Name the right one tokenizer.json and remove the key."
        )
    for name in _ADDING:
        settings.pop(name, None)
    if _ADDITIONAL in settings and not settings.get(_EXTRA):
        settings[_EXTRA] = settings.pop(_ADDITIONAL)
    texts = [name for name, value in settings.items() if _is_specific(name) and isinstance(value, str)]
    specific = {name: settings.pop(name) for name in texts}
    if isinstance(settings.get(_EXTRA), dict):
        specific |= settings.pop(_EXTRA)
    specific = specific or settings.get(_SPECIFIC) or {}
    if not isinstance(specific, dict):
        raise LucidError(f"{path}: {_SPECIFIC} must be an object of named tokens.")
    decides = _DECODER in settings
    if decides:
        numbered = _numbered(settings[_DECODER], path)
    else:
        specific = _merge_map(settings, specific, directory / MAP)
        numbered = _added(settings, directory / ADDED)
    # Only now, as in transformers: what the map says counts as well.
    marked = {name: value for name, value in settings.items() if _is_specific(name) and _is_token(value)}
    extra = settings[_EXTRA] if _EXTRA in settings else settings.get(_ADDITIONAL)
    if not isinstance(extra, list | None):
        raise LucidError(f"{path}: {_EXTRA} must be a list of tokens, or an object of named ones.")
    split = settings.get("split_special_tokens", False)
    if not isinstance(split, bool):
        raise LucidError(f"{path}: split_special_tokens must be true or false.")
    return TokenizerSettings(
        {
            name: None if settings[name] is None else _token(settings[name], name, path)
            for name in STANDARD
            if name in settings
        },
        {name: _token(value, name, path) for name, value in {**marked, **specific}.items()},
        tuple(_token(value, _EXTRA, path) for value in extra or []),
        numbered,
        decides,
        split,
    )


def padding_token(directory: Path) -> str | None:
    """Return the ``pad_token`` of the padding that ``tokenizer.json`` describes: transformers' default for the name."""
    padding = read_tokenizer_file(directory / "tokenizer.json").get("padding")
    found = padding.get("pad_token") if isinstance(padding, dict) else None
    return found if isinstance(found, str) else None


def _merge_map(settings: dict[str, Any], specific: dict[str, Any], path: Path) -> dict[str, Any]:
    """Override settings by ``special_tokens_map.json``, and return the named tokens of this model alone."""
    for name, value in read_tokenizer_file(path).items():
        if name in _NOT_IN_MAP:
            raise LucidError(
                f"{path}: transformers takes {name} from there too, where it does not belong. Remove it, or let "
                "AutoTokenizer's save_pretrained write what it means into the right files."
            )
        if isinstance(value, dict) and name != _EXTRA:
            settings[name] = _object({**value, "special": True}, name, path)
        elif isinstance(value, list) and name == _EXTRA:
            merged = list(settings.get(_EXTRA) or [])
            for item in value:
                token = _object({**item, "special": True}, name, path) if isinstance(item, dict) else item
                token = _token(token, name, path)
                if token not in merged:
                    merged.append(token)
            settings[name] = merged
        elif name in STANDARD:
            settings[name] = None if value is None else _token(value, name, path)
        else:
            settings[name] = value
    named = settings.pop(_EXTRA) if isinstance(settings.get(_EXTRA), dict) else {}
    return {**specific, **named}


def _added(settings: dict[str, Any], path: Path) -> dict[int, AddedToken]:
    """Read ``added_tokens.json``; tokens that the settings name are special."""
    from tokenizers import AddedToken

    # As in transformers, additional_special_tokens of special_tokens_map.json do not count here.
    special = {str(settings[name]) for name in STANDARD if settings.get(name)}
    special |= {str(token) for token in settings.get(_EXTRA) or []}
    found = {}
    for text, index in read_tokenizer_file(path).items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise LucidError(f"{path}: the id of {text!r} must be a whole number.")
        found[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _numbered(raw: Any, path: Path) -> dict[int, AddedToken]:
    if not isinstance(raw, dict):
        raise LucidError(f"{path}: {_DECODER} must be an object of tokens by id.")
    found = {}
    for index, value in raw.items():
        if not index.isdecimal() or not isinstance(value, dict):
            raise LucidError(f"{path}: {_DECODER} must be an object of tokens by id, not {index!r}: {value!r}.")
        found[int(index)] = _object(value, _DECODER, path)
    return found


def _is_specific(name: str) -> bool:
    return name.endswith("_token") and name not in STANDARD


def _is_token(value: Any) -> bool:
    """Return whether a setting is a token; a dictionary is one if it says so."""
    from tokenizers import AddedToken

    return isinstance(value, str | AddedToken) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _token(value: Any, name: str, path: Path) -> Token:
    """Return a token that a file gives as text, or as an object with the text as ``content``."""
    from tokenizers import AddedToken

    if isinstance(value, str | AddedToken):
        return value
    if not isinstance(value, dict):
        raise LucidError(f"{path}: {name} must be a text, or an object with a text as content, not {value!r}.")
    if value.get("__type") != "AddedToken" and value.get("content") is None:
        raise LucidError(f"{path}: {name} has an object without a text as content: {value!r}.")
    return _object(value, name, path)


def _object(value: dict[str, Any], name: str, path: Path) -> AddedToken:
    """Return the token that an object describes; without a text it has an empty one, as in transformers."""
    from tokenizers import AddedToken

    content = "" if value.get("content") is None else value["content"]
    rules = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        if isinstance(content, str):
            return AddedToken(content, **{rule: value[rule] for rule in rules if rule in value})
    except (TypeError, ValueError) as error:  # a rule that is neither true nor false, or half a character
        raise LucidError(f"{path}: {name} has a token that cannot be read: {error}.") from error
    raise LucidError(f"{path}: {name} has an object whose content is no text: {value!r}.")


def _text(token: Token) -> str:
    return token if isinstance(token, str) else token.content


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; empty without the file."""
    if not path.is_file():
        return {}
    try:
        with reading(path):
            found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LucidError(f"{path} is not a readable tokenizer configuration: {error}.") from error
    if not isinstance(found, dict):
        raise LucidError(f"{path} is not a readable tokenizer configuration: it must be an object.")
    return found
