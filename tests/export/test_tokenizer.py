"""``tokenizer.json`` made from SentencePiece's ``tokenizer.model``: held against SentencePiece, or not made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export.tokenizer import check_tokenizer, copy_companions

TEXT = "\n".join(
    f"the quick brown fox {i} jumps over Straße 日本 and {word}  again" for i in range(90) for word in "abc"
)
TEXTS = ("the fox  jumps", " 12 foxes\nand\tnone ", "日本 Straße 🦊", "")
CLEANS = "clean_up_tokenization_spaces"
CLEANS_BPE = f"{CLEANS}_for_bpe_even_though_it_will_corrupt_output"
LLAMAS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}


@pytest.fixture(scope="module", params=[("bpe", LLAMAS), ("unigram", {})], ids=["llama", "unigram"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SentencePiece's file, as Llama's was made, and with the other algorithm and its own rules."""
    kind, rules = request.param
    directory = tmp_path_factory.mktemp("original")
    (directory / "text.txt").write_text(TEXT, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text.txt"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=330,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=9,
        **rules,
    )
    return directory


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(original / "tokenizer.model", source)
    (source / "config.json").write_text('{"model_type": "llama"}')
    return source


def made(checkpoint: Path) -> tuple[Path, tuple[str, ...]]:
    building = checkpoint.parent / "building"
    building.mkdir()
    return building, copy_companions(checkpoint, building)


@pytest.mark.parametrize("bos", [None, True, False])
def test_texts_are_split_as_sentencepiece_splits_them(checkpoint: Path, bos: bool | None) -> None:
    if bos is not None:  # transformers' class of this name splits texts otherwise than the file says
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": bos}
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    building, [note, *others] = made(checkpoint)
    assert "tokenizer.json was made from tokenizer.model with transformers " in note
    theirs = AutoTokenizer.from_pretrained(str(checkpoint))
    differ = any(theirs(text).input_ids != TextTokenizer(building).encode(text) for text in TEXTS)
    assert differ == (bos is not None) == len(others)
    for other in others:
        assert "(LlamaTokenizer) splits " in other and "otherwise than tokenizer.model, which the artifact" in other
    assert ("It puts <s> before a text." if bos else "It puts no token before a text.") in note
    original = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    converted = TextTokenizer(building)
    for text in TEXTS:
        ids = original.encode(text)
        assert converted.encode(text) == [*([original.bos_id()] if bos else []), *ids]
        if original.unk_id() not in ids:
            assert converted.decode(ids) == original.decode(ids)
    assert not (checkpoint / "tokenizer.json").exists()  # the checkpoint is only read


SPACED = ["it", "is", ".", "n't", "?"]


@pytest.mark.parametrize("settings", [{}, {CLEANS: False}, {CLEANS: True}, {CLEANS: True, CLEANS_BPE: True}])
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_texts_that_transformers_cleans_up_are_said(kind: str, settings: dict[str, bool], tmp_path: Path) -> None:
    source, building = tmp_path / "source", tmp_path / "building"
    source.mkdir()
    building.mkdir()
    words = {word: index for index, word in enumerate([*SPACED, "[UNK]"])}
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    else:
        tokenizer = Tokenizer(models.BPE({f" {word}": index for word, index in words.items()}, []))
        tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )
    notes = copy_companions(source, building)
    ids = [words[word] for word in SPACED]
    theirs = AutoTokenizer.from_pretrained(str(source)).decode(ids)
    assert (theirs != TextTokenizer(building).decode(ids)) == len(notes)
    assert all(note.startswith("clean_up_tokenization_spaces in tokenizer_config.json has") for note in notes)


