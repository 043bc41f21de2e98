"""Likelihoods are those of lm_eval's own backend, for tokenizers that add tokens to a text and for others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session

# Before these are imported: no network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

WINDOW = 16
# How each kind of tokenizer frames a text, and the tokens that its files name. The configuration says bos 1, eos 2.
KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "adds BOS": ("<bos> $A", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "adds BOS and EOS": ("<bos> $A <eos>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "adds nothing": (None, {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "names another BOS": (None, {"bos_token": "<pad>", "eos_token": "<eos>"}),
    "names no BOS": (None, {"bos_token": None, "eos_token": "<eos>"}),
    "names another EOS": ("<bos> $A", {"bos_token": "<bos>", "eos_token": "lam"}),
}
TEXTS = ["Hello", "", "<bos>Hello", "<eos>", "The lamp is red. " * 12, "<bos>" + "The lamp is red. " * 12]
PROMPTS = ["The lamp", "Hello", "is", "The lamp is red.", "a", "world", "<bos>Hello", "é日本 🙂", "red \t", "lamp\n"]
STOPS = [[], "e", ["e", "he"], ["he", "e"], ["a", "la"], ["s", "is", " is"], ["<eos>"], ["<pad>"], [" "], ["\ufffd"]]
PAIRS = [("", "Hello"), ("", "<bos>Hello"), ("", "<eos> a"), ("The lamp", " is"), ("<bos>The lamp", " is"), ("a ", "b")]


def tokenizer_at(directory: Path, frame: str | None, names: dict[str, Any]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The lamp is red. Hello world. " * 9], trainer)
    if frame:
        special = [("<bos>", 1), ("<eos>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("hflm") / "checkpoint"
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer_at(folder, *KINDS["adds BOS"])


@pytest.fixture(scope="module")
def session(checkpoint: Path) -> Session[Any]:
    return open_session(export(checkpoint, checkpoint.parent / "artifact", ExportOptions(logits="all")))


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, checkpoint: Path, session: Session[Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFLM, LucidLM]:
    """lm_eval's backend over transformers' Llama in float32, and the adapter, with the same tokenizer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    directory = tokenizer_at(tmp_path_factory.mktemp("tokenizer"), *KINDS[request.param])
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=WINDOW)
    return reference, LucidLM(session=session, tokenizer=TextTokenizer(directory), max_length=WINDOW, truncate="left")


def asked(kind: str, *arguments: tuple[str, ...]) -> list[Any]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def test_texts_are_rolled_over_as_by_the_harness_itself(both: tuple[HFLM, LucidLM]) -> None:
    """Float32 rounds in the fifth digit here; a token more or less is 1 and up."""
    reference, ours = both
    requests = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
    expected = reference.loglikelihood_rolling(requests, disable_tqdm=True)
    assert len(reference.tok_encode(TEXTS[4])) > 2 * WINDOW
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_continuations_are_scored_as_by_the_harness_itself(both: tuple[HFLM, LucidLM]) -> None:
    reference, ours = both
    requests = asked("loglikelihood", *PAIRS)
    expected = reference.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_answers_end_where_those_of_the_harness_itself_do(both: tuple[HFLM, LucidLM]) -> None:
    """Stop sequences may begin within each other, and the tokenizer's end token be another than the configuration's."""
    reference, ours = both
    asked_for = [(prompt, {"until": stop, "max_gen_toks": 10}) for prompt in PROMPTS for stop in STOPS]
    expected = reference.generate_until(asked("generate_until", *asked_for), disable_tqdm=True)
    assert ours.generate_until(asked("generate_until", *asked_for), disable_tqdm=True) == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("options", [{"do_sample": None, "temperature": 3}, {"do_sample": True, "temperature": 3}])
