"""Opening checkpoints: every published layout loads, and everything broken is one error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def stored(checkpoint: Path) -> Tensors:
    return load_file(checkpoint / "model.safetensors")


def store(checkpoint: Path, tensors: Tensors) -> None:
    save_file(tensors, checkpoint / "model.safetensors")


def shard(checkpoint: Path) -> dict[str, str]:
    """Split a checkpoint's tensors over two files; return the index's weight map."""
    tensors = stored(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file)
    return write_index(checkpoint, {name: file for file, part in files.items() for name in part})


def write_index(checkpoint: Path, weight_map: dict[str, str]) -> dict[str, str]:
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def refusal(checkpoint: Path) -> str:
    with pytest.raises(LucidError) as caught:
        Checkpoint(checkpoint)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parameters(checkpoint: Path) -> Tensors:
    return load_model(checkpoint).state_dict()


def test_a_single_file_loads_every_tensor(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    loaded, tensors = parameters(checkpoint), stored(checkpoint)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_shards_load_as_the_single_file_does(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    whole = parameters(checkpoint)
    shard(checkpoint)
    loaded = parameters(checkpoint)
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_links_into_a_download_cache_load(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("store")
    shard(checkpoint)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert parameters(snapshot).keys() == parameters(checkpoint).keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_types_load_as_float32(make_checkpoint: MakeCheckpoint, dtype: torch.dtype) -> None:
    checkpoint = make_checkpoint()
    tensors = {name: value.to(dtype) for name, value in stored(checkpoint).items()}
    store(checkpoint, tensors)
    assert torch.equal(parameters(checkpoint)[Q_PROJ], tensors[Q_PROJ].float())


def test_a_tied_head_is_the_embedding(make_checkpoint: MakeCheckpoint) -> None:
    loaded = parameters(make_checkpoint(tie_word_embeddings=True))
    assert loaded["lm_head.weight"].data_ptr() == loaded[EMBEDDING].data_ptr()


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    tensors = stored(checkpoint)
    store(checkpoint, {**tensors, "lm_head.weight": tensors[EMBEDDING].clone()})
    assert torch.equal(parameters(checkpoint)["lm_head.weight"], tensors[EMBEDDING])


@pytest.mark.parametrize("rows", [97, 96], ids=["other values", "other shape"])
def test_a_tied_head_that_differs_is_refused(make_checkpoint: MakeCheckpoint, rows: int) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    store(checkpoint, {**stored(checkpoint), "lm_head.weight": torch.zeros(rows, 64)})
    assert "lm_head.weight" in refusal(checkpoint)


def test_inverse_frequencies_of_old_checkpoints_are_ignored(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(18)}
    store(checkpoint, stored(checkpoint) | frequencies)
    assert not parameters(checkpoint).keys() & frequencies.keys()


def test_biases_load(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(attention_bias=True, mlp_bias=True)
    loaded, tensors = parameters(checkpoint), stored(checkpoint)
    biases = [name for name in loaded if name.endswith(".bias")]
    assert len(biases) == 2 * 7
    assert all(torch.equal(loaded[name], tensors[name]) for name in biases)


def test_all_tensors_that_do_not_fit_are_in_one_error(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    tensors = stored(checkpoint)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors |= {"model.extra": torch.ones(1), Q_PROJ: torch.ones(3, 64)}
    tensors[EMBEDDING] = tensors[EMBEDDING].to(torch.int8)
    store(checkpoint, tensors)
    message = refusal(checkpoint)
    assert "missing: lm_head.weight, model.norm.weight;" in message
    assert "unexpected: model.extra;" in message
    assert f"wrong shape: {Q_PROJ} is [3, 64], config.json asks for [144, 64];" in message
    assert f"{EMBEDDING} is I8" in message


@pytest.mark.parametrize(("part", "variant"), [("beta_proj", "use_beta"), ("forget_gate", "use_forget_gate")])
def test_tensors_of_a_variant_are_refused_by_name(make_checkpoint: MakeCheckpoint, part: str, variant: str) -> None:
    checkpoint = make_checkpoint()
    name = f"model.layers.0.self_attn.{part}.weight"
    store(checkpoint, {**stored(checkpoint), name: torch.ones(1)})
    message = refusal(checkpoint)
    assert variant in message
    assert name in message


def test_pickle_is_never_read(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Trap()}, checkpoint / "pytorch_model.bin")
    assert "Pickle" in refusal(checkpoint)
    assert not (tmp_path / "ran").exists()


def damaged(content: bytes, how: str) -> bytes:
    return {
        "cut in the data": content[:-5000],
        "cut in the header": content[:100],
        "empty": b"",
        "header is not JSON": content[:8] + b"#" * 50 + content[58:],
        "header longer than the file": b"\xff" * 6 + b"\x00\x00" + content[8:],
        "offsets beyond the end": content.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    }[how]


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize(
    "how",
    [
        "cut in the data",
        "cut in the header",
        "empty",
        "header is not JSON",
        "header longer than the file",
        "offsets beyond the end",
    ],
)
def test_a_damaged_file_is_named(make_checkpoint: MakeCheckpoint, how: str, sharded: bool) -> None:
    checkpoint = make_checkpoint()
    if sharded:
        shard(checkpoint)
    path = sorted(checkpoint.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(damaged(content, how))
    assert path.read_bytes() != content
    assert f"{path} is not a readable safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"], ids=lambda text: text
)
def test_an_index_of_another_form_is_refused(make_checkpoint: MakeCheckpoint, content: str) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / INDEX).write_text(content)
    assert f"{checkpoint / INDEX} is not an index of safetensors" in refusal(checkpoint)


@pytest.mark.parametrize("outside", ["../other/model.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside_is_refused(make_checkpoint: MakeCheckpoint, outside: str) -> None:
    make_checkpoint("other")
    checkpoint = make_checkpoint()
    write_index(checkpoint, {**shard(checkpoint), Q_PROJ: outside})
    message = refusal(checkpoint)
    assert "points outside the checkpoint" in message
    assert outside in message


def test_a_missing_shard_is_named(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert "missing: model-00002-of-00002.safetensors" in refusal(checkpoint)


def test_a_shard_that_lacks_its_tensor_is_named(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    weight_map = shard(checkpoint)
    wrong = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    write_index(checkpoint, {**weight_map, Q_PROJ: wrong})
    message = refusal(checkpoint)
    assert f"{wrong} lacks tensors that the index places there: {Q_PROJ}" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "holds a JSON list"),
        (None, "has no config.json"),
    ],
)
def test_a_broken_configuration_file_is_named(
    make_checkpoint: MakeCheckpoint, content: bytes | None, said: str
) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "config.json").unlink()
    if content is not None:
        (checkpoint / "config.json").write_bytes(content)
    message = refusal(checkpoint)
    assert str(checkpoint) in message
    assert said in message


def test_a_missing_directory_and_a_file_are_told_apart(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    assert "the directory does not exist" in refusal(tmp_path / "nothing")
    assert "is a file" in refusal(make_checkpoint() / "model.safetensors")


def test_only_the_head_of_a_tied_pair_may_be_stored(make_checkpoint: MakeCheckpoint) -> None:
    """safetensors' own save_model keeps the first name of tensors that share memory: the head."""
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    path, model = checkpoint / "model.safetensors", load_model(checkpoint)
    save_model(model, str(path))
    assert "model.embed_tokens.weight" not in load_file(path)
    opened = Checkpoint(checkpoint)
    assert torch.equal(load_model(opened).model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert opened.notes == ("lm_head.weight is stored and model.embed_tokens.weight is not: tied, it is both.",)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["zero_to_fp32.py", "latest", "global_step5/mp_rank_00_model_states.pt"], "python zero_to_fp32.py . OUTPUT"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["__0_0.distcp"], "accelerate merge-weights"),
    ],
)
def test_shards_of_trainers_are_named_with_what_makes_safetensors(
    make_checkpoint: MakeCheckpoint, files: list[str], said: str
) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "model.safetensors").unlink()
    for name in files:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"")
    with pytest.raises(LucidError, match=said):
        Checkpoint(checkpoint)