def test_a_result_that_differs_is_not_kept(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    wrong = LlamaTokenizer.from_pretrained(str(checkpoint))
    monkeypatch.setattr(TokenizersBackend, "from_pretrained", lambda *_, **__: wrong)
    building, [note] = made(checkpoint)
    assert "was not converted to tokenizer.json: the result would split '" in note
    assert not (building / "tokenizer.json").exists()


def test_a_switch_that_is_a_text_is_said(checkpoint: Path) -> None:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": "true"}))
    theirs = TokenizersBackend.from_pretrained(str(checkpoint), local_files_only=True)
    assert theirs.special_tokens_map["add_bos_token"] == "true" and theirs("").input_ids == []
    building, [note] = made(checkpoint)
    assert "add_bos_token in tokenizer_config.json is 'true', which transformers takes for the text of a token." in note
    assert not (building / "tokenizer.json").exists()


def test_a_broken_file_is_said(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").write_bytes(b"nothing")
    building, [note] = made(checkpoint)
    assert note.startswith("tokenizer.model could not be converted to tokenizer.json: ") and "\n" not in note
    assert not (building / "tokenizer.json").exists()


@pytest.mark.parametrize("package", ["sentencepiece", "transformers"])
def test_without_the_packages_nothing_is_made(checkpoint: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)
    assert made(checkpoint)[1] == ()


def test_a_tokenizer_that_is_there_is_copied(checkpoint: Path, with_tokenizer: Path) -> None:
    shutil.copy(with_tokenizer / "tokenizer.json", checkpoint)
    check_tokenizer(checkpoint)
    building, notes = made(checkpoint)
    assert notes == ()
    assert (building / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_tokens_that_other_files_name_are_said(checkpoint: Path, with_tokenizer: Path) -> None:
    shutil.copy(with_tokenizer / "tokenizer.json", checkpoint)
    size = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab_size()
    named = {"<tool>": size, **{f"<{i}>": size + 1 + i for i in range(9)}, "<odd>": 900}
    (checkpoint / "added_tokens.json").write_text(json.dumps(named))
    building, [added, ids] = made(checkpoint)
    assert added.startswith("Files beside tokenizer.json add or change tokens, as in transformers: <tool>, <0>, <1>, ")
    assert added.endswith(" and 3 more. Programs that read tokenizer.json alone do not know them.")
    assert ids == f"Files beside tokenizer.json give tokens other ids than transformers: <odd> 900, not {size + 10}."
    assert (building / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    theirs = AutoTokenizer.from_pretrained(str(building))
    assert TextTokenizer(building).encode("fox <tool> <odd>") == theirs("fox <tool> <odd>").input_ids


def test_settings_that_cannot_be_read_are_refused_at_once(checkpoint: Path, with_tokenizer: Path) -> None:
    shutil.copy(with_tokenizer / "tokenizer.json", checkpoint)
    (checkpoint / "special_tokens_map.json").write_text('{"eos_token": 7}')
    with pytest.raises(LucidError, match=r"special_tokens_map\.json: eos_token must be a text"):
        check_tokenizer(checkpoint)
    (checkpoint / "tokenizer.json").unlink()  # it will be made from tokenizer.model
    with pytest.raises(LucidError, match=r"special_tokens_map\.json: eos_token must be a text"):
        check_tokenizer(checkpoint)


def test_chat_templates_are_copied_or_refused_at_once(checkpoint: Path, with_tokenizer: Path) -> None:
    shutil.copy(with_tokenizer / "tokenizer.json", checkpoint)
    folder = checkpoint / "additional_chat_templates"
    folder.mkdir()
    for name in ("tool_use.jinja", "file.jinja"):
        (folder / name).write_text("{{ tools }}")
    with pytest.raises(LucidError, match=r"file\.jinja: transformers takes"):
        check_tokenizer(checkpoint)
    (folder / "file.jinja").rename(folder / "rag.jinja")
    check_tokenizer(checkpoint)
    building, _ = made(checkpoint)
    theirs = AutoTokenizer.from_pretrained(str(checkpoint)).chat_template
    assert (
        AutoTokenizer.from_pretrained(str(building)).chat_template
        == theirs
        == dict.fromkeys(("tool_use", "rag"), "{{ tools }}")
    )


def test_export_says_what_to_do(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_checkpoint(num_hidden_layers=1)
    shutil.copy(checkpoint / "tokenizer.model", whole)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        said = CliRunner().invoke(main, ["export", str(whole), "-o", str(tmp_path / "without")])
    assert said.exit_code == 0
    assert said.stderr.startswith(f"Note: {tmp_path / 'without'} has no tokenizer.json")
    assert 'Run: pip install "transformers>=5.24,<6" "sentencepiece>=0.2,<1" Then export again.' in said.stderr
    said = CliRunner().invoke(main, ["run", str(tmp_path / "without"), "-p", "fox"])
    assert "Export makes it from tokenizer.model." in said.stderr
    said = CliRunner().invoke(main, ["export", str(whole), "-o", str(tmp_path / "with")])
    assert (said.exit_code, said.stderr) == (0, "")
    assert "tokenizer.json was made from tokenizer.model" in said.stdout
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "with"), "--check"]).exit_code == 0


@pytest.mark.parametrize(
    ("files", "said"),
    [((), "Put the model's tokenizer.json into the checkpoint"), (("vocab.json", "merges.txt"), "AutoTokenizer")],
)
def test_advice(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    from lucid_deploy.artifact.tokenizer import advice

    for name in files:
        (tmp_path / name).write_text("")
    assert said in advice(tmp_path)