def test_a_task_that_samples_draws_from_as_many_tokens_as_the_harness_itself(
    both: tuple[HFLM, LucidLM], options: dict[str, Any]
) -> None:
    reference, ours = both
    seeds = [{**options, "max_gen_toks": 1, "seed": seed} for seed in range(40)]
    seen = set(ours.generate_until(asked("generate_until", *(("Hello", each) for each in seeds)), disable_tqdm=True))
    assert len(seen) > 5  # drawn
    assert reference.model.generation_config.top_k is None  # so transformers' own default counts
    likeliest = reference.model(torch.tensor([reference.tok_encode("Hello")])).logits[0, -1].topk(50).indices
    assert seen <= {reference.tok_decode([token]) for token in likeliest.tolist()}


def test_chats_are_those_of_the_harness_itself(session: Session[Any], checkpoint: Path, tmp_path: Path) -> None:
    """Without ``chat``, the artifact's own template counts; the name in lm_eval's records is one model's alone."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    copied, names = tmp_path / "chats", set()
    shutil.copytree(checkpoint, copied)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi "}]
    for number, ending in enumerate(("", "{# other #}")):
        (copied / "chat_template.jinja").write_text(template + ending)
        artifact = export(copied, tmp_path / f"artifact{number}", ExportOptions(logits="all"))
        reference = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(copied), device="cpu")
        ours = LucidLM(artifact.directory)
        for opened in (True, False):
            assert ours.apply_chat_template(messages, opened) == reference.apply_chat_template(messages, opened)
        assert ours.tokenizer_name == LucidLM(artifact.directory).tokenizer_name
        names.add(ours.tokenizer_name)
    plain = LucidLM(session=session, tokenizer=TextTokenizer(checkpoint))
    assert len({*names, plain.tokenizer_name}) == 3
    with pytest.raises(LucidError, match="A session has no chat template: give LucidLM chat"):
        plain.apply_chat_template(messages)
    with pytest.raises(LucidError, match="artifact has no chat template: leave apply_chat_template out"):
        LucidLM(checkpoint.parent / "artifact").apply_chat_template(messages)
    with pytest.raises(LucidError, match="by name, not 'rag'"):
        plain.chat_template("rag")


def test_ids_and_prefix_are_those_of_the_harness_itself(both: tuple[HFLM, LucidLM]) -> None:
    reference, ours = both
    assert (ours.prefix_token_id, ours.eot_token_id) == (reference.prefix_token_id, reference.eot_token_id)
    for text in (*TEXTS, "".join(PAIRS[2])):
        assert ours.tok_encode(text) == reference.tok_encode(text)
        for added in (True, False):
            assert ours.tok_encode(text, add_special_tokens=added) == reference.tok_encode(text, added)


def test_where_the_tokenizer_names_no_token_the_configuration_does(session: Session[Any], tmp_path: Path) -> None:
    """There lm_eval's own backend has no prefix, and fails."""
    ours = LucidLM(session=session, tokenizer=TextTokenizer(tokenizer_at(tmp_path, "<bos> $A", {})))
    assert (ours.prefix_token_id, ours.eot_token_id) == (1, 2)


class Unspelled:
    """A tokenizer whose texts leave special tokens out, so that a prefix token is spelled as nothing."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def test_a_prefix_that_is_not_spelled_takes_no_token_away(session: Session[Any], tmp_path: Path) -> None:
    directory = tokenizer_at(tmp_path, *KINDS["adds BOS"])
    unspelled = LucidLM(session=session, tokenizer=Unspelled(directory))
    spelled = LucidLM(session=session, tokenizer=TextTokenizer(directory))
    assert unspelled.tok_decode([unspelled.prefix_token_id]) == ""
    assert unspelled.tok_encode("Hello")[0] == 1
    for text in TEXTS:
        assert unspelled.tok_encode(text) == spelled.tok_encode(text)


def test_a_prefix_beyond_the_vocabulary_takes_no_token_away(session: Session[Any], tmp_path: Path) -> None:
    """The files name no token, and their vocabulary has none with the configuration's id, 1."""
    tokenizer = Tokenizer(models.WordLevel({"other": 0, "hi": 2, "<s>": 3}, unk_token="other"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = LucidLM(session=session, tokenizer=TextTokenizer(tmp_path))
    assert ours.tok_encode("hi") == [3, 2]
